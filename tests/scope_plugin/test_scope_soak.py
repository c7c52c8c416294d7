"""The plugin with `ltxq up` (gateway, Redis, S3 server, worker).

A short run of `bench/scope.py`, and playback over Redis without boto3, which Scope does not have.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ltxq.scope_plugin.pipeline import Ltx2QueuePipeline
from ltxq_worker.embedded.servers import rclone_binary, redis_binary
from scope_world import FOX, eventually, plugin_threads
from servers import start_or_skip

BENCH = Path(__file__).parents[2] / "bench" / "scope.py"

pytestmark = [
    pytest.mark.extended,
    pytest.mark.skipif(
        "SCOPE_CHECKOUT" in os.environ, reason="Scope's PyAV is too old for a worker"
    ),
]


@contextmanager
def ltxq_up(folder: Path) -> Iterator[dict[str, str]]:
    """`ltxq up` with the instant pipeline; yields the variables of its environment file."""
    ports = [f"--{name}-port=0" for name in ("redis", "s3", "http", "flower")]
    command = [sys.executable, "-m", "ltxq", "up", "--model=instant", f"--data={folder / 'data'}"]
    with (
        Path(folder, "log").open("w") as log,
        subprocess.Popen(
            [*command, *ports, "--json"], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            about = json.loads(process.stdout.readline())
            lines = Path(about["environment_file"]).read_text().splitlines()
            yield dict(shlex.split(line)[1].split("=", 1) for line in lines if "export" in line)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def test_playback_survives_a_prompt_change_and_a_killed_worker(tmp_path: Path) -> None:
    start_or_skip(redis_binary)
    start_or_skip(rclone_binary)
    out = tmp_path / "figures.json"
    size = ("--width", "128", "--height", "128", "--num-frames", "25")
    done = subprocess.run(
        [sys.executable, str(BENCH), "--seconds", "10", "--gateway", "--out", str(out), *size],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, Any] = json.loads(out.read_text())["figures"]
    assert figures["frames lost or shown twice"] == 0
    assert figures["time stamps that went back"] == 0
    assert figures["clips begun"] >= 5


def test_it_plays_from_redis_without_boto3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment file sets a bucket, but Scope's Python has no boto3."""
    start_or_skip(redis_binary)
    start_or_skip(rclone_binary)
    with ltxq_up(tmp_path) as environment:
        assert environment["LTXQ_URL"].startswith("redis://")
        assert environment["LTXQ_S3_BUCKET"]
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for module in ("boto3", "boto3.session"):
            monkeypatch.setitem(sys.modules, module, None)
        assert first_error() is None
        eventually(lambda: not plugin_threads())


def first_error() -> str | None:
    """The first error of a new pipeline; None: it plays without one."""
    pipeline = Ltx2QueuePipeline(width=64, height=64, num_frames=9)
    eventually(lambda: pipeline(prompts=FOX, init_cache=True) or pipeline.last_error)
    return pipeline.last_error
