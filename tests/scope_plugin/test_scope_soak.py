"""A short watch of `bench/scope.py`: the plugin over `ltxq up`, with its gateway, its Redis, its S3
server and its worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ltxq_worker.local import rclone_binary, redis_binary
from servers import start_or_skip

BENCH = Path(__file__).parents[2] / "bench" / "scope.py"


@pytest.mark.skipif("SCOPE_CHECKOUT" in os.environ, reason="Scope's PyAV is too old for a worker")
def test_playback_lives_through_a_prompt_change_and_a_killed_worker(tmp_path: Path) -> None:
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
