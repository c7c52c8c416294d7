"""Measures a backlog through a real queue: Redis, Celery, a worker process, a stub of S3."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.harness import s3_stub, smi, workloads
from ltxq import Client
from ltxq.job import Job
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import RedisServer, spawn

PATIENCE = 400.0  # seconds for a start, which compiles, or for a backlog
BUCKET = "clips"


def measure(
    *, model: str, arm: str, optimize: str, device: str, tiny: bool, names: list[str], jobs: int
) -> dict[str, Any]:
    """Measure how busy a worker keeps its device, and how long its first and second start take."""
    with tempfile.TemporaryDirectory(prefix="ltxq-busy-") as folder, ExitStack() as stack:
        root = Path(folder)
        environment = stack.enter_context(_servers(root))
        sizes = {name: workloads.request(name, 0, tiny=tiny) for name in names}
        environment["LTXQ_SHAPES"] = ",".join(
            f"{r.width}x{r.height}x{r.num_frames}x{r.stages}" for r in sizes.values()
        )
        options = {"arm": arm, "optimize": optimize, "tiny": tiny}
        seen: dict[str, Any] = {"workloads": {}, "starts": []}
        with _worker(root / "first", model, device, environment, options) as first:
            settings = Settings(url=environment["LTXQ_URL"], default_model=model)
            with Client(settings=settings) as client:
                made, use = {}, {}
                for name in names:
                    with smi.watched() as use[name]:
                        made[name] = _backlog(client, name, jobs, tiny=tiny)
        with _worker(root / "second", model, device, environment, options) as second:
            pass
        for name, request in sizes.items():
            size = f"{request.width}x{request.height}x{request.num_frames}"
            seen["workloads"][name] = first["sizes"][size] | _times(made[name]) | use[name]
        seen["starts"] = [{"ready (s)": w["ready"], **w["start"]} for w in (first, second)]
        return seen


@contextmanager
def _servers(root: Path) -> Iterator[dict[str, str]]:
    """Runs Redis and the stub of S3; yields the environment variables for a worker."""
    log = root / "s3.log"
    with RedisServer.start(root / "redis") as redis:
        storage = spawn([sys.executable, s3_stub.__file__], log)
        try:
            yield {
                "LTXQ_URL": redis.url,
                "LTXQ_S3_ENDPOINT": f"http://127.0.0.1:{_port(storage, log)}",
                "LTXQ_S3_BUCKET": BUCKET,
                "AWS_ACCESS_KEY_ID": "bench",
                "AWS_SECRET_ACCESS_KEY": "bench",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        finally:
            storage.terminate()
            storage.wait()


def _port(storage: subprocess.Popen[bytes], log: Path) -> int:
    while not (found := re.search(rb"listening on port (\d+)", log.read_bytes())):
        if storage.poll() is not None:
            raise RuntimeError(f"The stub of S3 ended at once: {log.read_text()}")
        time.sleep(0.01)
    return int(found[1])


@contextmanager
def _worker(
    folder: Path, model: str, device: str, environment: dict[str, str], options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Runs a worker process and waits until it is ready. After the `with`, the yielded dict holds
    the figures that the worker wrote.
    """
    folder.mkdir()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    figures = folder / "figures.json"
    began = time.perf_counter()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "bench.harness.worker"),
            *("--model", model, "--name", "gpu0@bench", "--device", device),
            *("--spool", str(folder / "spool"), "--control-channel", str(theirs.fileno())),
        ],
        env=os.environ
        | environment
        | {
            "BENCH_WORKER": json.dumps(options | {"figures": str(figures)}),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    seen: dict[str, Any] = {}
    try:
        with ours:
            _wait_until_ready(ours)
            seen["ready"] = time.perf_counter() - began
            yield seen
            process.send_signal(signal.SIGTERM)  # the worker finishes its jobs first
            process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
    seen |= json.loads(figures.read_text())


def _wait_until_ready(channel: socket.socket) -> None:
    channel.settimeout(PATIENCE)
    while received := channel.recv(1 << 18):
        message = json.loads(received)
        if message.get("ready"):
            return
        if "failed" in message:
            raise RuntimeError(f"The worker cannot start: {message['failed']}")
    raise RuntimeError("The worker ended before it was ready; its log is above.")


def _backlog(client: Client, name: str, count: int, *, tiny: bool) -> list[Job]:
    """Submit jobs of one size at once, and return them when all have ended."""
    requests = [workloads.request(name, take, tiny=tiny) for take in range(2, count + 2)]
    submitted = [client.submit(request) for request in requests]
    return [client.wait(job.id, PATIENCE) for job in submitted]


def _times(jobs: list[Job]) -> dict[str, float]:
    """The medians over the jobs, without the first, which follows no other job."""
    results = [job.result_or_raise() for job in jobs][1:]
    return {
        "claim to URL p50 (s)": statistics.median(result.timings["total"] for result in results),
        "upload p50 (s)": statistics.median(result.timings["upload"] for result in results),
        "MP4 p50 (bytes)": statistics.median(result.size for result in results),
    }
