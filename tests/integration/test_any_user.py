"""Users without a name or a home, on a read-only system, in another locale, with closed streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fleet import PATIENCE, SMALL, Fleet, worker_environment
from ltxq import Client
from ltxq_worker.embedded.servers import S3Server
from servers import S3
from variants import variants

LTXQ = (sys.executable, "-m", "ltxq")
NAMELESS = ("unshare", "--user", "--map-user=12345", "--map-group=12345")
HOMELESS = ("env", "-u", "HOME", "-u", "USER", "-u", "LOGNAME", *NAMELESS)
# Everything is read-only but a small folder in memory.
READ_ONLY = ("unshare", "--user", "--mount", "--map-root-user", "sh", "-c",
             'mount -t tmpfs none "$0" && mount -o bind,remount,ro / && exec "$@"')  # fmt: skip
SIZE = ("--width", "64", "--height", "64", "--num-frames", "9")


@pytest.fixture
def _namespaces() -> None:
    for inside in (NAMELESS, READ_ONLY[:4]):
        if subprocess.run([*inside, "true"], capture_output=True, timeout=30).returncode:
            pytest.skip("this system allows no user namespaces")


@pytest.fixture
def own(redis_url: str, s3_server: S3Server, tmp_path: Path) -> dict[str, str]:
    return worker_environment(redis_url, s3_server, tmp_path / "spool")


@pytest.fixture
def client(redis_url: str, s3: S3) -> Client:
    return Client(settings=s3.settings(url=redis_url, default_model="instant"))


def ran(
    *words: str, inside: tuple[str, ...] = (), environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*inside, *LTXQ, *words],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.usefixtures("_namespaces")
def test_a_user_without_a_name_or_a_home_submits_and_serves(
    own: dict[str, str], client: Client
) -> None:
    with Fleet(own, inside=HOMELESS) as fleet, client:
        fleet.wait_until_ready()
        submitted = ran("submit", "a fox", "--json", *SIZE, inside=HOMELESS, environment=own)
        assert submitted.returncode == 0, submitted.stderr
        assert client.wait(json.loads(submitted.stdout)["id"], PATIENCE).state == "succeeded"
        assert fleet.stop() == 0


@pytest.mark.usefixtures("_namespaces")
@pytest.mark.extended
@pytest.mark.parametrize("home", [None, "/proc", "/nowhere"])
def test_a_user_without_a_name_or_a_home_makes_clips_with_torch(
    tmp_path: Path, home: str | None
) -> None:
    pytest.importorskip("torch")
    inside = HOMELESS if home is None else (*HOMELESS[: -len(NAMELESS)], f"HOME={home}", *NAMELESS)
    model, clip = str(tmp_path / "tiny"), str(tmp_path / "fox.mp4")
    made = ran("model", "tiny", model, inside=inside)
    assert made.returncode == 0, made.stderr
    words = ("generate", "a fox", "--model", model, "--device", "cpu", "-o", clip, *SIZE)
    made = ran(*words, inside=inside)
    assert made.returncode == 0, made.stderr
    assert Path(clip).stat().st_size


@pytest.mark.usefixtures("_namespaces")
def test_what_needs_a_home_says_which_setting_to_set() -> None:
    for words in (("model", "list"), ("generate", "x", "--model", "none", "-o", "x.mp4")):
        done = ran(*words, inside=HOMELESS)
        assert done.returncode == 2
        assert "LTXQ_MODEL_DIR is ~/.cache/ltxq/models, and this user has no home" in done.stderr


@pytest.mark.usefixtures("_namespaces")
def test_a_read_only_system_with_a_writable_spool_serves(
    own: dict[str, str], client: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    environment = {**own, "LTXQ_SPOOL_DIR": f"{folder}/spool", "TMPDIR": "/nowhere"}
    with Fleet(environment, inside=(*READ_ONLY, str(folder))) as fleet, client:
        fleet.wait_until_ready()
        assert client.wait(client.submit("a fox", **SMALL).id, PATIENCE).state == "succeeded"
        assert fleet.stop() == 0


def test_a_spools_name_may_begin_with_a_hyphen(own: dict[str, str], tmp_path: Path) -> None:
    environment = {**own, "LTXQ_SPOOL_DIR": "-1"}
    with Fleet(environment, inside=("env", "-C", str(tmp_path))) as fleet:
        fleet.wait_until_ready()
        assert (tmp_path / "-1").is_dir()


@pytest.mark.usefixtures("_namespaces")
def test_a_read_only_system_without_one_says_which_setting_to_set(
    own: dict[str, str], tmp_path: Path
) -> None:
    del own["LTXQ_SPOOL_DIR"]
    command = ("worker", "--model", "instant", "--gpus", "cpu")
    done = ran(*command, inside=(*READ_ONLY, str(tmp_path)), environment=own)
    assert done.returncode == 2, done.stderr
    assert "LTXQ_SPOOL_DIR" in done.stderr


@pytest.mark.parametrize("encoding", variants("ascii", extended=("latin-1", "cp1252", "utf-16")))
def test_an_encoding_without_the_characters_shows_escapes(tmp_path: Path, encoding: str) -> None:
    environment = {"PYTHONIOENCODING": encoding, "TERM": ""}
    clip = str(tmp_path / "лиса🦊.mp4")
    words = ("generate", "a 🦊", "--model", "instant", "-o", clip, *SIZE)
    done = subprocess.run(
        [*LTXQ, *words], env={**os.environ, **environment}, capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert Path(clip).exists()


@pytest.mark.parametrize("locale", variants("C", extended=("POSIX", "xx_XX", "", "ASCII")))
def test_a_prompt_arrives_whole_in_any_locale(redis_url: str, locale: str) -> None:
    environment = {"LC_ALL": locale, "LANG": locale, "LTXQ_URL": redis_url, "TZ": "No/Where"}
    if locale == "ASCII":  # what Python otherwise makes UTF-8
        environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = ran("submit", "a 🦊", environment=environment)
    assert done.returncode == 0, done.stderr
    with Client(redis_url) as client:
        assert client.list().jobs[0].request.prompt == "a 🦊"
    assert ran("status", done.stdout.strip(), environment=environment).returncode == 0


@pytest.mark.parametrize("closed", variants(">&- 2>&- <&-", extended=(">&-", "2>&-", "<&-")))
def test_closed_streams_are_the_null_device(tmp_path: Path, closed: str) -> None:
    clip = tmp_path / "fox.mp4"
    words = ("generate", "a fox", "--model", "instant", "-o", str(clip), *SIZE)
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *LTXQ, *words], capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert clip.read_bytes()[4:8] == b"ftyp"  # nothing else was written into it
    if ">&-" in closed.split():
        assert done.stdout == b""


def test_a_pipe_that_nobody_reads_ends_a_command_quietly() -> None:
    shell = 'set -o pipefail; "$@" --help | true'
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *LTXQ], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stderr == ""
    assert done.returncode in (0, 1, 141)  # typer's own is 1


def test_output_to_a_full_disk_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*LTXQ, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE
        )
    assert done.returncode == 1
    assert "Standard output cannot be written" in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_working_directory_that_is_gone_matters_only_to_what_needs_it(
    redis_url: str, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    shell = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    environment = {**os.environ, "LTXQ_URL": redis_url, "PYTHONSAFEPATH": "1"}

    def said(*words: str) -> subprocess.CompletedProcess[str]:
        gone.mkdir(exist_ok=True)
        return subprocess.run(
            ["sh", "-c", shell, "sh", str(gone), *LTXQ, *words], env=environment,
            capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip

    assert said("submit", "a fox").returncode == 0
    done = said("generate", "a fox", "--model", "instant", "-o", "fox.mp4")
    assert done.returncode in (1, 2)
    assert "working directory no longer exists" in done.stderr


@pytest.mark.extended
def test_compiled_code_is_kept_in_the_home_over_restarts(tmp_path: Path) -> None:
    """torch chooses a folder under /tmp when it is imported, unless another one is set before."""
    pytest.importorskip("torch")
    code = (
        "import os; from pathlib import Path; from ltxq.settings import Settings;"
        "from ltxq_worker.pipeline.registry import family_of\n"
        "try: family_of('x').load(Path('/nowhere'), Settings(), 'cpu', print)\n"
        "except Exception: pass\n"
        "print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == str(tmp_path / ".cache/ltxq/compiled")


def test_modules_in_the_working_directory_are_not_imported(
    own: dict[str, str], client: Client, tmp_path: Path
) -> None:
    for name in ("types", "redis", "celery"):
        (tmp_path / f"{name}.py").write_text(
            "raise SystemExit('the working directory was imported')"
        )
    as_ltxq = f'cd "$0" && shift && exec {sys.executable} -P "$@"'  # as the command `ltxq` starts
    with Fleet(own, inside=("sh", "-c", as_ltxq, str(tmp_path))) as fleet, client:
        fleet.wait_until_ready()
        job = client.wait(client.submit("a fox", **SMALL).id, PATIENCE)
        assert job.state == "succeeded"
