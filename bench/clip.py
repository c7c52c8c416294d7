"""Measures how long a clip takes, compared with the library's code: `python bench/clip.py`.

Builds LTX-2 and Gemma in full size with random weights on the GPU, without files. Makes clips of
three sizes, in turns by the library's eager code (`library`, `library-fp8`) and by ltxq (`ltxq`,
`ltxq-fp8`); each of these is called an arm. Prints a table for each size. Writes all figures as
JSON to bench/results/ after every clip, replacing older figures of the same arms and sizes. If an
arm fails, the others go on; `--limit` ends all in time. Without a GPU the tiny model runs, in
seconds, which only checks that the bench works.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[1]
    # Import from the checkout, and replace this folder, whose modules could hide installed ones.
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
        torch.set_num_threads(1)  # the tiny model gains nothing from more
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
            print(f"The GPU no longer works; figures measured before this are kept: {exc}")
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
    parser.add_argument("--warmups", type=int, default=3, help="untimed clips before them")
    parser.add_argument("--limit", type=float, help="seconds, after which no other clip begins")
    parser.add_argument("--optimize", default="auto", help="a value of LTXQ_OPTIMIZE")
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="NAME",
        help=("add arms, each without one of these optimizations; 'each': one for every one"),
    )
    parser.add_argument("--tiny", action="store_true", help="use the tiny model on a GPU too")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder to write to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
