"""README's table of how long a clip takes: targets, and what was measured, from bench/results/.

`python bench/clip.py --readme` writes it; a test holds README to it. Knows no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parents[1]
README = BENCH.parent / "README.md"
HEAD = "| on an H200, FP8, warm, median | target | LTX-2 19B | LTX-2.3 22B |"
MODELS = ("ltx-2-19b", "ltx-2.3-22b")
DEVICE = "nvidia-h200"
MISSING = "not measured yet"

TITLES = {
    "a": "768×512, 33 frames",
    "b": "512×768, 121 frames",
    "c": "1536×1024, 121 frames, two stages",
}
FIGURES = {  # and their digits
    "denoising (s)": 2,
    "prompt to MP4 on disk (s)": 2,
    "that, times the library's speed": 2,
    "memory at the most (GB)": 1,
    "claim to URL (s)": 2,
}
TARGETS = {
    "a": ("0.50", "1.1", "2.0", "60", "–"),
    "b": ("1.8", "3.1", "1.9", "60", "–"),
    "c": ("6.2", "9.3", "1.7", "76", "–"),
}


def speed_table(results: Path = BENCH / "results") -> str:
    """The table, with a row for each clip and figure."""
    queue = json.loads((results / "queue.json").read_text())
    beside = queue["clips of 768×512 with 33 frames, one by one"]
    seconds_beside = beside["claim to URL without making the clip p50 (ms)"] / 1000
    measured = {}
    for model in MODELS:
        path = results / f"clip-{model}-{DEVICE}.json"
        measured[model] = json.loads(path.read_text())["workloads"] if path.is_file() else {}
    rows = [HEAD, "|---|---|---|---|"]
    for workload, targets in TARGETS.items():
        arms = [_seen(measured[model], workload, seconds_beside) for model in MODELS]
        for (what, digits), target in zip(FIGURES.items(), targets, strict=True):
            cells = [MISSING if what not in arm else f"{arm[what]:.{digits}f}" for arm in arms]
            title = f"**{workload}, {TITLES[workload]}**: {what}" if target == targets[0] else what
            rows.append(f"| {title} | {target} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def write() -> None:
    """Put the table into README in place of the one that is there."""
    text = README.read_text()
    before, after = text.split(HEAD, 1)
    README.write_text(before + speed_table() + "\n\n" + after.split("\n\n", 1)[1])


def _seen(workloads: dict[str, Any], workload: str, seconds_beside: float) -> dict[str, float]:
    """The figures of ltxq in FP8; none where it was not measured, or failed."""
    arm = workloads.get(workload, {}).get("arms", {}).get("ltxq-fp8", {})
    if "prompt to MP4" not in arm:
        return {}
    whole = arm["prompt to MP4"]["median"]
    figures = (
        arm["stages"]["denoise"]["median"],
        whole,
        arm.get("times the library's speed"),
        arm.get("allocated GB"),
        whole + seconds_beside,
    )
    pairs = zip(FIGURES, figures, strict=True)
    return {what: figure for what, figure in pairs if figure is not None}
