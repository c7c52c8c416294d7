"""A worker process as the supervisor starts it, but with a model of random weights, without files.
Measures when its device has work, and how long its start takes.

The variable BENCH_WORKER holds its additional options as JSON: the arguments of `busy.build`, and
the file for the figures. `queued.py` starts it.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()  # before torch is imported

import json
import os
from pathlib import Path
from typing import Any

import torch

from bench import busy
from bench.harness.timed import TimedPipeline
from ltxq.settings import Settings
from ltxq_worker.pipeline import Pipeline
from ltxq_worker.pipeline.fast.options import keep_compiled_code, parse_shapes
from ltxq_worker.process import main as app

OPTIONS: dict[str, Any] = json.loads(os.environ["BENCH_WORKER"])
figures: dict[str, Any] = {}
timed: list[TimedPipeline] = []


def load(model: str, settings: Settings, device: str, _supervisor: Any) -> Pipeline:
    """Replaces `app.load_pipeline`, which reads files."""
    keep_compiled_code()
    where = torch.device(device)
    began = time.perf_counter()
    pipeline: Any = busy.build(model, OPTIONS["arm"], OPTIONS["optimize"], where, OPTIONS["tiny"])  # type: ignore[arg-type]
    built = time.perf_counter()
    pipeline.warm_up(parse_shapes(settings.shapes or ""))
    figures["start"] = {
        "imports (s)": began - BEGAN,
        "weights made, not loaded (s)": built - began,
        "warm-up clips (s)": time.perf_counter() - built,
        "pieces of code compiled anew": _compiled_anew(),
    }
    timed.append(TimedPipeline(pipeline, where))
    return timed[0]


def _compiled_anew() -> int:
    from torch._dynamo.utils import counters

    return counters["inductor"]["fxgraph_cache_miss"]


def main() -> None:
    app.load_pipeline = load
    try:
        app.main()
    finally:
        if timed:
            figures["sizes"] = timed[0].figures()
            Path(OPTIONS["figures"]).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
