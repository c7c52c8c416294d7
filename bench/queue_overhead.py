"""Measures the overhead of the queue on one machine: `python bench/queue_overhead.py`.

Runs an embedded Redis (append-only file on), an S3 server and one worker with the instant test
pipeline; then two such workers; and a worker with the tiny model for the GPU's idle time. Prints a
table, and writes it as JSON to bench/results/queue.json. Redis, worker and this client share the
machine's cores. `--parts clips workers` measures those parts only and keeps the other figures.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules could hide installed ones

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from ltxq import Client
from ltxq.job import Job
from ltxq.ledger import TASK
from ltxq.settings import Settings
from ltxq_worker.embedded.stack import Stack

PROMPT = ("a red fox walks through fresh snow at dawn, its breath in the cold air, " * 3)[:200]
TURNS = 6
SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_frames": 9}
RESULTS = Path(__file__).parent / "results" / "queue.json"


def main() -> None:
    options = _options()
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            title, measure = PARTS[part]
            figures[title] = {
                "measured": time.strftime("%Y-%m-%d"),
                **measure(Path(folder, part), getattr(options, part)),
            }
    report(figures)


def submissions(folder: Path, count: int) -> dict[str, float]:
    """Submissions to a queue without a worker."""
    with _stack(folder) as (client, server, _):
        return measure_submissions(client, server, count) | measure_beside_celery(count)


def jobs(folder: Path, count: int) -> dict[str, float]:
    """Small jobs, one by one, on the instant pipeline."""
    with _stack(folder) as (client, server, stack):
        stack.start_worker(model="instant", gpus="cpu", log=folder / "worker.log")
        client.wait(client.submit("warm up", **SMALL).id, 120)
        return measure_jobs(client, server, count)


def clips(folder: Path, count: int) -> dict[str, float]:
    """Clips of the default size, one by one, on the instant pipeline."""
    with _stack(folder) as (client, _, stack):
        stack.start_worker(model="instant", gpus="cpu", log=folder / "worker.log")
        client.wait(client.submit("warm up", **SMALL).id, 120)
        return measure_overhead(client, count)


def backlog(folder: Path, count: int) -> dict[str, float]:
    """A backlog on the tiny model."""
    from ltxq_worker.models.tiny.model import make_tiny  # imports torch

    make_tiny(folder / "models" / "tiny")
    os.environ["LTXQ_MODEL_DIR"] = str(folder / "models")
    with _stack(folder / "stack", model="tiny") as (client, _, stack):
        stack.start_worker(model="tiny", gpus="cpu", log=folder / "worker.log")
        return measure_gpu_idle(client, count)


def measure_submissions(client: Client, server: redis.Redis, count: int) -> dict[str, float]:
    """Submit as fast as possible from one client and thread; also Redis's memory per queued job."""
    client.submit(PROMPT)
    before = server.info("memory")["used_memory"]
    times = []
    began = time.perf_counter()
    for _ in range(count):
        start = time.perf_counter()
        client.submit(PROMPT)
        times.append(time.perf_counter() - start)
    seconds = time.perf_counter() - began
    memory = server.info("memory")["used_memory"] - before
    return {
        "jobs": count,
        "submissions per second": count / seconds,
        "submit p50 (ms)": 1000 * statistics.median(times),
        "submit p99 (ms)": 1000 * percentile(times, 99),
        "Redis memory per queued job (bytes)": memory / count,
    }


def measure_beside_celery(count: int) -> dict[str, float]:
    """Compare submissions with plain Celery's `send_task` on the same Redis, in turns: with the
    event for Flower, which `send_task` does not send, and without.
    """
    settings = Settings.read()
    plain = Celery(broker=settings.url.get_secret_value(), set_as_current=False)
    request = {"request": {"prompt": PROMPT}}
    with (
        Client(settings=settings.model_copy(update={"events": True})) as with_events,
        Client(settings=settings.model_copy(update={"events": False})) as without_events,
    ):
        ways: dict[str, Callable[[], object]] = {
            "submit": lambda: with_events.submit(PROMPT),
            "quiet": lambda: without_events.submit(PROMPT),
            "celery": lambda: plain.send_task(TASK, kwargs=request, queue="plain"),
        }
        took: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(TURNS):
            for way, send in ways.items():
                began = time.perf_counter()
                for _ in range(count // TURNS):
                    send()
                took[way].append(time.perf_counter() - began)
    plain.close()
    seconds = {way: statistics.median(times) for way, times in took.items()}
    return {
        "plain Celery's send_task per second": count / TURNS / seconds["celery"],
        "submissions, % of plain Celery's send_task": 100 * seconds["celery"] / seconds["submit"],
        "the same without Flower's event (%)": 100 * seconds["celery"] / seconds["quiet"],
    }


def measure_jobs(client: Client, server: redis.Redis, count: int) -> dict[str, float]:
    """Submit jobs one by one to an idle worker, and wait for each result."""
    jobs, waits = [], []
    calls, received, sent = traffic(server)
    began = time.perf_counter()
    for _ in range(count):
        start = time.perf_counter()
        job = client.wait(client.submit(PROMPT, **SMALL).id, 60)
        waits.append(time.perf_counter() - start)
        job.result_or_raise()
        jobs.append(job)
    seconds = time.perf_counter() - began
    used = [now - then for now, then in zip(traffic(server), (calls, received, sent), strict=True)]
    time.sleep(seconds)  # the same time without jobs, to subtract the traffic of an idle worker
    quiet = [
        n - t - u for n, t, u in zip(traffic(server), (calls, received, sent), used, strict=True)
    ]
    pickups = [_between(job.submitted_at, job.started_at) for job in jobs]
    makes = [_between(job.started_at, job.finished_at) for job in jobs]
    per_job = [(u - q) / count for u, q in zip(used, quiet, strict=True)]
    return {
        "jobs": count,
        "pick-up, submit to claim, p50 (ms)": statistics.median(pickups),
        "pick-up, submit to claim, p99 (ms)": percentile(pickups, 99),
        "claim to finish p50 (ms)": statistics.median(makes),
        "submit to result at the client p50 (ms)": 1000 * statistics.median(waits),
        "Redis commands per job, client and worker": per_job[0],
        "bytes to Redis per job": per_job[1],
        "bytes from Redis per job": per_job[2],
    }


def measure_overhead(client: Client, count: int) -> dict[str, float]:
    """Measure the time from a job's claim to its URL without making the clip: claim, spool, the
    upload of its four files, the ledger.
    """
    uploads, besides = [], []
    for _ in range(count):
        job = client.wait(client.submit(PROMPT).id, 120)
        took = job.result_or_raise().timings
        making = sum(took[stage] for stage in ("encode_text", "denoise", "decode", "encode"))
        uploads.append(1000 * took["upload"])
        besides.append(_between(job.started_at, job.finished_at) - 1000 * making)
    return {
        "jobs": count,
        "MP4 (bytes)": job.result_or_raise().size,
        "upload p50 (ms)": statistics.median(uploads),
        "claim to URL without making the clip p50 (ms)": statistics.median(besides),
    }


def workers(folder: Path, count: int) -> dict[str, float]:
    """Time `count` jobs with one worker and with two; each job holds its "GPU" for a second."""
    os.environ["LTXQ_INSTANT_SECONDS"] = "1"
    took = {}
    for places in ("cpu", "cpu,cpu"):
        with _stack(folder / f"workers-{places}") as (client, _server, stack):
            stack.start_worker(model="instant", gpus=places, log=folder / f"{places}.log")
            warm = [client.submit("warm up", **SMALL) for _ in range(4)]
            assert {client.wait(job.id, 120).worker for job in warm} == _places(places)
            submitted = [client.submit(f"fox {i}", **SMALL) for i in range(count)]
            jobs = [client.wait(job.id, 120) for job in submitted]
            assert {job.worker for job in jobs} == _places(places)
            ended = max(job.finished_at for job in jobs if job.finished_at)
            took[places] = (ended - min(job.submitted_at for job in jobs)).total_seconds()
    del os.environ["LTXQ_INSTANT_SECONDS"]
    return {
        "jobs": count,
        "one worker (s)": took["cpu"],
        "two workers (s)": took["cpu,cpu"],
        "two workers' share of one's time": took["cpu,cpu"] / took["cpu"],
    }


def _places(places: str) -> set[str]:
    return {f"cpu{i}@local" for i in range(len(places.split(",")))}


def measure_gpu_idle(client: Client, count: int) -> dict[str, float]:
    """With a backlog, measure the time from a job's release of the GPU to the next job's claim."""
    client.wait(client.submit("warm up", **SMALL).id, 300)
    submitted = [client.submit(f"fox {i}", **SMALL) for i in range(count)]
    jobs = sorted((client.wait(job.id, 600) for job in submitted), key=_started)
    idle = []
    for job, after in itertools.pairwise(jobs):
        released = _started(job) + job.result_or_raise().timings["gpu"]
        idle.append(1000 * (_started(after) - released))
    on_gpu = sum(job.result_or_raise().timings["gpu"] for job in jobs)
    return {
        "jobs": count,
        "GPU idle between two jobs p50 (ms)": statistics.median(idle),
        "GPU idle between two jobs max (ms)": max(idle),
        "GPU held (share of the time)": on_gpu / (on_gpu + sum(idle) / 1000),
    }


def traffic(server: redis.Redis) -> tuple[int, int, int]:
    """Commands, bytes in, bytes out since Redis started."""
    stats = server.info("stats")
    return (
        stats["total_commands_processed"],
        stats["total_net_input_bytes"],
        stats["total_net_output_bytes"],
    )


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def report(figures: dict[str, dict[str, Any]]) -> None:
    """Print the figures, and replace those of the same parts in the results file."""
    for title, rows in figures.items():
        print(title)
        for name, value in rows.items():
            print(
                f"  {name:<48} {value:>12}"
                if name == "measured"
                else f"  {name:<48} {value:>12,.2f}"
            )
    machine = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    before = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    RESULTS.write_text(json.dumps(before | {"machine": machine} | figures, indent=2) + "\n")
    print(f"written to {RESULTS}")


@contextmanager
def _stack(folder: Path, model: str = "instant") -> Iterator[tuple[Client, redis.Redis, Stack]]:
    ports = {"redis_port": 0, "s3_port": 0}
    with Stack(folder, model=model, ports=ports) as stack:
        stack.use_here()
        url = os.environ["LTXQ_URL"]
        with Client() as client, redis.Redis.from_url(url, socket_timeout=30) as server:
            yield client, server, stack


def _between(start: Any, end: Any) -> float:
    return 1000 * float((end - start).total_seconds())


def _started(job: Job) -> float:
    assert job.started_at is not None
    return job.started_at.timestamp()


PARTS = {
    "submissions": ("submissions without a worker", submissions),
    "jobs": ("jobs one by one, idle worker", jobs),
    "clips": ("clips of 768×512 with 33 frames, one by one", clips),
    "workers": ("two workers beside one", workers),
    "backlog": ("a backlog on the tiny model", backlog),
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--submissions", type=int, default=3000)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--workers", type=int, default=20, help="jobs for one, and for two")
    parser.add_argument("--backlog", type=int, default=20)
    return parser.parse_args()


if __name__ == "__main__":
    main()
