"""Measures how busy a backlog keeps the GPU: `python bench/busy.py`.

`--parts process` makes clips in this process as a worker does: one thread drives the GPU, and a
clip is still being encoded while the next one begins. Between two jobs it waits as long as
`bench/queue_overhead.py` measured.
`--parts queue` starts a real worker process, which takes jobs from a real Redis and uploads to a
stub of S3. The worker is started twice, to measure how soon a second start is ready.
The GPU counts as idle while nothing is queued on it, by CUDA events. The full-size model has random
weights. Without a GPU the tiny model runs on the CPU, which the encoder uses too; this only checks
that the bench works.
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
import json
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import torch

from bench.harness import plan, report, workloads
from bench.harness.arms import LtxqArm
from bench.harness.timed import TimedPipeline
from bench.harness.weights import Base, Sizes, build_shared, build_transformer
from ltxq.job import Stage, VideoRequest
from ltxq_worker.encode.clip import Encoding
from ltxq_worker.pipeline import Pipeline
from ltxq_worker.pipeline.thread import GpuThread

ENCODERS = 8  # clips being encoded at once, the default of LTXQ_SPOOL_JOBS
NAMES = {"process": "in the process", "queue": "through the queue"}


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tiny = options.tiny or device.type == "cpu"
    machine = report.machine(device)
    path = report.path_of("busy", options.model, machine, options.results, tiny=tiny)
    about = {"model": options.model, "tiny": tiny, "arm": options.arm, "machine": machine}
    for part in options.parts:
        seen = PARTS[part](options, device, tiny)
        before = json.loads(path.read_text()) if path.is_file() else {}
        report.write(path, before | about | {NAMES[part]: seen})
        for name, figures in seen["workloads"].items():
            print(
                f"{NAMES[part]}, {name}: the GPU is busy {figures['share busy']:.1%} of "
                f"{figures['seconds']:.2f} s, {figures['jobs']} clips"
                + (" (tiny model)" if tiny else "")
            )
        for start in seen.get("starts", ()):
            print("a start: " + ", ".join(f"{name} {value:.1f}" for name, value in start.items()))
    print(f"written to {path}")


def in_process(options: argparse.Namespace, device: torch.device, tiny: bool) -> dict[str, Any]:
    """Measure a backlog of each size on the pipeline alone."""
    gpu = GpuThread()
    pipeline = gpu.run(lambda: build(options.model, options.arm, options.optimize, device, tiny))
    backlog = Backlog(pipeline, device, gpu, options.pause)
    seen = {}
    for workload in options.workloads:
        requests = [
            workloads.request(workload, take, tiny=tiny) for take in range(options.jobs + 2)
        ]
        backlog.run(requests[:2])  # warm
        seen[workload] = backlog.run(requests[2:])
    return {"between two jobs (ms)": 1000 * options.pause, "workloads": seen}


def through_queue(options: argparse.Namespace, device: torch.device, tiny: bool) -> dict[str, Any]:
    """Measure a backlog of each size through the queue, with a separate worker process."""
    from bench.harness.queued import measure  # imports Celery, Redis and boto3

    return measure(
        model=options.model,
        arm=options.arm,
        optimize=options.optimize,
        device=device.type,
        tiny=tiny,
        names=options.workloads,
        jobs=options.jobs,
    )


PARTS = {"process": in_process, "queue": through_queue}


def build(base: Base, arm: str, optimize: str, device: torch.device, tiny: bool) -> Pipeline:
    """Build ltxq's pipeline around a model with random weights."""
    sizes = Sizes.of(base, tiny_one=tiny)
    (spec,) = plan.specs([arm], [], optimize, device.type)
    assert spec.optimizations is not None
    shared = build_shared(sizes, device)
    model = build_transformer(sizes, device, spec.weights)
    return LtxqArm(spec.name, spec.weights, sizes, shared, model, spec.optimizations).pipeline


class Backlog:
    """Makes clips one after another on the GPU, and encodes them in other threads."""

    def __init__(
        self, pipeline: Pipeline, device: torch.device, gpu: GpuThread, pause: float
    ) -> None:
        """`gpu`: the thread that built `pipeline`. `pause`: seconds between two jobs."""
        self._pipeline = TimedPipeline(pipeline, device)
        self._gpu, self._pause = gpu, pause
        self._free = threading.Lock()  # held while a clip uses the GPU

    def run(self, requests: list[VideoRequest]) -> dict[str, float]:
        """Make clips of one size; returns the share of time with work for the GPU, and more."""
        self._gpu.run(self._pipeline.start)
        with ThreadPoolExecutor(1 + ENCODERS) as threads:
            jobs = []
            for request in requests:
                self._free.acquire()
                jobs.append(threads.submit(self._make, request))
            for job in jobs:
                job.result()
        (figures,) = self._pipeline.figures().values()
        return figures

    def _make(self, request: VideoRequest) -> None:
        with tempfile.TemporaryDirectory() as folder:
            time.sleep(self._pause)
            with Encoding(request, Path(folder)) as encoding:
                self._gpu.run(lambda: self._take_turn(request, encoding))
                encoding.finish(_ignore)

    def _take_turn(self, request: VideoRequest, encoding: Encoding) -> None:
        try:
            encoding.take(self._pipeline.generate(request, _ignore))
        finally:
            self._free.release()


def _ignore(stage: Stage, step: int, steps: int) -> None:
    """A Report that drops progress."""


def _between_jobs() -> float:
    """Seconds, as `bench/queue_overhead.py` measured them."""
    queue = json.loads((report.RESULTS / "queue.json").read_text())
    return queue["a backlog on the tiny model"]["GPU idle between two jobs p50 (ms)"] / 1000


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=["process"])
    parser.add_argument("--model", choices=get_args(Base), default="ltx-2-19b")
    parser.add_argument("--arm", choices=["ltxq", "ltxq-fp8"], default="ltxq-fp8")
    parser.add_argument("--workloads", nargs="+", choices=list("abc"), default=["a", "b"])
    parser.add_argument("--jobs", type=int, default=20, help="clips of each size")
    parser.add_argument("--optimize", default="auto", help="a value of LTXQ_OPTIMIZE")
    parser.add_argument("--pause", type=float, default=_between_jobs(), help="seconds between jobs")
    parser.add_argument("--tiny", action="store_true", help="use the tiny model on a GPU too")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder to write to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
