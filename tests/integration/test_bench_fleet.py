"""bench/fleet.py runs, and every job it claims it finishes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.extended

BENCH = Path(__file__).parents[2] / "bench" / "fleet.py"


def test_a_small_fleet_is_simulated(tmp_path: Path) -> None:
    out = tmp_path / "fleet.json"
    size = "--workers 8 --jobs 3000 --names 300 --seconds 3 --job-seconds 0.5"
    done = subprocess.run(
        [sys.executable, str(BENCH), *size.split(), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert figures["a deep queue"]["jobs queued"] == 3000
    paced = next(rows for title, rows in figures.items() if title.startswith("8 workers"))
    assert 0 < paced["jobs per second"] <= 16
    assert figures["as fast as it goes"]["jobs per second"] > 0
    assert figures["every lease ends at once"]["jobs given back in one sweep"] >= 8
    assert figures["made-up models"]["models taken"] == 255
