"""How long a clip takes, beside the library's own code: `python bench/clip.py`.

Builds LTX-2 and Gemma in full size with random weights on the GPU, without a file, and makes clips
of three sizes in turns: the library's eager code (`library`, `library-fp8`) and ltxq (`ltxq`,
`ltxq-fp8`). Prints a table for each size. Writes everything as JSON to bench/results/ after every
clip, in place of older figures of the same arms and sizes; an arm that fails does not end the
others, and `--limit` ends them all in time. Where there is no GPU it does the same with the tiny
model, in seconds: that shows that it works, not how fast.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[1]
    # A checkout is enough. Not this folder: its `queue` would stand in for the standard library's.
    sys.path[:1] = [str(ROOT), str(ROOT / "producer"), str(ROOT / "worker")]
os.environ.setdefault("TQDM_DISABLE", "1")  # the library's progress bars
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import argparse
from typing import get_args

import torch

from bench.harness import plan, report
from bench.harness.contest import Contest
from bench.harness.phases import Phases
from bench.harness.weights import Base, Sizes
from ltxq_worker.pipeline import DeviceBroken


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tiny = options.tiny or device.type == "cpu"
    if device.type == "cpu":
        torch.set_num_threads(1)  # the tiny model gains nothing by more
    phases = Phases(options.limit)
    lost = False
    for base in options.model:
        sizes = Sizes.of(base, tiny_one=tiny)
        specs = plan.specs(options.arms, options.without, options.optimize, device.type)
        contest = Contest(sizes, device, specs, options, phases)
        try:
            contest.run()
        except DeviceBroken as exc:
            lost = True
            print(f"The device is lost, what was measured until then stands: {exc}")
        contest.show()
        if lost:
            break
    sys.exit(1 if lost else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=get_args(Base), default=["ltx-2-19b"])
    parser.add_argument("--arms", nargs="+", choices=list(plan.ARMS), default=list(plan.ARMS))
    parser.add_argument("--workloads", nargs="+", choices=list("abc"), default=list("abc"))
    parser.add_argument("--runs", type=int, default=10, help="timed clips of each arm and size")
    parser.add_argument("--warmups", type=int, default=3, help="clips before them")
    parser.add_argument(
        "--limit", type=float, help="seconds, after which it stops and keeps what it has"
    )
    parser.add_argument("--optimize", default="auto", help="what is on, as LTXQ_OPTIMIZE says it")
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="NAME",
        help=("more arms, each without one optimization; 'each': all of them, one at a time"),
    )
    parser.add_argument("--tiny", action="store_true", help="the tiny model, also on a GPU")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder to write to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
