"""The tables of the documents are made from results, and written where the document marks them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.harness import tables

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import generate  # docs/generate.py


def cells(table: str) -> dict[str, list[str]]:
    """The rows of a table by their first cell, of which the first of several counts."""
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    return {row[0]: row[1:] for row in reversed(rows)}


def clip(denoise: float, whole: float, **others: Any) -> dict[str, Any]:
    spread = {"denoise": {"median": denoise, "p90": 9.0}}
    return {
        "stages": spread,
        "prompt to MP4": {"median": whole},
        "measured": "2026-12-24",
        **others,
    }


def test_results_of_each_card_fill_a_column_of_their_own(tmp_path: Path) -> None:
    fp8 = clip(0.4567, 1.0, **{"times the library's speed": 2.345, "allocated GB": 58.76})
    arms = {"ltxq-fp8": fp8, "ltxq": clip(0.8, 1.5, **{"error of the picture's latent": 0.00123})}
    arms["library"] = clip(1.0, 2.3, **{"the library's own difference": 0.00045})
    failed = {"ltxq-fp8": {"failed": "out of memory"}}
    measured = {"workloads": {"a": {"arms": arms}, "c": {"arms": failed}}}
    (tmp_path / "clip-ltx-2-19b-nvidia-h100-80gb-hbm3.json").write_text(json.dumps(measured))
    queued = {"workloads": {"a": {"share busy": 0.9812, "claim to URL p50 (s)": 1.255}}}
    queued["starts"] = [{"ready (s)": 200.0}, {"ready (s)": 61.4}]
    busy = {"through the queue": queued}
    (tmp_path / "busy-ltx-2.3-22b-nvidia-h200.json").write_text(json.dumps(busy))
    seen = cells(tables.speed_table(tmp_path))
    assert seen["**a, 768×512, 33 frames**, measured on"] == ["", "2026-12-24", "–", "–", "–"]
    assert seen["denoising (s)"] == ["0.50", "0.46", "–", "–", "–"]
    assert seen["prompt to MP4 on disk (s)"] == ["1.1", "1.00", "–", "–", "–"]
    assert seen["that, times the library's speed"][1] == "2.35"
    assert seen["memory at the most (GB)"][1] == "58.8"
    assert seen["last latent in bf16, from the library's"] == ["", "0.0012", "–", "–", "–"]
    assert seen["the library's, from one run to the next"][1] == "0.00045"
    assert seen["GPU busy with a backlog (%)"] == ["97", "–", "–", "–", "98.1"]
    assert seen["claim to URL in a backlog (s)"][4] == "1.25"
    assert seen["**a worker's second start, ready after (s)**"] == ["90", "–", "–", "–", "61"]
    assert "2026" not in tables.speed_table(tmp_path).partition("**c, ")[2]  # which failed


def test_what_a_clip_takes_without_each_optimization_fills_its_table(tmp_path: Path) -> None:
    arms = {"ltxq-fp8": clip(0.5, 1.0), "ltxq-fp8 −graphs": clip(0.6, 1.25)}
    arms["ltxq-fp8 −hoist"] = {"failed": "out of memory"}
    measured = {"workloads": {"b": {"arms": arms}}}
    (tmp_path / "each-ltx-2-19b-nvidia-h200.json").write_text(json.dumps(measured))
    seen = cells(tables.gains_table(tmp_path))
    assert seen.pop("`graphs`") == ["–", "–", "–", "+0.25 s (+25 %)"]
    assert len(seen) == 6
    assert all(row == ["–"] * 4 for row in seen.values())


def test_a_marked_table_is_made_anew_and_all_else_stays() -> None:
    before = "One.\n\n<!-- table: a -->\n| old |\n<!-- end -->\n\nTwo.\n"
    after = generate.filled(before, {"a": lambda: "| new |"})
    assert after == "One.\n\n<!-- table: a -->\n\n| new |\n\n<!-- end -->\n\nTwo.\n"
    assert generate.filled(after, {"a": lambda: "| new |"}) == after
