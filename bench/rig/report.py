"""What was measured as JSON, and as tables for a terminal and for README."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bench.rig.measure import Tally

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "transformers", "ltx-core", "ltx-pipelines", "av", "numpy")


def machine(device: torch.device) -> dict[str, Any]:
    """Where and with what it was measured."""
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
    """NVIDIA's, as the kernel says it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        seen = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return seen.stdout.split("\n")[0].strip()


def figures(tally: Tally) -> dict[str, Any]:
    """Of one arm on one workload: seconds, each as median and 90th percentile."""
    if tally.failed:
        return {"failed": tally.failed}
    stages: dict[str, list[float]] = {}
    steps: list[float] = []
    denoise: list[float] = []
    for run in tally.runs:
        of_run: dict[str, float] = {}
        for name, seconds in run.spans.items():
            stage = "denoise" if name.startswith("step ") else name
            of_run[stage] = of_run.get(stage, 0.0) + seconds
            if stage == "denoise":
                steps.append(seconds)
        denoise.append(of_run["denoise"])
        for stage, seconds in of_run.items():
            stages.setdefault(stage, []).append(seconds)
    stages["encode"] = [run.encode for run in tally.runs]
    return {
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
        **({"allocated GB": tally.allocated / 1e9} if tally.allocated else {}),
        **({"reserved GB": tally.reserved / 1e9} if tally.reserved else {}),
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    if len(seconds) == 1:
        return {"median": seconds[0], "p90": seconds[0]}
    return {
        "median": statistics.median(seconds),
        "p90": statistics.quantiles(seconds, n=10, method="inclusive")[-1],
    }


STAGES = ("text", "connectors", "denoise", "upsample", "audio", "decode", "copy", "encode")


def print_workload(title: str, measured: dict[str, Any]) -> None:
    """A table with a column for each arm."""
    arms = {name: seen for name, seen in measured["arms"].items() if "failed" not in seen}
    print(f"\n{title}")
    for name, seen in measured["arms"].items():
        if "failed" in seen:
            print(f"  {name}: {seen['failed']}")
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
        for name in (
            "times the library's speed",
            "denoising, TFLOP/s",
            "denoising, times its floor",
            "allocated GB",
            "reserved GB",
            "error of the picture's latent",
            "error of the sound's latent",
        )
        if any(name in seen for seen in arms.values())
    ]
    width = max(12, *(len(name) + 2 for name in arms))
    for name, cells in rows:
        print(f"  {name:<30}" + "".join(f"{cell:>{width}}" for cell in cells))


def _ms(spread: dict[str, float] | None) -> str:
    return "–" if spread is None else f"{1000 * spread['median']:,.1f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def write(measured: dict[str, Any], folder: Path) -> None:
    """As JSON: one file for each model and device."""
    device = re.sub(r"[^a-z0-9]+", "-", measured["machine"]["device"].lower()).strip("-")
    kind = "-tiny" if measured["tiny"] else ""
    path = folder / f"clip-{measured['model']}{kind}-{device}.json"
    path.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {path}")


def read_all(folder: Path = RESULTS) -> Iterable[dict[str, Any]]:
    """All results of whole models."""
    for path in sorted(folder.glob("clip-*.json")):
        yield json.loads(path.read_text())
