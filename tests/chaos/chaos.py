"""`make chaos`: 200 jobs through a storm of kills, cuts and outages, and then the reckoning.

`SEED=n make chaos` repeats a storm's faults (not its timing: processes race); with PIPELINE=tiny
the workers run the tiny model. Prints what was thrown, what became of the jobs, and how long the
slowest return of a job took after a kill.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # fleet.py is there

from checks import (
    check_jobs,
    check_nothing_is_left,
    check_plain_jobs,
    check_webhooks,
    drop_the_forgotten,
    wait_until_calm,
)
from world import PAUSES, World

from ltxq.errors import LtxqError
from ltxq.job import Job

STORM = {
    "kill_worker": 30,
    "kill_host": 5,
    "restart_redis": 5,
    "cut_connections": 20,
    "storage_outage": 3,
    "stop_worker": 10,
    "cancel_a_job": 20,
    "fail_over": 3,
    "plain_jobs": 10,
    "send_again": 5,
    "twin": 3,
    "many_names": 1,
}
JOBS = 200
BACKLOG = 8  # jobs kept waiting while there are any to submit


def storm(
    folder: Path, seed: int, *, jobs: int = JOBS, share: float = 1.0, pipeline: str = "instant"
) -> dict[str, Any]:
    """Run one storm and check what is left of it.

    Args:
        share: of the faults of a whole storm.

    Raises:
        AssertionError: a promise was broken.
    """
    draw = random.Random(seed)
    counts = {name: max(1, round(count * share)) for name, count in STORM.items()}
    began = time.monotonic()
    with World(folder, draw, model=pipeline) as world:
        accepted: list[Job] = []
        faults = world.faults(counts)
        all_faults = len(faults)
        while faults or len(accepted) < jobs:
            due = jobs * (1 - len(faults) / all_faults)  # as many as make them last to the end
            _keep_busy(world, accepted, min(jobs, round(due) + BACKLOG))
            if faults:
                faults.pop()()
            time.sleep(draw.uniform(*PAUSES[pipeline]) if faults else 0)
        world.end_what_is_beside()
        finished = wait_until_calm(world, drop_the_forgotten(world, accepted), within=300)
        plain = check_plain_jobs(world, within=300)
        outcomes = check_jobs(world, [*finished, *plain])
        webhooks = check_webhooks(world, finished)
        check_nothing_is_left(world)
        return {
            "seed": seed,
            "pipeline": pipeline,
            "jobs accepted": len(accepted),
            "outcomes": dict(outcomes),
            "claims": sum(job.attempts for job in [*finished, *plain]),
            "faults": dict(world.counts),
            "webhooks": dict(webhooks),
            "slowest return of a killed worker's job (s)": _slowest(world.worker_returns),
            "slowest return of a killed host's job (s)": _slowest(world.host_returns),
            "minutes": round((time.monotonic() - began) / 60, 1),
        }


def _slowest(returns: list[float]) -> float:
    return round(max(returns, default=0), 2)


def _keep_busy(world: World, accepted: list[Job], due: int) -> None:
    """Submit until a backlog waits, so that every fault finds the workers at work."""
    try:
        waiting = len(world.client.list(state="queued", limit=100).jobs)
        for number in range(len(accepted), min(due, len(accepted) + BACKLOG - waiting)):
            accepted.append(world.submit(f"job {number}"))
    except LtxqError:
        world.counts["calls refused while Redis was away"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--pipeline", choices=list(PAUSES), default="instant")
    parser.add_argument("--append", type=Path, help="A file of results, one JSON object a line.")
    parser.add_argument("--share", type=float, default=1.0, help="of a whole storm's faults")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the servers are stopped
    print(f"SEED={options.seed} PIPELINE={options.pipeline}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ltxq-chaos-") as folder:
        figures = storm(
            Path(folder),
            options.seed,
            jobs=options.jobs,
            share=options.share,
            pipeline=options.pipeline,
        )
    for name, value in figures.items():
        print(f"{name}: {value}")
    if options.append:
        with options.append.open("a") as results:
            results.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
