"""Writes the measurements as JSON, and prints them as tables."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from bench.harness.measure import Tally

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "transformers", "ltx-core", "ltx-pipelines", "av", "numpy")


def machine(device: torch.device) -> dict[str, Any]:
    """The machine and the versions of the measurement."""
    about: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "device": "cpu",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    if device.type == "cuda":
        about["device"] = torch.cuda.get_device_name(device)
        about["memory GB"] = torch.cuda.get_device_properties(device).total_memory / 1e9
        about["driver"] = _driver()
        about["cuda"] = torch.version.cuda
    return about


def _driver() -> str:
    """The version of NVIDIA's driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        seen = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return seen.stdout.split("\n")[0].strip()


def figures(tally: Tally) -> dict[str, Any]:
    """The figures of one arm on one workload, for JSON: durations in seconds, each as median and
    90th percentile. For an arm that failed: its error, and the figures of the clips made before.
    Empty if the arm has not run.
    """
    failed = {"failed": tally.failed} if tally.failed else {}
    if not tally.runs:
        return failed
    stages, steps = _stages(tally)
    return {
        **failed,
        "measured": time.strftime("%Y-%m-%d"),
        "on": tally.optimizations,
        "first clip (s)": tally.first,
        "stages": {name: _spread(seconds) for name, seconds in stages.items()},
        "a step": _spread(steps),
        "steps": {
            name: statistics.median(run.spans[name] for run in tally.runs)
            for name in tally.runs[0].spans
            if name.startswith("step ")
        },
        "prompt to MP4": _spread([run.seconds for run in tally.runs]),
        "runs": len(tally.runs),
        "MP4 bytes": statistics.median(run.mp4_bytes for run in tally.runs),
        "decoded in pieces": tally.runs[-1].pieces,
        **({"allocated GB": tally.allocated / 1e9} if tally.allocated else {}),
        **({"reserved GB": tally.reserved / 1e9} if tally.reserved else {}),
    }


def _stages(tally: Tally) -> tuple[dict[str, list[float]], list[float]]:
    """The runs' seconds by stage, and those of all their steps."""
    stages: dict[str, list[float]] = {}
    steps: list[float] = []
    for run in tally.runs:
        of_run: dict[str, float] = {}
        for name, seconds in run.spans.items():
            stage = "denoise" if name.startswith("step ") else name
            of_run[stage] = of_run.get(stage, 0.0) + seconds
            if stage == "denoise":
                steps.append(seconds)
        for stage, seconds in of_run.items():
            stages.setdefault(stage, []).append(seconds)
    stages["encode"] = [run.encode for run in tally.runs]
    return stages, steps


def _spread(seconds: list[float]) -> dict[str, float]:
    if len(seconds) == 1:
        return {"median": seconds[0], "p90": seconds[0]}
    return {
        "median": statistics.median(seconds),
        "p90": statistics.quantiles(seconds, n=10, method="inclusive")[-1],
    }


STAGES = ("text", "connectors", "denoise", "upsample", "audio", "decode", "copy", "encode")
SHOWN = (
    "times the library's speed",
    "denoising, TFLOP/s",
    "denoising, times its floor",
    "allocated GB",
    "first clip (s)",
    "decoded in pieces",
    "error of the picture's latent",
    "error of the sound's latent",
    "the library's own difference",
)


def print_workload(title: str, measured: dict[str, Any]) -> None:
    """A table with a column for each arm."""
    arms = {name: seen for name, seen in measured["arms"].items() if "prompt to MP4" in seen}
    print(f"\n{title}")
    for name, seen in measured["arms"].items():
        if "failed" in seen or not seen:
            print(f"  {name}: {seen.get('failed', 'not measured, the time limit was reached')}")
    if not arms:
        return
    rows: list[tuple[str, list[str]]] = [("", list(arms))]
    for stage in STAGES:
        if any(stage in seen["stages"] for seen in arms.values()):
            rows.append(
                (f"{stage} (ms)", [_ms(seen["stages"].get(stage)) for seen in arms.values()])
            )
        if stage == "denoise":
            rows.append(("  a step (ms)", [_ms(seen["a step"]) for seen in arms.values()]))
    rows += [
        ("prompt to MP4 (ms)", [_ms(seen["prompt to MP4"]) for seen in arms.values()]),
        ("  p90", [f"{1000 * seen['prompt to MP4']['p90']:,.1f}" for seen in arms.values()]),
    ]
    rows += [
        (name, [_number(seen.get(name)) for seen in arms.values()])
        for name in SHOWN
        if any(name in seen for seen in arms.values())
    ]
    width = max(12, *(len(name) + 2 for name in arms))
    for name, cells in rows:
        print(f"  {name:<30}" + "".join(f"{cell:>{width}}" for cell in cells))


def _ms(spread: dict[str, float] | None) -> str:
    return "–" if spread is None else f"{1000 * spread['median']:,.1f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def path_of(what: str, model: str, machine: dict[str, Any], folder: Path, *, tiny: bool) -> Path:
    """The results file for a kind of measurement, a model and a kind of device."""
    device = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
    return folder / f"{what}-{model}{'-tiny' if tiny else ''}-{device}.json"


def write(path: Path, measured: dict[str, Any]) -> None:
    """Write JSON, completely or not at all, since a run may be killed at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
    unfinished.replace(path)


def merged(before: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """`before`, with the figures of the measured arms and workloads replaced by `measured`."""
    workloads = dict(before.get("workloads", {}))
    for name, seen in measured["workloads"].items():
        if arms := {arm: figures for arm, figures in seen["arms"].items() if figures}:
            kept = workloads.get(name, {}).get("arms", {})
            workloads[name] = seen | {"arms": kept | arms}
    return before | measured | {"workloads": workloads}
