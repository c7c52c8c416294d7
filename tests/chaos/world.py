"""A small fleet to be cruel to: Redis, S3, two hosts of two workers each, and what can befall them.

`faults` are drawn by the seed; `checks.py` says what must hold when the storm is over.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
import redis

from fleet import Fleet, eventually, worker_environment
from ltxq import Client, LtxqError
from ltxq.ledger import Ledger
from ltxq.settings import Settings
from ltxq_worker.local import RedisServer, S3Server

LEASE = 5.0  # seconds: short, so that a lost lease is part of the storm
DENOISE = 3.5  # seconds a clip takes on the instant pipeline: 200 jobs outlast the storm
HOSTS = ("red", "blue")


@dataclass
class World:
    """Everything that runs, and how it is broken."""

    folder: Path
    random: random.Random
    model: str = "instant"
    counts: Counter[str] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)  # seconds from a kill to the job's return

    def __enter__(self) -> Self:
        self.redis = RedisServer.start(self.folder / "redis")
        self.s3 = S3Server.start(self.folder / "s3")
        os.environ.update(self.s3.credentials)
        self.environment = {
            **worker_environment(self.redis.url, self.s3, self.folder / "spool"),
            "LTXQ_LEASE": str(LEASE),
            "LTXQ_INSTANT_SECONDS": str(DENOISE),
            "LTXQ_DEFAULT_MODEL": self.model,
        }
        self.settings = Settings(
            url=self.redis.url,
            default_model=self.model,
            s3_endpoint=self.s3.endpoint,
            s3_bucket=self.s3.bucket,
        )
        self.client = Client(settings=self.settings)
        self.ledger = Ledger.from_settings(self.settings)
        self.hosts = {name: self._start_host(name) for name in HOSTS}
        for host in self.hosts.values():
            host.wait_until_ready(times=2)
        self._watches: list[threading.Thread] = []
        return self

    def __exit__(self, *exc: object) -> None:
        for watch in self._watches:
            watch.join()
        for host in self.hosts.values():
            host.__exit__(*exc)
        self.client.close()
        self.ledger.close()
        self.s3.stop()
        self.redis.stop()

    def faults(self, counts: dict[str, int]) -> list[Callable[[], None]]:
        """The storm: each fault so often, in an order drawn by the seed."""
        drawn = [getattr(self, name) for name, count in counts.items() for _ in range(count)]
        self.random.shuffle(drawn)
        return drawn

    def kill_worker(self) -> None:
        """kill -9 of a worker process, whatever it does just then."""
        self._kill_and_watch(self._a_worker())

    def kill_host(self) -> None:
        """kill -9 of a supervisor and its workers at once; the host comes back."""
        name = self.random.choice(HOSTS)
        host = self.hosts[name]
        workers = host.workers()
        host.supervisor.kill()
        for worker in workers:
            _signal(worker, signal.SIGKILL)
        host.__exit__(None, None, None)
        self.counts["host kills"] += 1
        self.hosts[name] = self._start_host(name)

    def stop_worker(self) -> None:
        """SIGSTOP past its lease, then SIGCONT."""
        worker = self._a_worker()
        _signal(worker, signal.SIGSTOP)
        self.counts["stopped workers"] += 1
        later = threading.Timer(LEASE + 2, _signal, (worker, signal.SIGCONT))
        later.start()
        self._watches.append(later)

    def restart_redis(self) -> None:
        """kill -9 of Redis, a pause, and the same Redis again."""
        self.redis.process.kill()
        self.redis.stop()
        time.sleep(self.random.uniform(0.2, 4))
        self.redis = RedisServer.start(self.folder / "redis", port=self.redis.port)
        self.counts["Redis kills"] += 1

    def cut_connections(self) -> None:
        """CLIENT KILL of every connection, or of a few."""
        with redis.Redis.from_url(self.redis.url, socket_timeout=5) as server:
            ids = [c["id"] for c in server.client_list()]
            for number in self.random.sample(ids, self.random.randint(1, len(ids))):
                server.client_kill_filter(_id=number, skipme=True)
        self.counts["connection cuts"] += 1

    def storage_outage(self) -> None:
        """S3 is gone for some seconds."""
        self.s3.stop()
        time.sleep(self.random.uniform(1, 5))
        keys = self.s3.credentials
        self.s3 = S3Server.start(
            self.folder / "s3",
            port=self.s3.port,
            access_key=keys["AWS_ACCESS_KEY_ID"],
            secret_key=keys["AWS_SECRET_ACCESS_KEY"],
        )
        self.counts["storage outages"] += 1

    def cancel_a_job(self) -> None:
        """A client changes its mind."""
        try:
            jobs = [*self.client.list(state="running").jobs, *self.client.list(state="queued").jobs]
            if jobs:
                self.client.cancel(self.random.choice(jobs).id)
                self.counts["cancels"] += 1
        except LtxqError:
            self.counts["calls refused while Redis was away"] += 1

    def _start_host(self, name: str) -> Fleet:
        return Fleet(self.environment, model=self.model, gpus="cpu,cpu", name=name)

    def _a_worker(self) -> psutil.Process:
        """A worker process that lives, of any host; waits for one where all were just killed."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = [worker for host in self.hosts.values() for worker in host.workers()]
            return bool(found)

        eventually(look)
        return self.random.choice(found)

    def _kill_and_watch(self, worker: psutil.Process) -> None:
        held = self.ledger.held(_name_of(worker))
        killed = time.monotonic()
        _signal(worker, signal.SIGKILL)
        self.counts["worker kills"] += 1

        def watch() -> None:
            for job in held:
                while time.monotonic() - killed < 60:
                    try:
                        now = self.client.get(job.job_id)
                    except LtxqError:
                        continue
                    if now.state != "running" or now.attempts > job.token:
                        self.recoveries.append(time.monotonic() - killed)
                        break
                    time.sleep(0.05)

        thread = threading.Thread(target=watch)
        thread.start()
        self._watches.append(thread)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # gone by itself, or by another fault


def _name_of(worker: psutil.Process) -> str:
    """The worker's name in the ledger, from its command line; '' when it has just gone."""
    try:
        words = worker.cmdline()
    except psutil.NoSuchProcess:
        return ""
    return words[words.index("--name") + 1] if "--name" in words else ""
