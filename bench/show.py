"""Prints the figures of a results folder as short tables: `python bench/show.py [FOLDER [KIND …]]`.

Prints the figures that `bench/bare.sh` measured, of all kinds or of the named ones: tests on a GPU,
clips, the gain of each optimization, how busy a backlog keeps the GPU, the longest kernels,
attention. Imports no torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

RESULTS = Path(__file__).parent / "results"
LONGEST = 5  # kernels shown of each part
COLUMNS = {"denoise s": 10, "to MP4 s": 10, "× library": 10, "GB": 7, "error": 9, "clips": 6}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    lines = [line for kind in sys.argv[2:] or SHOWN for line in SHOWN[kind](folder)]
    print("\n".join(lines) or f"no figures of a GPU in {folder}")


def tests(folder: Path) -> Iterator[str]:
    """The outcome of tests/gpu."""
    for path in sorted(folder.glob("tests-gpu*.xml")):
        suite = ElementTree.parse(path).getroot()[0]  # noqa: S314 - written by pytest
        count = {
            name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
        }
        bad = count["failures"] + count["errors"]
        passed = count["tests"] - bad - count["skipped"]
        yield f"tests/gpu: {passed} passed, {bad} failed, {count['skipped']} skipped"
        for case in suite.iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                yield f"  failed: {case.get('name')}"


def clips(folder: Path, kind: str) -> Iterator[str]:
    """Clips of every arm and size; kind `each`: also of arms without one optimization."""
    for path in sorted(folder.glob(f"{kind}-*.json")):
        measured = json.loads(path.read_text())
        yield f"{path.stem}, {measured['machine']['device']}"
        yield f"  {'':<28}" + "".join(f"{name:>{width}}" for name, width in COLUMNS.items())
        for workload, seen in measured["workloads"].items():
            for arm, figures in seen["arms"].items():
                yield _clip(f"{workload}, {arm}", figures)


def _clip(title: str, figures: dict[str, Any]) -> str:
    if "prompt to MP4" not in figures:
        return f"  {title:<28}{figures.get('failed', 'not measured')}"
    speed, memory = figures.get("times the library's speed"), figures.get("allocated GB")
    error = figures.get("error of the picture's latent")
    cells = (
        f"{figures['stages']['denoise']['median']:.3f}",
        f"{figures['prompt to MP4']['median']:.3f}",
        _or_dash(speed, ".2f"),
        _or_dash(memory, ".1f"),
        _or_dash(error, ".2g"),
        str(figures["runs"]),
    )
    row = "".join(f"{c:>{width}}" for c, width in zip(cells, COLUMNS.values(), strict=True))
    return f"  {title:<28}{row}{'  ' + figures['failed'] if 'failed' in figures else ''}"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def backlogs(folder: Path) -> Iterator[str]:
    """The GPU's busy share, and the time until a worker is ready."""
    for path in sorted(folder.glob("busy-*.json")):
        measured = json.loads(path.read_text())
        yield f"{path.stem}, {measured['machine']['device']}"
        for how in ("in the process", "through the queue"):
            seen = measured.get(how, {})
            for workload, figures in seen.get("workloads", {}).items():
                url = figures.get("claim to URL p50 (s)")
                yield (
                    f"  {how}, {workload}: busy {figures['share busy']:.1%} of "
                    f"{figures['seconds']:.1f} s, {figures['jobs']} clips"
                    + (f", claim to URL {url:.2f} s" if url else "")
                )
            for number, start in enumerate(seen.get("starts", ()), start=1):
                parts = ", ".join(f"{what} {value:.0f}" for what, value in start.items())
                yield f"  start {number}: {parts}"


def profiles(folder: Path) -> Iterator[str]:
    """The longest kernels of each part of a clip."""
    for path in sorted(folder.glob("profile-*.json")):
        measured = json.loads(path.read_text())
        yield f"{path.stem}, {measured['machine']['device']}"
        for workload, parts in measured["workloads"].items():
            for part, seen in parts.items():
                total = seen["kernels (ms)"] or 1
                yield (
                    f"  {workload}, {part}: {1000 * seen['seconds']:.0f} ms, "
                    f"{seen['kernels launched']} kernels of {seen['kernels (ms)']:.0f} ms"
                )
                for row in seen["longest"][:LONGEST]:
                    name = " ".join(row["kernel"].split())[:60]
                    yield f"    {row['ms'] / total:6.1%} {row['count']:>6} × {name}"


def attention(folder: Path) -> Iterator[str]:
    """Milliseconds by attention kernel."""
    for path in sorted(folder.glob("attention-*.json")):
        measured = json.loads(path.read_text())
        yield f"{path.stem}, torch {measured['torch']}, cuDNN {measured['cudnn']}"
        for title, seen in measured.items():
            if isinstance(seen, dict):
                cells = (f"{kernel} {f.get('ms', 'refused')}" for kernel, f in seen.items())
                yield f"  {title} (ms): {', '.join(cells)}"


SHOWN = {
    "tests": tests,
    "clip": lambda folder: clips(folder, "clip"),
    "each": lambda folder: clips(folder, "each"),
    "busy": backlogs,
    "profile": profiles,
    "attention": attention,
}

if __name__ == "__main__":
    main()
