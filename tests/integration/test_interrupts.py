"""Commands that a signal stops: nothing is left behind, and the exit code names the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fleet import PATIENCE, eventually
from ltxq import Client
from ltxq.stopping import StopRequests
from ltxq_worker.embedded.servers import rclone_binary, redis_binary
from servers import start_or_skip
from variants import variants

LTXQ = (sys.executable, "-m", "ltxq")
LONG = {"LTXQ_INSTANT_SECONDS": "60"}
ALL = variants(signal.SIGTERM, signal.SIGHUP, extended=(signal.SIGINT,))


@contextmanager
def running(*command: str, **more: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A command, and the lines of its standard error so far."""
    said: list[str] = []
    with subprocess.Popen(
        command,
        env={**os.environ, **more},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
        reader.start()
        try:
            yield process, said
        finally:
            if process.poll() is None:
                process.kill()
            reader.join(PATIENCE)


@pytest.mark.parametrize("number", ALL)
def test_generate_leaves_no_file(tmp_path: Path, number: signal.Signals) -> None:
    files = ("-o", str(tmp_path / "fox.mp4"), "--frames-out", str(tmp_path / "fox.npy"))
    size = ("--width", "64", "--height", "64", "--num-frames", "9")
    command = (*LTXQ, "generate", "a fox", "--model", "instant", *files, *size)
    with running(*command, **LONG) as (process, said):
        eventually(lambda: "denoising …\n" in said)
        assert list(tmp_path.iterdir())
        for _ in range(2):  # as `timeout` and a closed terminal do
            process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number
    assert list(tmp_path.iterdir()) == []
    assert f"Interrupted by {number.name}" in said[-1]
    assert "Traceback" not in "".join(said)


@pytest.mark.extended
def test_demo_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    start_or_skip(redis_binary)
    start_or_skip(rclone_binary)
    folders = {"TMPDIR": str(tmp_path), "LTXQ_MODEL_DIR": str(tmp_path / "models")}
    with running(*LTXQ, "demo", **folders) as (process, said):
        eventually(lambda: "starting the worker …\n" in said)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.terminate()
        assert process.wait(PATIENCE) == 143
    assert not [child for child in children if child.is_running()]
    assert not list(tmp_path.glob("ltxq-demo-*"))


def test_a_command_that_waits_says_how_to_go_on(redis_url: str) -> None:
    with running(*LTXQ, "submit", "a fox", "--wait", LTXQ_URL=redis_url) as (process, said):
        eventually(lambda: any("queued" in line for line in said))
        process.terminate()
        assert process.wait(PATIENCE) == 143
    with Client(redis_url) as client:
        (job,) = client.list().jobs
    assert f"ltxq watch {job.id}" in "".join(said)


def test_batch_says_how_to_go_on(redis_url: str) -> None:
    rows, ours = os.pipe()
    with (
        open(rows) as stdin,
        subprocess.Popen(
            [*LTXQ, "batch", "-"], env={**os.environ, "LTXQ_URL": redis_url}, stdin=stdin,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process,
    ):  # fmt: skip
        os.write(ours, b'{"prompt": "a fox"}\n')
        with Client(redis_url) as client:
            eventually(lambda: client.list().jobs)
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
        os.close(ours)
    assert process.returncode == 143
    assert out.startswith("video_")
    assert "--idempotency-key batch-" in err


def test_a_background_command_of_a_script_ignores_ctrl_c(tmp_path: Path) -> None:
    words = ("generate", "a fox", "--model", "instant", "-o", str(tmp_path / "fox.mp4"))
    ignoring = ("sh", "-c", 'trap "" INT; exec "$@"', "sh", *LTXQ, *words)
    with running(*ignoring, LTXQ_INSTANT_SECONDS="1") as (process, said):
        eventually(lambda: "denoising …\n" in said)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_nohup_keeps_a_command_running(tmp_path: Path) -> None:
    size = ("--width", "64", "--height", "64", "--num-frames", "9")
    command = (*LTXQ, "generate", "a fox", "--model", "instant", "-o", str(tmp_path / "fox.mp4"))
    more = {"LTXQ_INSTANT_SECONDS": "1"}
    with running("nohup", *command, *size, **more) as (process, said):
        eventually(lambda: "denoising …\n" in said)
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["fox.mp4"]


def test_signals_at_once_are_one_request_and_later_ones_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("ltxq.stopping.time.monotonic", lambda: now)
    requests = StopRequests()
    assert (requests.begun, requests.count) == (0, 0)
    assert requests.note(signal.SIGTERM)
    assert not requests.note(signal.SIGTERM)
    assert (requests.begun, requests.count) == (1, 0)  # another signal may belong to it
    now += 1
    assert (requests.begun, requests.count) == (1, 1)
    assert not requests.note(signal.SIGHUP)  # a terminal closes once
    assert requests.note(signal.SIGINT)
    now += 1
    assert requests.count == 2
