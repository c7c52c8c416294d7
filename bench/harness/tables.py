"""Makes the GPU tables of docs/benchmarks.md and docs/gpu.md: targets, and results from
bench/results/.

`docs/generate.py` writes them into the documents. Imports no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parents[1]
MODELS = {"ltx-2-19b": "LTX-2 19B", "ltx-2.3-22b": "LTX-2.3 22B"}
CARDS = ("H100", "H200")
COLUMNS = [(model, card) for model in MODELS for card in CARDS]
MISSING = "–"
SPEED = "times the library's speed"

SPEED_HEAD = "| FP8, warm, median | target | " + " | ".join(
    f"{MODELS[model]}, {card}" for model, card in COLUMNS
)
GAINS_HEAD = "| without | " + " | ".join(f"{w}, {card}" for card in CARDS for w in "ab")

TITLES = {
    "a": "768×512, 33 frames",
    "b": "512×768, 121 frames",
    "c": "1536×1024, 121 frames, two stages",
}
TARGETS = {  # of a, b and c
    "denoising (s)": ("0.50", "1.8", "6.2"),
    "prompt to MP4 on disk (s)": ("1.1", "3.1", "9.3"),
    "that, times the library's speed": ("2.0", "2.0", "2.0"),
    "memory at the most (GB)": ("60", "60", "76"),
    "last latent in bf16, from the library's": ("", "", ""),
    "the library's, from one run to the next": ("", "", ""),
    "GPU busy with a backlog (%)": ("97", "97", ""),
    "claim to URL in a backlog (s)": ("", "", ""),
}
SECOND_START = "a worker's second start, ready after (s)", "90"
OPTIMIZATIONS = ("hoist", "attention", "compile", "graphs", "decode", "text", "frames")


def speed_table(results: Path = BENCH / "results") -> str:
    """Clip times: a row for each clip and figure, a column for each model and card."""
    seen = [_figures(results, model, card) for model, card in COLUMNS]
    rows = [SPEED_HEAD + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    for number, (workload, title) in enumerate(TITLES.items()):
        dates = [column.get((workload, "date"), MISSING) for column in seen]
        rows.append(_row(f"**{workload}, {title}**, measured on", "", dates))
        for what, targets in TARGETS.items():
            cells = [column.get((workload, what), MISSING) for column in seen]
            if targets[number] or set(cells) != {MISSING}:
                rows.append(_row(what, targets[number], cells))
    what, target = SECOND_START
    rows.append(_row(f"**{what}**", target, [column.get(("", what), MISSING) for column in seen]))
    return "\n".join(rows)


def gains_table(results: Path = BENCH / "results") -> str:
    """The extra time of a clip, prompt to MP4, without each optimization: LTX-2 19B."""
    rows = [GAINS_HEAD + " |", "|---" * (1 + 2 * len(CARDS)) + "|"]
    clips = {card: _read(results, "each", "ltx-2-19b", card).get("workloads", {}) for card in CARDS}
    for name in OPTIMIZATIONS:
        cells = [_longer(clips[card].get(w, {}), name) for card in CARDS for w in "ab"]
        rows.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _row(what: str, target: str, cells: list[str]) -> str:
    return f"| {what} | {target} | " + " | ".join(cells) + " |"


def _read(results: Path, kind: str, model: str, card: str) -> dict[str, Any]:
    """The measurements of a model on a card, any variant of that card; empty: none."""
    paths = sorted(results.glob(f"{kind}-{model}-nvidia-{card.lower()}*.json"))
    return json.loads(paths[-1].read_text()) if paths else {}


def _figures(results: Path, model: str, card: str) -> dict[tuple[str, str], str]:
    """A column: texts by workload and figure. Figures that were not measured are left out."""
    busy = _read(results, "busy", model, card).get("through the queue", {})
    found: dict[tuple[str, str], str] = {}
    for workload, measured in _read(results, "clip", model, card).get("workloads", {}).items():
        arms = measured["arms"]
        figures = _of_arms(arms.get("ltxq-fp8", {}), arms.get("ltxq", {}), arms.get("library", {}))
        found |= {(workload, what): text for what, text in figures.items()}
    for workload, measured in busy.get("workloads", {}).items():
        share, seconds = measured["share busy"], measured["claim to URL p50 (s)"]
        found[workload, "GPU busy with a backlog (%)"] = f"{100 * share:.1f}"
        found[workload, "claim to URL in a backlog (s)"] = f"{seconds:.2f}"
    if len(starts := busy.get("starts", ())) == 2:
        found["", SECOND_START[0]] = f"{starts[1]['ready (s)']:.0f}"
    return found


def _of_arms(fp8: dict[str, Any], bf16: dict[str, Any], library: dict[str, Any]) -> dict[str, str]:
    figures: dict[str, float | None] = {
        "last latent in bf16, from the library's": bf16.get("error of the picture's latent"),
        "the library's, from one run to the next": library.get("the library's own difference"),
    }
    found = {what: f"{value:.2g}" for what, value in figures.items() if value is not None}
    if "prompt to MP4" not in fp8:
        return found
    found["date"] = fp8["measured"]
    found["denoising (s)"] = f"{fp8['stages']['denoise']['median']:.2f}"
    found["prompt to MP4 on disk (s)"] = f"{fp8['prompt to MP4']['median']:.2f}"
    if SPEED in fp8:
        found["that, times the library's speed"] = f"{fp8[SPEED]:.2f}"
    if "allocated GB" in fp8:
        found["memory at the most (GB)"] = f"{fp8['allocated GB']:.1f}"
    return found


def _longer(measured: dict[str, Any], name: str) -> str:
    arms = measured.get("arms", {})
    whole, without = (arms.get(arm, {}) for arm in ("ltxq-fp8", f"ltxq-fp8 −{name}"))
    if "prompt to MP4" not in whole or "prompt to MP4" not in without:
        return MISSING
    before, after = (arm["prompt to MP4"]["median"] for arm in (whole, without))
    return f"{after - before:+.2f} s ({100 * (after / before - 1):+.0f} %)"


TABLES = {"clip": speed_table, "gains": gains_table}
