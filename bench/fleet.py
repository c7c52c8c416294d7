"""Measures how many workers one Redis supports, with a deep queue.

    python bench/fleet.py                     # 1,000 workers, 200,000 queued jobs; about 5 minutes
    python bench/fleet.py --workers 50 --jobs 5000 --seconds 5     # a quick look

Runs a real redis-server with its append-only file on. Jobs are loaded in bulk through pipelines,
each with its message, as submissions leave them. Workers are threads that make a worker's ledger
calls for each job: claim, renew the lease, report each step, finish. One process makes the calls of
their supervisors, one supervisor for eight workers, every two seconds. No Celery process runs, and
the messages are not consumed. Load generator and Redis share this machine's cores, so Redis's CPU
time is measured too, to calculate the limit of a Redis with a core of its own. Prints a table, and
writes it as JSON to bench/results/fleet.json.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules could hide installed ones

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import redis

from ltxq.errors import QueueFull
from ltxq.job import CONTRACT, JobError, Progress, VideoRequest, new_job_id
from ltxq.ledger import BANDS, PREFIX, Ledger, queue_name
from ltxq.ledger.records import cost_of
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import RedisServer

PROMPT = ("a red fox walks through fresh snow at dawn, its breath in the cold air, " * 3)[:200]
MODEL = "ltx-2-19b-distilled"
REQUEST = VideoRequest(seed=42, prompt=PROMPT, model=MODEL)
HOST = 8  # workers of one supervisor
SWEEP_SECONDS = 2.0  # between two rounds of a supervisor's calls
STEPS = 20  # reports in a job: eight denoising steps, and the other stages
BATCH = 500  # jobs in one pipeline
BAND = BANDS["normal"]
MILLION = 1_000_000
RESULTS = Path(__file__).parent / "results" / "fleet.json"
DONE = JobError(code="internal", message="simulated")  # ends a job, in fewer bytes than a result


def main() -> None:
    options = _options()
    if options.claim_from:
        simulate(options)
        return
    if options.supervise:
        supervise(options)
        return
    figures: dict[str, dict[str, float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer.start(Path(folder)) as server,
        redis.Redis.from_url(server.url, socket_timeout=60, decode_responses=True) as direct,
    ):
        settings = Settings(url=server.url, max_queued=10 * MILLION)
        ledger = Ledger(settings)
        figures["a deep queue"] = load(ledger, direct, options.jobs)
        figures["asked of it"] = ask(ledger)
        pace = options.workers / options.job_seconds
        title = f"{options.workers:,} workers, {options.job_seconds:g} s a job ({pace:g} jobs/s)"
        figures[title] = run(server.url, direct, options, options.workers, options.job_seconds)
        title = "as fast as it goes"
        figures[title] = run(server.url, direct, options, min(options.workers, 32), 0.0)
        figures["every lease ends at once"] = lose_everything(ledger, direct, options.workers)
        figures["made-up models"] = make_up_models(ledger, options.names)
        ledger.close()
    report(figures, options)


def load(ledger: Ledger, direct: redis.Redis, jobs: int) -> dict[str, float]:
    """Fill the queue by the ledger's own script, which also sends the messages."""
    ledger.jobs.list(limit=1)  # loads the script into Redis
    queue = queue_name(MODEL)
    empty = used(direct)
    began = time.perf_counter()
    for start in range(0, jobs, BATCH):
        pipe = direct.pipeline(transaction=False)
        for _ in range(min(BATCH, jobs - start)):
            job_id = new_job_id()
            arguments = [
                *("submit", job_id, CONTRACT, REQUEST.model_dump_json(), "", queue, BAND),
                *(cost_of(REQUEST), "", "", "", "", 10 * MILLION, MILLION, "", ""),
            ]
            ledger._script.lua(keys=[PREFIX], args=arguments, client=pipe)
        pipe.execute()
    seconds = time.perf_counter() - began
    per_job = (used(direct) - empty) / jobs
    return {
        "jobs queued": jobs,
        "loaded in bulk, jobs per second": jobs / seconds,
        "bytes per queued job, message included": per_job,
        "Redis's memory (MB)": used(direct) / 1e6,
        "a million queued would take (GB, extrapolated)": per_job * MILLION / 1e9,
    }


def ask(ledger: Ledger) -> dict[str, float]:
    """Measure reads, sweeps and submissions with the deep queue."""
    last = ledger.jobs.list(limit=1).jobs[0].id
    return {
        "one sweep, nothing wrong (ms)": 1000 * time_of_sweeps(ledger),
        "read the last job, with its position (ms)": 1000
        * median(lambda: ledger.jobs.get(last), 200),
        "list 20 jobs (ms)": 1000 * median(lambda: ledger.jobs.list(limit=20), 50),
        "depth and age of every queue (ms)": 1000
        * median(lambda: ledger.fleet.queues(retention=3600), 50),
        "submit (ms)": 1000 * median(lambda: ledger.jobs.submit(new_job_id(), REQUEST), 200),
    }


def run(
    url: str, direct: redis.Redis, options: argparse.Namespace, workers: int, job_seconds: float
) -> dict[str, float]:
    """Run claimers and supervisors in separate processes for a while."""
    processes = min(2, workers)
    busy, calls = cpu(direct), commands(direct)
    began = time.perf_counter()
    children = [
        subprocess.Popen(
            [
                *(sys.executable, __file__, "--claim-from", url, "--name", f"host{i}"),
                *("--workers", str(workers // processes), "--job-seconds", str(job_seconds)),
                *("--seconds", str(options.seconds)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    supervisors = subprocess.Popen(
        [
            *(sys.executable, __file__, "--supervise", url),
            *("--workers", str(workers), "--seconds", str(options.seconds)),
        ]
    )
    outputs = [
        json.loads(child.communicate(timeout=options.seconds + 120)[0]) for child in children
    ]
    assert supervisors.wait(120) == 0
    seconds = time.perf_counter() - began
    busy, calls = cpu(direct) - busy, commands(direct) - calls
    jobs = sum(output["jobs"] for output in outputs)
    figures: dict[str, float] = {
        "workers": workers,
        "jobs per second": jobs / options.seconds,
        "Redis busy (share of one core)": busy / seconds,
        "Redis CPU per job (ms)": 1000 * busy / jobs if jobs else float("nan"),
        "commands per second": calls / seconds,
    }
    if jobs:
        figures["jobs per second a core of Redis would bear"] = jobs / busy
    for what in ("claim", "report", "finish"):
        times = sorted(t for output in outputs for t in output[what])
        if times:
            figures[f"{what} p50 (ms)"] = 1000 * percentile(times, 50)
            figures[f"{what} p99 (ms)"] = 1000 * percentile(times, 99)
    return figures


def simulate(options: argparse.Namespace) -> None:
    """The process of claimers: prints the durations of its calls as JSON."""
    settings = Settings(url=options.claim_from, lease=30)
    ledger = Ledger(settings)
    end = time.monotonic() + options.seconds
    took: dict[str, list[float]] = {"claim": [], "report": [], "finish": []}
    jobs = count()

    def timed(what: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        try:
            return call()
        finally:
            took[what].append(time.perf_counter() - start)

    def work(number: int) -> None:
        pause = options.job_seconds / STEPS
        # Workers of a fleet do not start at the same moment.
        threading.Event().wait(options.job_seconds * (number % 97) / 97)
        while time.monotonic() < end:
            claim = timed("claim", lambda: ledger.claims.take(MODEL, f"gpu{number}@{options.name}"))
            if claim is None:
                return
            for step in range(STEPS):
                if time.monotonic() > end:
                    return
                at = Progress(stage="denoise", step=step, steps=STEPS, fraction=step / STEPS)
                timed("report", lambda c=claim, p=at: ledger.claims.report(c, p, on_gpu=True))
                if step % 4 == 0:
                    ledger.claims.renew(claim)
                threading.Event().wait(pause)
            timed("finish", lambda c=claim: ledger.claims.finish(c, DONE))
            next(jobs)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(work, range(options.workers)))
    print(json.dumps({"jobs": next(jobs), **took}))


def supervise(options: argparse.Namespace) -> None:
    """Make the calls of these workers' supervisors, in one thread."""
    ledger = Ledger(Settings(url=options.supervise, lease=30))
    end = time.monotonic() + options.seconds
    hosts = range(0, options.workers, HOST)
    while time.monotonic() < end:
        began = time.monotonic()
        for first in hosts:
            names = [f"gpu{n}@host0" for n in range(first, min(first + HOST, options.workers))]
            ledger.fleet.heartbeat(MODEL, f"host{first}", dict.fromkeys(names, "ready"))
            ledger.sweeper.sweep(interval=SWEEP_SECONDS)
            for name in names:
                ledger.claims.running_on(name)
        time.sleep(max(0.0, SWEEP_SECONDS - (time.monotonic() - began)))


def lose_everything(ledger: Ledger, direct: redis.Redis, workers: int) -> dict[str, float]:
    """Let all leases of a fleet end at once, and measure the sweep that requeues the jobs."""
    for number in range(workers):
        assert ledger.claims.take(MODEL, f"gpu{number}@lost")
    make_sweep_due(ledger)
    ledger.sweeper.sweep()
    for job_id in direct.zrange(f"{PREFIX}running", 0, -1):
        direct.zadd(f"{PREFIX}running", {job_id: 0})
    make_sweep_due(ledger)
    start = time.perf_counter()
    swept = ledger.sweeper.sweep()
    return {
        "jobs given back in one sweep": len(swept.lease_ended),
        "that sweep (ms)": 1000 * (time.perf_counter() - start),
    }


def make_up_models(ledger: Ledger, names: int) -> dict[str, float]:
    """Submit jobs for many made-up models, and measure their effect on a sweep."""
    taken = 0
    for number in range(names):
        with suppress(QueueFull):
            ledger.jobs.submit(
                new_job_id(), REQUEST.model_copy(update={"model": f"made-up-{number}"})
            )
            taken += 1
    return {
        "models tried": names,
        "models taken": taken,
        "one sweep afterwards (ms)": 1000 * time_of_sweeps(ledger),
    }


def make_sweep_due(ledger: Ledger) -> None:
    """Set the time of the last sweep back, so that the next one is not skipped."""
    now = ledger._script.redis.time()
    ledger._script.redis.set(f"{PREFIX}swept", int(now[0] * 1000 + now[1] / 1000 - 2000))


def time_of_sweeps(ledger: Ledger) -> float:
    """The median of 20 sweeps, in seconds."""
    took = []
    for _ in range(20):
        make_sweep_due(ledger)
        start = time.perf_counter()
        ledger.sweeper.sweep()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def median(call: Callable[[], Any], times: int) -> float:
    took = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def used(direct: redis.Redis) -> int:
    return int(direct.info("memory")["used_memory"])


def cpu(direct: redis.Redis) -> float:
    """Seconds of CPU time that Redis has used."""
    info = direct.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


def commands(direct: redis.Redis) -> int:
    return int(direct.info("stats")["total_commands_processed"])


def report(figures: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    for title, rows in figures.items():
        print(title)
        for name, value in rows.items():
            print(f"  {name:<50} {value:>14,.2f}")
    machine = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    options.out.write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n")
    print(f"written to {options.out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=200_000, help="queued before the fleet starts")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--job-seconds", type=float, default=20.0, help="duration of a job")
    parser.add_argument("--names", type=int, default=30_000, help="number of made-up models")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each simulated fleet")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--claim-from", help=argparse.SUPPRESS)
    parser.add_argument("--supervise", help=argparse.SUPPRESS)
    parser.add_argument("--name", default="host0", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
