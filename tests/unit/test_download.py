"""Models come from the hub whole, resumed and checked, and each refusal says the next step."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ltxq_worker.models.catalog import CATALOG
from model_hub import (
    CHECKPOINT,
    DOWNLOAD,
    FILES,
    GEMMA,
    LTX,
    MODEL,
    SHA,
    TOKEN,
    UPSCALER,
    WHOLE,
    Hub,
    download,
    environment,
    held,
)


def test_model_and_text_encoder_arrive_and_nothing_that_is_not_needed(
    hub: Hub, tmp_path: Path
) -> None:
    outcome = download(hub, tmp_path)
    assert outcome["folder"] == str(tmp_path / "models" / MODEL)
    assert held(tmp_path) == WHOLE
    total = sum(len(content) for content in WHOLE.values())
    assert outcome["told"][0] == [0, total]
    assert outcome["told"][-1] == [total, total]
    assert outcome["told"] == sorted(outcome["told"])


def test_what_is_there_is_not_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    download(hub, tmp_path)
    hub.asked.clear()
    assert "folder" in download(hub, tmp_path)
    assert hub.asked == []


def test_text_encoder_is_shared_by_models(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = CATALOG["ltx-2.3-22b-distilled"]
    monkeypatch.setitem(FILES, other.weights.id, dict.fromkeys(other.weights.files, b"x"))
    hub.access[other.weights.id] = "granted"
    download(hub, tmp_path)
    hub.asked.clear()
    assert "folder" in download(hub, tmp_path, name=other.name)
    assert not any(GEMMA in path for _, path, _ in hub.asked)


def test_text_encoder_is_downloaded_alone_by_its_own_name(hub: Hub, tmp_path: Path) -> None:
    outcome = download(hub, tmp_path, name="gemma-3-12b-it")
    assert outcome["folder"] == str(tmp_path / "models" / "gemma-3-12b-it")
    assert held(tmp_path) == {name: data for name, data in WHOLE.items() if "gemma" in name}


def test_broken_connection_is_continued_within_a_call(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = 10 << 20  # bytes: what huggingface_hub writes at once
    content = bytes(piece + 1000)
    monkeypatch.setitem(FILES, LTX, {CHECKPOINT: content, UPSCALER: b"u"})
    hub.cut_after, hub.cuts = piece + 500, 1
    outcome = download(hub, tmp_path)
    assert hub.ranges == [f"bytes={piece}-"]
    assert outcome["told"][-1] == [len(content) + 2004, len(content) + 2004]
    assert held(tmp_path)[f"{MODEL}/{CHECKPOINT}"] == content


def test_next_call_goes_on_where_the_last_one_stopped(hub: Hub, tmp_path: Path) -> None:
    part = tmp_path / "models" / f".downloading-{MODEL}"
    part.mkdir(parents=True)
    sha256 = hashlib.sha256(FILES[LTX][CHECKPOINT]).hexdigest()
    (part / f".{CHECKPOINT}.{sha256[:16]}").write_bytes(FILES[LTX][CHECKPOINT][:200_000])
    outcome = download(hub, tmp_path)
    assert hub.ranges == ["bytes=200000-"]
    total = sum(len(content) for content in WHOLE.values())
    assert (outcome["told"][0], outcome["told"][-1]) == ([200_000, total], [total, total])
    assert held(tmp_path) == WHOLE


def test_what_arrived_can_be_checked_again_later(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after, hub.cuts = 100_000, 1
    download(hub, tmp_path)
    assert "folder" in download(hub, tmp_path)
    for folder in (tmp_path / "models" / MODEL, tmp_path / "models" / "gemma-3-12b-it"):
        command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
        checked = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert checked.returncode == 0, checked
        assert len(checked.stdout.splitlines()) == len(list(folder.glob("[!.]*"))) - 1


def test_half_a_model_is_not_there(hub: Hub, tmp_path: Path) -> None:
    hub.damaged = True
    outcome = download(hub, tmp_path)
    assert outcome["error"] == "ModelUnusable"
    assert f"{CHECKPOINT} arrived damaged" in outcome["message"]
    assert "Run the same command again" in outcome["hint"]
    assert held(tmp_path) == {}
    hub.damaged = False
    assert "folder" in download(hub, tmp_path)
    assert held(tmp_path) == WHOLE


def test_token_is_not_sent_to_the_host_that_holds_the_files(hub: Hub, tmp_path: Path) -> None:
    hub.cdn = True
    assert "folder" in download(hub, tmp_path)
    assert any(path.startswith("/cdn/") for _, path, _ in hub.asked)
    assert hub.tokens_on_cdn == []
    assert held(tmp_path) == WHOLE


TOKENS_PAGE = "https://huggingface.co/settings/tokens"


def test_missing_token_says_how_to_make_and_set_one(hub: Hub, tmp_path: Path) -> None:
    outcome = download(hub, tmp_path, token=None)
    assert outcome["error"] == "ConfigurationError"
    assert "no Hugging Face token is set" in outcome["message"]
    for advice in (TOKENS_PAGE, "HF_TOKEN=", "$env:HF_TOKEN", "hf auth login", "'read'"):
        assert advice in outcome["hint"]


def test_wrong_token_is_named_as_such(hub: Hub, tmp_path: Path) -> None:
    outcome = download(hub, tmp_path, token="hf_wrong")
    assert outcome["error"] == "ConfigurationError"
    assert "does not accept the Hugging Face token" in outcome["message"]
    assert TOKENS_PAGE in outcome["hint"]


@pytest.mark.parametrize("in_a_file", [False, True])
def test_token_with_a_letter_of_another_alphabet(hub: Hub, tmp_path: Path, in_a_file: bool) -> None:
    """As a copy from a document brings it."""
    if in_a_file:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "token").write_text("hf_gооd")
    outcome = download(hub, tmp_path, token=None if in_a_file else "hf_gооd")
    assert outcome["error"] == "ConfigurationError"
    assert "character that no token has" in outcome["message"]
    assert TOKENS_PAGE in outcome["hint"]


@pytest.mark.parametrize(("repo", "extra"), [(LTX, False), (GEMMA, True)])
@pytest.mark.parametrize("access", ["gated", "hidden"])
def test_licence_not_accepted_gives_the_page_before_any_download(
    hub: Hub, tmp_path: Path, repo: str, extra: bool, access: str
) -> None:
    hub.access[repo] = access
    outcome = download(hub, tmp_path)
    assert outcome["error"] == "ConfigurationError"
    assert repo in outcome["message"]
    assert f"Open https://huggingface.co/{repo} " in outcome["hint"]
    assert "accept" in outcome["hint"]
    assert ("verified e-mail" in outcome["hint"]) == extra
    assert ("restricted" in outcome["message"]) == (access == "gated")
    assert not any(method == "GET" and "/resolve/" in path for method, path, _ in hub.asked)


def test_one_step_at_a_time(hub: Hub, tmp_path: Path) -> None:
    hub.access = {LTX: "hidden", GEMMA: "gated"}
    assert "no Hugging Face token" in download(hub, tmp_path, token=None)["message"]
    assert LTX in download(hub, tmp_path)["hint"]
    hub.access[LTX] = "granted"
    assert GEMMA in download(hub, tmp_path)["hint"]


def test_token_without_the_right_to_gated_repositories(hub: Hub, tmp_path: Path) -> None:
    hub.access[LTX] = "narrow token"
    outcome = download(hub, tmp_path)
    assert outcome["message"] == f"The Hugging Face token may not read {LTX}."
    assert "public gated repos" in outcome["hint"]


def test_file_that_is_gone_from_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FILES, LTX, {CHECKPOINT: b"c"})
    outcome = download(hub, tmp_path)
    assert outcome["error"] == "ModelUnusable"
    assert f"{LTX} has no file {UPSCALER}" in outcome["message"]
    assert "upgrade ltxq" in outcome["hint"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_hub_is_worth_another_try(hub: Hub, tmp_path: Path, status: int) -> None:
    hub.broken = status
    outcome = download(hub, tmp_path)
    assert (outcome["error"], outcome["retryable"]) == ("HubUnavailable", True)
    assert outcome["message"] == f"The hub is busy (HTTP {status})."


def test_no_connection_is_worth_another_try(hub: Hub, tmp_path: Path) -> None:
    outcome = download(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert (outcome["error"], outcome["retryable"]) == ("HubUnavailable", True)
    for advice in ("network", "HTTPS_PROXY", "HF_ENDPOINT", "continues where it stopped"):
        assert advice in outcome["hint"]


def test_login_page_of_a_network_is_not_taken_for_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.broken = 200
    outcome = download(hub, tmp_path)
    assert outcome["error"] == "HubUnavailable"
    assert "not the hub" in outcome["message"]


def test_offline_mode_is_named(hub: Hub, tmp_path: Path) -> None:
    outcome = download(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert outcome["error"] == "ConfigurationError"
    assert "Unset HF_HUB_OFFLINE" in outcome["hint"]


def test_unknown_model_names_those_there_are(hub: Hub, tmp_path: Path) -> None:
    outcome = download(hub, tmp_path, name="ltx-2-19b")
    assert outcome["error"] == "UnknownModel"
    assert MODEL in outcome["hint"]
    assert hub.asked == []


CACHE = """
import sys
from huggingface_hub import hf_hub_download
print(hf_hub_download(sys.argv[1], sys.argv[2], revision=sys.argv[3]))
"""


def fill_cache(hub: Hub, tmp_path: Path, cache: Path) -> Path:
    """Have huggingface_hub put the checkpoint into its cache, as another program's; the file."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CACHE, LTX, CHECKPOINT, SHA],
        env=environment(hub, tmp_path, TOKEN, HF_HUB_CACHE=str(cache)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    hub.asked.clear()
    return Path(done.stdout.strip()).resolve()


def fetched(hub: Hub) -> bool:
    """Whether the hub sent the checkpoint."""
    return any(method == "GET" and path.endswith(CHECKPOINT) for method, path, _ in hub.asked)


@pytest.fixture(params=["same disk", "other disk"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A place for the hub's cache, on the disk of the models or on another."""
    if request.param == "same disk":
        yield tmp_path / "hub"
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        if os.stat(folder).st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no second file system at /dev/shm")
        yield Path(folder)


@pytest.mark.parametrize("begun", [False, True])
def test_file_in_the_hubs_cache_is_used(hub: Hub, tmp_path: Path, cache: Path, begun: bool) -> None:
    cached = fill_cache(hub, tmp_path, cache)
    if begun:
        part = tmp_path / "models" / f".downloading-{MODEL}"
        part.mkdir(parents=True)
        (part / f".{CHECKPOINT}.{cached.name[:16]}").write_bytes(FILES[LTX][CHECKPOINT][:200_000])
    outcome = download(hub, tmp_path, HF_HUB_CACHE=str(cache))
    assert not fetched(hub)
    assert held(tmp_path) == WHOLE
    folder = tmp_path / "models" / MODEL
    linked = cached.stat().st_dev == folder.stat().st_dev
    assert cached.samefile(folder / CHECKPOINT) == linked
    assert sorted(os.listdir(folder)) == sorted(
        [CHECKPOINT, UPSCALER, "SHA256SUMS", ".verified.json"]
    )
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    checked = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (checked.returncode, len(checked.stdout.splitlines())) == (0, 2)
    total = sum(len(content) for content in WHOLE.values())
    assert outcome["told"][0] == [200_000 if begun else 0, total]
    assert [300_000, total] in outcome["told"]
    assert outcome["told"][-1] == [total, total]


def test_file_in_the_hubs_cache_is_used_after_a_commit_that_left_it_alone(
    hub: Hub, tmp_path: Path
) -> None:
    """Such as one of the README. Another upload of the same size is there too."""
    cached = fill_cache(hub, tmp_path, tmp_path / "hub")
    other = cached.parents[1] / "snapshots" / ("0" * 40) / CHECKPOINT
    other.parent.mkdir()
    other.write_bytes(b"o" * 300_000)
    hub.newest = "b" * 40
    hub.older[hub.newest] = dict(FILES)
    assert "folder" in download(hub, tmp_path, HF_HUB_CACHE=str(tmp_path / "hub"))
    assert not fetched(hub)
    assert cached.samefile(tmp_path / "models" / MODEL / CHECKPOINT)


@pytest.mark.parametrize("content", [b"d" * 300_000, b"c" * 200_000], ids=["damaged", "cut short"])
def test_damaged_file_in_the_hubs_cache_is_ignored(
    hub: Hub, tmp_path: Path, cache: Path, content: bytes
) -> None:
    cached = fill_cache(hub, tmp_path, cache)
    cached.write_bytes(content)
    outcome = download(hub, tmp_path, HF_HUB_CACHE=str(cache))
    assert fetched(hub)
    assert hub.ranges == []
    assert held(tmp_path) == WHOLE
    total = sum(len(content) for content in WHOLE.values())
    assert outcome["told"][-1] == [total, total]
    assert max(done for done, _ in outcome["told"]) == total
    assert cached.read_bytes() == content


def test_hard_link_to_the_hubs_cache_needs_no_space(hub: Hub, tmp_path: Path) -> None:
    """On a small disk of its own that has space for the checkpoint once."""
    fill_cache(hub, tmp_path, tmp_path / "filled")
    disk = tmp_path / "disk"
    disk.mkdir()
    outcome = download_on_small_disk(
        hub,
        tmp_path,
        disk,
        f"cp -a {tmp_path}/filled {disk}/hub",
        disk / "models",
        size="450k",
        HF_HUB_CACHE=str(disk / "hub"),
    )
    assert outcome.get("message") is None
    assert outcome["folder"] == str(disk / "models" / MODEL)


def test_copy_from_the_hubs_cache_needs_space(hub: Hub, tmp_path: Path) -> None:
    fill_cache(hub, tmp_path, tmp_path / "filled")
    models = tmp_path / "models"
    models.mkdir()
    outcome = download_on_small_disk(
        hub, tmp_path, models, "true", models, size="128k", HF_HUB_CACHE=str(tmp_path / "filled")
    )
    assert "0.3 MB more are needed in" in outcome["message"]


def download_on_small_disk(
    hub: Hub,
    tmp_path: Path,
    disk: Path,
    prepare: str,
    models: Path,
    *more: str,
    size: str,
    **settings: str,
) -> dict[str, Any]:
    """What `download` comes to where `disk` is a tmpfs of `size`, in a namespace of its own."""
    unshare = ["unshare", "--user", "--mount", "--map-root-user"]
    if subprocess.run([*unshare, "true"], capture_output=True, timeout=30).returncode:
        pytest.skip("this machine allows no user namespaces")
    mount = f"mount -t tmpfs -o size={size} none {disk}"
    run = f'{mount} && {prepare} && exec {sys.executable} -c "$@"'
    done = subprocess.run(
        [*unshare, "sh", "-c", run, "sh", DOWNLOAD, MODEL, str(models), *more],
        env=environment(hub, tmp_path, TOKEN, **settings),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


@pytest.mark.parametrize(
    ("disk", "filled", "says"),
    [
        ("128k", (), "0.3 MB more are needed in"),
        ("1m", ("fill",), "The disk that holds"),
    ],
)
def test_full_disk_says_how_much_is_needed(
    hub: Hub, tmp_path: Path, disk: str, filled: tuple[str, ...], says: str
) -> None:
    """The disk is too small, or another program fills it meanwhile."""
    models = tmp_path / "models"
    models.mkdir()
    outcome = download_on_small_disk(hub, tmp_path, models, "true", models, *filled, size=disk)
    assert outcome["error"] == "StorageUnavailable"
    assert says in outcome["message"]
    assert "LTXQ_MODEL_DIR" in outcome["hint"]


def test_two_downloads_do_not_write_to_one_file(hub: Hub, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    with subprocess.Popen(
        ["flock", str(models / ".downloading.lock"), "sh", "-c", "echo held; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        outcome = download(hub, tmp_path)
        other.stdin.write("\n")
    assert outcome["message"] == f"Another process is downloading to {models}."
