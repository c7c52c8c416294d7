"""`make chaos`: 200 jobs through a storm of kills, cuts and outages, and then the reckoning.

`SEED=n make chaos` repeats a storm's faults (not its timing: processes race). Prints what was
thrown, what became of the jobs, and the slowest return of a killed worker's job.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # fleet.py is there

from checks import check_jobs, check_nothing_is_left, wait_until_calm
from world import World

from ltxq.errors import LtxqError

STORM = {
    "kill_worker": 30,
    "kill_host": 5,
    "restart_redis": 5,
    "cut_connections": 20,
    "storage_outage": 3,
    "stop_worker": 10,
    "cancel_a_job": 20,
}
JOBS = 200
BACKLOG = 8  # jobs kept waiting while there are any to submit
SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_frames": 9}


def storm(folder: Path, seed: int, *, jobs: int = JOBS, share: float = 1.0) -> dict[str, Any]:
    """Run one storm and check what is left of it.

    Args:
        share: of the faults of a whole storm.

    Raises:
        AssertionError: a promise was broken.
    """
    draw = random.Random(seed)
    counts = {name: max(1, round(count * share)) for name, count in STORM.items()}
    began = time.monotonic()
    with World(folder, draw) as world:
        accepted: list[str] = []
        faults = world.faults(counts)
        while faults or len(accepted) < jobs:
            _keep_busy(world, accepted, jobs)
            if faults:
                faults.pop()()
            time.sleep(draw.uniform(0.2, 1.5) if faults else 0)
        finished = wait_until_calm(world, accepted, within=300)
        outcomes = check_jobs(world, finished)
        check_nothing_is_left(world)
        return {
            "seed": seed,
            "jobs accepted": len(accepted),
            "outcomes": dict(outcomes),
            "claims": sum(job.attempts for job in finished),
            "faults": dict(world.counts),
            "slowest return of a killed worker's job (s)": round(max(world.recoveries or [0]), 2),
            "minutes": round((time.monotonic() - began) / 60, 1),
        }


def _keep_busy(world: World, accepted: list[str], jobs: int) -> None:
    """Submit until a backlog waits, so that every fault finds the workers at work."""
    try:
        waiting = len(world.client.list(state="queued", limit=100).jobs)
        for number in range(len(accepted), min(jobs, len(accepted) + BACKLOG - waiting)):
            accepted.append(world.client.submit(f"job {number}", **SMALL).id)
    except LtxqError:
        world.counts["calls refused while Redis was away"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--share", type=float, default=1.0, help="of a whole storm's faults")
    options = parser.parse_args()
    print(f"SEED={options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ltxq-chaos-") as folder:
        for name, value in storm(
            Path(folder), options.seed, jobs=options.jobs, share=options.share
        ).items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
