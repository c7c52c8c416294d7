"""A short storm for CI; the long ones are `make chaos`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ltxq_worker.embedded.servers import rclone_binary, redis_binary
from servers import start_or_skip

pytestmark = pytest.mark.extended


@pytest.mark.timeout(300)
def test_no_job_is_lost_in_a_short_storm() -> None:
    start_or_skip(redis_binary)
    start_or_skip(rclone_binary)
    chaos = Path(__file__).with_name("chaos.py")
    done = subprocess.run(
        [sys.executable, str(chaos), "--seed", "7", "--jobs", "36", "--share", "0.15"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "jobs accepted: 36" in done.stdout
