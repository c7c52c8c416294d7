"""What a command is to write or to listen on is tried before its work; a prompt may be piped in."""

from __future__ import annotations

import errno
import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet import PATIENCE, worker_environment
from ltxq import Client
from ltxq.cli.outputs import unfinished
from ltxq_worker.embedded.servers import S3Server, free_port, rclone_binary, redis_binary
from servers import start_or_skip
from variants import variants

LTXQ = (sys.executable, "-m", "ltxq")
SIZE = ("--width", "64", "--height", "64", "--num-frames", "9")
GENERATE = ("generate", "a fox", "--model", "instant", *SIZE)
UNSHARE = ("unshare", "--user", "--mount", "--map-root-user", "sh", "-c")
READ_ONLY = (*UNSHARE, 'mount -o bind "$0" "$0" && mount -o bind,remount,ro "$0" && exec "$@"')
FULL = (*UNSHARE, 'mount -t tmpfs -o size=64k none "$0" && cd "$0" && exec "$@"')


def ran(*words: str, inside: tuple[str, ...] = (), **more: Any) -> subprocess.CompletedProcess[str]:
    more = {"stdin": subprocess.DEVNULL, "text": True, **more}
    return subprocess.run([*inside, *LTXQ, *words], capture_output=True, timeout=PATIENCE, **more)


def refused(done: subprocess.CompletedProcess[str], *says: str) -> None:
    """Before any work, and in words."""
    assert done.returncode == 2, done.stderr
    for part in says:
        assert part in done.stderr
    for begun in ("Traceback", "loading the model", "Making the tiny model", "starting the worker"):
        assert begun not in done.stderr


@pytest.fixture
def _namespaces() -> None:
    if subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=30).returncode:
        pytest.skip("this system allows no user namespaces")


@pytest.mark.parametrize("option", ["-o", "--frames-out"])
@pytest.mark.parametrize(
    ("name", "says"),
    variants(
        (".", "is a folder"),
        ("missing/fox.mp4", "it is missing"),
        ("a" * 256, "shorter name"),
        ("dangling", "it is missing"),
        extended=(
            ("/dev/null", "is a device"),
            ("file/fox.mp4", "Not a directory"),
            ("link", "is a folder"),
            ("/proc/fox.mp4", "cannot be written"),
        ),
    ),
)
def test_generate_refuses_a_file_that_it_could_not_write(
    tmp_path: Path, option: str, name: str, says: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "missing" / "fox.mp4")
    other = ("--frames-out", "fox.npy") if option == "-o" else ("-o", "fox.mp4")
    done = ran(*GENERATE, option, name, *other, cwd=tmp_path)
    refused(done, says)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link", "dangling"}


@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize("inside", [READ_ONLY, FULL], ids=["read-only", "full"])
def test_generate_and_demo_refuse_a_disk_that_takes_nothing(
    tmp_path: Path, inside: tuple[str, ...]
) -> None:
    says = "Read-only file system" if inside == READ_ONLY else "MB free"
    where = (*inside, str(tmp_path))
    for words in ((*GENERATE, "-o", "fox.mp4"), ("demo",), ("up",), ("model", "tiny", "new")):
        refused(ran(*words, inside=where, cwd=tmp_path), says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_namespaces")
def test_a_disk_without_room_for_the_tiny_model_is_named(tmp_path: Path) -> None:
    inside = (*UNSHARE, FULL[-1].replace("64k", "4m"), str(tmp_path))
    refused(ran("model", "tiny", "new", inside=inside), "MB free; 20.0 MB are needed")


@pytest.mark.extended
@pytest.mark.usefixtures("_namespaces")
def test_a_disk_that_fills_while_a_clip_is_made_is_named_as_the_commands_own(
    tmp_path: Path,
) -> None:
    mount = 'mount -t tmpfs -o size=1100k none "$0" && cd "$0" && exec "$@"'
    large = ("--width", "1536", "--height", "1024", "--num-frames", "241")
    done = ran(
        "generate",
        "a fox",
        "--model",
        "instant",
        *large,
        "-o",
        "fox.mp4",
        inside=(*UNSHARE, mount, str(tmp_path)),
    )
    assert done.returncode == 4, done.stderr
    assert "name a file on another disk with -o" in done.stderr
    assert "LTXQ_SPOOL_DIR" not in done.stderr


def test_a_clip_and_its_frames_have_two_names(tmp_path: Path) -> None:
    done = ran(*GENERATE, "-o", "fox", "--frames-out", "./fox", cwd=tmp_path)
    refused(done, "named twice")


def test_generate_replaces_a_file_and_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    for name in ("fox.mp4", "fox.npy"):
        (tmp_path / name).write_text("before")
    left = tmp_path / ".ltxq-killed"
    left.mkdir()
    (left / ".lock").touch()
    with unfinished(tmp_path) as in_use:
        assert not left.exists()
        done = ran(*GENERATE, "-o", "fox.mp4", "--frames-out", "fox.npy", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert in_use.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox.mp4", "fox.npy"]
    assert (tmp_path / "fox.mp4").read_bytes()[4:8] == b"ftyp"
    assert np.load(tmp_path / "fox.npy").shape == (9, 64, 64, 3)


def test_what_a_link_names_is_written_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to("clips/fox.mp4")
    done = ran(*GENERATE, "-o", "first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "clips" / "fox.mp4").read_bytes()[4:8] == b"ftyp"
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "second").is_symlink()
    done = ran(*GENERATE, "-o", "first", "--frames-out", "second", cwd=tmp_path)
    refused(done, "is named twice")


def test_demo_refuses_a_file_in_place_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "clips").write_text("mine")
    refused(ran("demo", cwd=tmp_path), "clips cannot be written", "it is not a folder")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("name", variants("http", extended=("redis", "s3", "flower")))
def test_up_refuses_a_port_that_is_taken_before_it_starts_anything(
    tmp_path: Path, taken: int, name: str
) -> None:
    start_or_skip(redis_binary)
    start_or_skip(rclone_binary)
    data = tmp_path / "data"
    done = ran("up", "--data", str(data), f"--{name}-port", str(taken))
    refused(done, f"Port {taken}, for --{name}-port, is used by another program")
    assert {path.name for path in data.iterdir()} <= {".lock"}


def test_up_refuses_one_port_for_two_servers(tmp_path: Path) -> None:
    port = str(free_port())
    done = ran("up", "--data", str(tmp_path / "data"), "--http-port", port, "--flower-port", port)
    refused(done, f"Port {port}, for --flower-port, is used by --http-port")


def test_up_serves_metrics_of_its_worker_alone(tmp_path: Path) -> None:
    """Its gateway would ask for the same port."""
    start_or_skip(redis_binary)
    start_or_skip(rclone_binary)
    ports = [f"--{name}-port=0" for name in ("redis", "s3", "http", "flower")]
    command = [*LTXQ, "up", "--data", str(tmp_path / "data"), "--model", "instant", "--json"]
    environment = {**os.environ, "LTXQ_METRICS_ADDRESS": f"127.0.0.1:{free_port()}"}
    with subprocess.Popen(
        [*command, *ports], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert "url" in json.loads(process.stdout.readline())
            assert any("is ready" in line for line in process.stderr)  # or it ends before
        finally:
            process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err


def test_a_worker_refuses_a_metrics_port_that_is_taken_before_it_loads(
    redis_url: str, s3_server: S3Server, tmp_path: Path, taken: int
) -> None:
    environment = worker_environment(redis_url, s3_server, tmp_path / "spool")
    more = {"LTXQ_METRICS_ADDRESS": f"127.0.0.1:{taken}"}
    done = ran("worker", "--model", "instant", "--gpus", "cpu",
               env={**os.environ, **environment, **more})  # fmt: skip
    refused(done, "LTXQ_METRICS_ADDRESS", os.strerror(errno.EADDRINUSE))
    assert "starts" not in done.stderr


def test_a_prompt_is_read_from_standard_input(redis_url: str, tmp_path: Path) -> None:
    environment = {**os.environ, "LTXQ_URL": redis_url}
    done = ran("submit", "-", "--json", stdin=None, input="\ufeffa 🦊\nin snow\n", env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["request"]["prompt"] == "a 🦊\nin snow"
    words = ("generate", "-", "--model", "instant", *SIZE, "-o", str(tmp_path / "fox.mp4"))
    assert ran(*words, stdin=None, input="a fox").returncode == 0
    with Client(redis_url) as client:
        assert len(client.list().jobs) == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"", "standard input is empty"),
        (b" \n", "standard input is empty"),
        (b"a \xff fox", "not UTF-8, from byte 3 on"),
        (b"a" * 100_000, "more than 65536 bytes"),
    ],
)
@pytest.mark.parametrize("command", variants("submit", extended=("demo", "generate")))
def test_standard_input_that_holds_no_prompt_is_refused(
    tmp_path: Path, command: str, given: bytes, says: str
) -> None:
    more = ("--model", "instant", "-o", "x.mp4") if command == "generate" else ()
    done = ran(command, "-", *more, stdin=None, input=given, text=False, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr.decode()  # type: ignore[attr-defined]


def test_at_a_terminal_a_command_says_what_it_waits_for(redis_url: str) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*LTXQ, "submit", "-"], env={**os.environ, "LTXQ_URL": redis_url}, stdin=theirs,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        assert process.stderr is not None
        assert "Ctrl-D" in process.stderr.readline()
        os.write(ours, b"a fox\n\x04")
        out, err = process.communicate(timeout=PATIENCE)
        os.close(ours)
    assert process.returncode == 0, err
    assert out.startswith("video_")
