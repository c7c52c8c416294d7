"""How busy a backlog keeps the GPU: `python bench/busy.py`.

Makes clips as a worker's threads do: one has the GPU until its frames are decoded, and encodes on
while the next one starts. Between two jobs it waits as long as `bench/queue.py` measured from one
job's last frame to the next one's claim. The GPU is idle where nothing was queued on it, by events
on its own timeline: between two clips, and where decoding waits for the encoder. The full-size
model has random weights. Without a GPU the tiny model runs, and "GPU" is the CPU that the encoder
uses too: that shows that it works.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[1]
    # A checkout is enough. Not this folder: its `queue` would stand in for the standard library's.
    sys.path[:1] = [str(ROOT), str(ROOT / "producer"), str(ROOT / "worker")]
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, get_args

import torch

from bench.rig import plan, report, workloads
from bench.rig.arms import LtxqArm
from bench.rig.timeline import Timeline
from bench.rig.weights import Base, Sizes, build_shared, build_transformer
from ltxq.job import Stage, VideoRequest
from ltxq_worker.encode import encode

ENCODERS = 8  # clips being encoded at once, as LTXQ_SPOOL_JOBS has it
BUSY, IDLE = "busy", "idle"


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = Sizes.of(options.model, tiny_one=device.type == "cpu")
    (spec,) = plan.specs([options.arm], [], options.optimize, device.type)
    assert spec.optimizations is not None
    shared = build_shared(sizes, device)
    model = build_transformer(sizes, device, spec.weights)
    arm = LtxqArm(spec.name, spec.weights, sizes, shared, model, spec.optimizations)
    measured: dict[str, Any] = {
        "model": sizes.base,
        "tiny": sizes.tiny,
        "arm": spec.name,
        "machine": report.machine(device),
        "between two jobs (ms)": 1000 * options.pause,
        "workloads": {},
    }
    for workload in options.workloads:
        requests = [
            workloads.request(workload, take, tiny=sizes.tiny) for take in range(options.jobs + 2)
        ]
        Backlog(arm, device, options.pause).run(requests[:2])  # warm
        seen = Backlog(arm, device, options.pause).run(requests[2:])
        measured["workloads"][workload] = seen
        print(
            f"{workload}: the GPU is busy {seen['share busy']:.1%} of {seen['seconds']:.2f} s, "
            f"{seen['jobs']} clips" + (" (tiny model on a CPU)" if sizes.tiny else "")
        )
    name = f"busy-{sizes.base}{'-tiny' if sizes.tiny else ''}.json"
    (options.results / name).write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n")


class Backlog:
    """Clips one after the other on the GPU, their encoding beside it."""

    def __init__(self, arm: LtxqArm, device: torch.device, pause: float) -> None:
        self._arm, self._pause = arm, pause
        self._gpu = threading.Lock()  # held as a worker's gate holds it
        self._line = Timeline(device)

    def run(self, requests: list[VideoRequest]) -> dict[str, float]:
        """What share of the time there was work for the GPU."""
        self._line.start()
        with ThreadPoolExecutor(1 + ENCODERS) as threads:
            jobs = []
            for request in requests:
                self._gpu.acquire()
                jobs.append(threads.submit(self._make, request))
            for job in jobs:
                job.result()
        spans = self._line.spans()
        return {
            "jobs": len(requests),
            "seconds": sum(spans.values()),
            "share busy": spans[BUSY] / sum(spans.values()),
        }

    def _make(self, request: VideoRequest) -> None:
        free = threading.Event()
        try:
            time.sleep(self._pause)
            self._line.mark(IDLE)
            clip = self._arm.pipeline.generate(request, _ignore)
            self._line.mark(BUSY)
            clip = replace(clip, frames=self._timed(clip.frames, free))
            with tempfile.TemporaryDirectory() as folder:
                encode(clip, request, Path(folder), _ignore)
        finally:
            if not free.is_set():
                self._gpu.release()

    def _timed(self, frames: Iterator[Any], free: threading.Event) -> Iterator[Any]:
        """The frames; what lies between two of them is the encoder's doing."""
        while True:
            self._line.mark(IDLE)
            chunk = next(frames, None)
            self._line.mark(BUSY)
            if chunk is None:
                break
            yield chunk
        free.set()
        self._gpu.release()


def _ignore(stage: Stage, step: int, steps: int) -> None:
    """A Report nobody needs."""


def _between_jobs() -> float:
    """Seconds, as `bench/queue.py` measured them."""
    queue = json.loads((report.RESULTS / "queue.json").read_text())
    return queue["a backlog on the tiny model"]["GPU idle between two jobs p50 (ms)"] / 1000


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=get_args(Base), default="ltx-2-19b")
    parser.add_argument("--arm", choices=["ltxq", "ltxq-fp8"], default="ltxq-fp8")
    parser.add_argument("--workloads", nargs="+", choices=list("abc"), default=["a", "b"])
    parser.add_argument("--jobs", type=int, default=20, help="clips of each size")
    parser.add_argument("--optimize", default="auto", help="what is on, as LTXQ_OPTIMIZE says it")
    parser.add_argument("--pause", type=float, default=_between_jobs(), help="seconds between jobs")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder to write to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
