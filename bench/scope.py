"""Plays five minutes through the Scope plugin and measures them: `python bench/scope.py`.

`ltxq up` generates the clips with the instant test pipeline and random seeds. During playback the
prompt changes, and later the worker is killed and replaced. Reports lost and repeated frames, time
stamps that went back, and the delay between sound and picture; exits with 1 on an error. Scope is
the tests' stand-in, or the real one in SCOPE_CHECKOUT. All processes share the machine's cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).parents[1] / "tests" / "scope_plugin"
CHECKOUT = os.environ.get("SCOPE_CHECKOUT")
# Replaces this folder, whose `scope.py` would hide Scope's package.
sys.path[:1] = [str(TESTS), str(Path(CHECKOUT, "src") if CHECKOUT else TESTS / "stand_in")]

import scope_world
from ltxq import Client
from ltxq.job import Job
from ltxq.scope_plugin.pipeline import Ltx2QueuePipeline
from ltxq_worker.pipeline.instant import request_tag
from viewer import Heard, Shown, Viewer, breaks, loud, onset, skews

RESULTS = Path(__file__).parent / "results" / "scope.json"
WORKER_SECONDS = 60.0  # until the killed worker must be replaced
MAX_DELAY = 0.040  # seconds between a picture and its sound
MAX_SHARE = 0.2  # of pictures over MAX_DELAY: a busy machine may stop this process for long


def main() -> None:
    options = _options()
    with (
        tempfile.TemporaryDirectory() as folder,
        ltxq_up(Path(folder), gateway=options.gateway) as up,
    ):
        seen = play(options, up)
        jobs = all_jobs()
    figures, errors = evaluate(seen, jobs, options.num_frames - 1)
    report(options, figures)
    for error in errors[:20]:
        print(f"ERROR: {error}", file=sys.stderr)
    sys.exit(bool(errors))


class Timed:
    """A pipeline that measures the time of each call."""

    def __init__(self, pipeline: Ltx2QueuePipeline) -> None:
        self._pipeline = pipeline
        self.seconds: list[float] = []

    def __call__(self, **parameters: Any) -> dict[str, Any]:
        start = time.perf_counter()
        output = self._pipeline(**parameters)
        self.seconds.append(time.perf_counter() - start)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


@dataclass
class Played:
    """The recording of a session; times are seconds by the wall clock."""

    shown: list[Shown]
    heard: list[Heard]
    delays: list[float]  # of the sound, for each picture
    changed: float  # when the prompt changed
    killed: float  # when the worker was killed
    calls: list[float]  # seconds of each call
    gained: float  # bytes of memory, without the viewer's recording


def play(options: argparse.Namespace, up: psutil.Process) -> Played:
    """Play one session, change its prompt and kill its worker."""
    sizes = {name: getattr(options, name) for name in ("width", "height", "num_frames")}
    pipeline = Timed(Ltx2QueuePipeline(**sizes, randomize_seed=True))
    with scope_world.Session(pipeline) as session:
        viewer = session.viewer
        viewer.wait_until(lambda v: v.shown)
        end = time.monotonic() + options.seconds
        memory = [used_by(viewer)]
        time.sleep(0.4 * options.seconds)
        changed = time.monotonic()
        session.send(prompts=scope_world.OWL)
        time.sleep(0.2 * options.seconds)
        killed = time.monotonic()
        kill_worker(up)
        viewer.wait_until(lambda v: plays_since(v, killed + 3), WORKER_SECONDS)
        time.sleep(max(0.0, end - time.monotonic()))
        memory.append(used_by(viewer))
    return Played(
        shown=viewer.shown,
        heard=viewer.heard,
        delays=skews(viewer),
        changed=changed,
        killed=killed,
        calls=pipeline.seconds,
        gained=memory[1] - memory[0],
    )


def evaluate(seen: Played, jobs: list[Job], last: int) -> tuple[dict[str, float], list[str]]:
    """The figures, and the errors among them."""
    shown, owls = seen.shown, {request_tag(j.request) for j in jobs if j.request.prompt == "an owl"}
    repeated = [now for before, now in itertools.pairwise(shown) if now.mark == before.mark]
    after = [p for p in repeated if 0 < p.at - seen.changed < 5 or 0 < p.at - seen.killed < 30]
    broken = breaks(shown, last)
    back = went_back([p.stamp for p in shown])
    back += went_back([h.stamp for h in seen.heard if h.stamp is not None])
    onsets = [abs(onset(near) - at) for at, near in beginnings(seen)]
    apart = max(map(abs, [*seen.delays, *onsets]))
    figures = {
        "seconds watched": shown[-1].at - shown[0].at,
        "clips begun": sum(p.mark is not None and p.mark.index == 0 for p in shown),
        "frames shown": len(shown) - len(repeated),
        "frames lost or shown twice": len(broken),
        "time stamps that went back": back,
        "the last frame stood, after prompt change and kill (s)": len(after) / 24,
        "the last frame stood, otherwise (s)": (len(repeated) - len(after)) / 24,
        "prompt change to its first frame (s)": next(
            (p.at - seen.changed for p in shown if p.mark and p.mark.tag in owls), math.nan
        ),
        "sound and picture apart, most (ms)": 1000 * apart,
        "share of pictures more than 40 ms from their sound": sum(
            abs(delay) > MAX_DELAY for delay in seen.delays
        )
        / len(seen.delays),
        "clips whose sound's beginning was looked at": len(onsets),
        "silence that Scope had to put in (s)": 0.02 * sum(h.stamp is None for h in seen.heard),
        "longest call (ms)": 1000 * max(seen.calls),
        "memory gained (MB)": seen.gained / 1e6,
        "jobs": len(jobs),
        "jobs cancelled": sum(job.state == "cancelled" for job in jobs),
    }
    errors = [*broken, *[f"{back} time stamps went back"] * bool(back)]
    if (share := figures["share of pictures more than 40 ms from their sound"]) > MAX_SHARE:
        errors.append(f"{share:.0%} of the pictures were over 40 ms apart from their sound")
    if not any(p.mark and p.mark.tag in owls for p in shown):
        errors.append("no clip of the new prompt was shown")
    return figures, errors


def beginnings(seen: Played) -> Iterator[tuple[float, list[Heard]]]:
    """For each clip that began after a pause: the time, and the sound around that time."""
    for number in range(15, len(seen.shown)):
        *before, now = seen.shown[number - 15 : number + 1]
        if len({p.mark for p in before}) == 1 and now.mark != before[0].mark:
            near = [h for h in seen.heard if abs(h.at - now.at) < 0.5]
            if any(map(loud, near)):
                yield now.at, near


def plays_since(viewer: Viewer, at: float) -> bool:
    """Whether a clip that began after `at` is playing."""
    mark, last = viewer.shown[-1].mark, viewer.shown[-1]
    return bool(last.at > at and mark and 3 < mark.index < 6)


def went_back(stamps: list[float]) -> int:
    return sum(now <= before for before, now in itertools.pairwise(stamps))


def used_by(viewer: Viewer) -> int:
    """This process's memory in bytes, without the sound that the viewer records."""
    return psutil.Process().memory_info().rss - sum(s.samples.nbytes for s in viewer.sounds)


def kill_worker(up: psutil.Process) -> None:
    """Kill the worker process; its supervisor replaces it."""
    supervisor = next(p for p in up.children() if "worker" in p.cmdline())
    supervisor.children()[0].kill()


@contextmanager
def ltxq_up(folder: Path, *, gateway: bool) -> Iterator[psutil.Process]:
    """`ltxq up` with the instant pipeline; this process's environment points at it."""
    ports = [f"--{name}-port=0" for name in ("redis", "s3", "http", "flower")]
    command = [sys.executable, "-m", "ltxq", "up", "--model=instant", f"--data={folder / 'data'}"]
    with (
        Path(folder, "log").open("w") as log,
        subprocess.Popen(
            [*command, *ports, "--json"], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            about = json.loads(process.stdout.readline())
            lines = Path(about["environment_file"]).read_text().splitlines()
            exports = dict(shlex.split(line)[1].split("=", 1) for line in lines if "export" in line)
            os.environ.update(exports | ({"LTXQ_URL": about["url"]} if gateway else {}))
            yield psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def all_jobs() -> list[Job]:
    jobs: list[Job] = []
    with Client() as client:
        page = client.list(limit=100)
        jobs += page.jobs
        while page.after is not None:
            page = client.list(limit=100, after=page.after)
            jobs += page.jobs
    return jobs


def report(options: argparse.Namespace, figures: dict[str, float]) -> None:
    for name, value in figures.items():
        print(f"  {name:<56} {value:>10,.2f}")
    if options.out is None:
        return
    machine = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "scope": "0.2.4" if CHECKOUT else "stand-in",
        "queue": "gateway" if options.gateway else "redis",
        "clips": f"{options.width}x{options.height}, {options.num_frames} frames",
    }
    options.out.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n")
    print(f"written to {options.out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="of playback")
    parser.add_argument("--width", type=int, default=256, help="of a clip, in pixels")
    parser.add_argument("--height", type=int, default=256, help="of a clip, in pixels")
    parser.add_argument("--num-frames", type=int, default=33, help="of each clip")
    parser.add_argument(
        "--gateway", action="store_true", help="use the gateway (HTTP) instead of Redis"
    )
    parser.add_argument(
        "--out", type=Path, help=f"write the figures to this JSON file, as {RESULTS}"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
