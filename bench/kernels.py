"""Profiles the device's kernels while it makes a clip: `python bench/kernels.py`.

Lists the kernels of encoding a prompt, of two denoising steps and of decoding by their total time,
for ltxq's pipeline with a full-size model of random weights. Prints the longest and writes more of
them as JSON to bench/results/. Without a GPU it profiles the CPU's operations on the tiny model.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[1]
    # Import from the checkout, and replace this folder, whose modules could hide installed ones.
    sys.path[:1] = [str(ROOT), str(ROOT / "producer"), str(ROOT / "worker")]
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import argparse
import time
from typing import Any, get_args

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench import busy
from bench.harness import report, workloads
from bench.harness.phases import Phases
from bench.harness.timeline import wait_for
from bench.harness.weights import Base
from ltxq.job import Stage, VideoRequest
from ltxq_worker.pipeline import Pipeline

PROFILED_STEPS = {1: range(3, 5), 2: range(9, 11)}  # full-size steps, by the number of stages
KEPT, PRINTED = 60, 12  # kernels of each part that are written and printed


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tiny = options.tiny or device.type == "cpu"
    machine = report.machine(device)
    path = report.path_of("profile", options.model, machine, options.results, tiny=tiny)
    measured: dict[str, Any] = {"model": options.model, "tiny": tiny, "machine": machine}
    phases = Phases(options.limit)
    with phases.phase("model built"):
        pipeline = busy.build(options.model, options.arm, options.optimize, device, tiny)
    measured["workloads"] = {}
    for workload in options.workloads:
        if not phases.allows():
            print(f"{workload}: not measured, the time limit was reached")
            continue
        with phases.phase(f"{workload}: warmed up and profiled"):
            for take in (0, 1):
                _clip(pipeline, workloads.request(workload, take, tiny=tiny), _ignore)
            seen = Profiled(device).clip(pipeline, workloads.request(workload, 2, tiny=tiny))
        measured["workloads"][workload] = seen
        report.write(path, measured)
        for part, figures in seen.items():
            _print(f"{options.model}, {workload}, {part}", figures)
    print(f"written to {path}")


class Profiled:
    """Profiles one clip, one part at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: dict[str, dict[str, Any]] = {}
        self._steps = PROFILED_STEPS[1]
        self._profile: Any = None
        self._began = 0.0

    def clip(self, pipeline: Pipeline, request: VideoRequest) -> dict[str, dict[str, Any]]:
        """Make the clip; returns the figures of its parts."""
        self._steps = PROFILED_STEPS[request.stages]
        self._start()
        _clip(pipeline, request, self._report)
        self._end("decode")
        return self._parts

    def _report(self, stage: Stage, step: int, steps: int) -> None:
        if stage == "encode_text" and step == steps:
            self._end("text")
        elif stage == "denoise" and step == self._steps.start - 1:
            self._start()
        elif stage == "denoise" and step == self._steps.stop - 1:
            self._end(f"{len(self._steps)} steps")
        elif stage == "denoise" and step == steps:
            self._start()

    def _start(self) -> None:
        wait_for(self._device)
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities = [ProfilerActivity.CUDA]
        self._profile = profile(activities=activities, acc_events=True)
        self._profile.__enter__()
        self._began = time.perf_counter()

    def _end(self, part: str) -> None:
        wait_for(self._device)
        took = time.perf_counter() - self._began
        self._profile.__exit__(None, None, None)
        self._parts[part] = _figures(self._profile, took, self._device)
        self._profile = None


def _figures(seen: Any, took: float, device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    rows = []
    for event in seen.key_averages():
        if on_gpu and event.device_type != DeviceType.CUDA:
            continue
        seconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        rows.append({"kernel": event.key, "count": event.count, "ms": 1000 * seconds})
    rows.sort(key=lambda row: -row["ms"])
    total = sum(row["ms"] for row in rows)
    return {
        "seconds": took,
        "kernels (ms)": total,
        "kernels launched": sum(row["count"] for row in rows),
        "longest": rows[:KEPT],
    }


def _print(title: str, figures: dict[str, Any]) -> None:
    took, total = 1000 * figures["seconds"], figures["kernels (ms)"]
    print(f"\n{title}: {took:.1f} ms, of them {total:.1f} in {figures['kernels launched']} kernels")
    for row in figures["longest"][:PRINTED]:
        name = " ".join(row["kernel"].split())[:84]
        print(f"  {row['ms']:9.2f} ms {row['ms'] / total:6.1%} {row['count']:6} × {name}")


def _clip(pipeline: Pipeline, request: VideoRequest, report: Any) -> None:
    for _ in pipeline.generate(request, report).frames:
        pass


def _ignore(stage: Stage, step: int, steps: int) -> None:
    """A Report that drops progress."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=get_args(Base), default="ltx-2-19b")
    parser.add_argument("--arm", choices=["ltxq", "ltxq-fp8"], default="ltxq-fp8")
    parser.add_argument("--workloads", nargs="+", choices=list("abc"), default=["a", "b"])
    parser.add_argument("--optimize", default="auto", help="a value of LTXQ_OPTIMIZE")
    parser.add_argument("--limit", type=float, help="seconds, after which no other clip begins")
    parser.add_argument("--tiny", action="store_true", help="use the tiny model on a GPU too")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder to write to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
