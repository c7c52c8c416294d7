"""A small fleet to be cruel to: Redis, S3, two hosts of two workers each, and what can befall them.

`faults` are drawn by the seed; `checks.py` says what must hold when the storm is over.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import psutil
import redis
from strangers import (
    PlainProducer,
    ask_for_many_models,
    send_again_while_stopped,
    start_a_twin,
)

from fleet import SMALL, Fleet, eventually, name_of, worker_environment
from ltxq import Client, LtxqError
from ltxq.errors import JobNotFound
from ltxq.job import Job
from ltxq.ledger import Ledger, RunningJob
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import RedisServer, S3Server
from receiver import LOOPBACK, SECRET, Answer, Handler, Receiver

LEASE = 5.0  # seconds: short, so that a lost lease is part of the storm
DENOISE = 3.5  # seconds a clip takes on the instant pipeline: 200 jobs outlast the storm
HOSTS = ("red", "blue")
PAUSES = {"instant": (0.2, 1.5), "tiny": (1.0, 6.0)}  # seconds from a fault to the next: a worker
# with the tiny model needs ten to start, and most kills should hit one at work
AT_WORK, AT_WORK_SECONDS = 0.8, 3.0  # share of the kills that wait for one, and how long


@dataclass
class World:
    """Everything that runs, and how it is broken."""

    folder: Path
    random: random.Random
    model: str = "instant"
    counts: Counter[str] = field(default_factory=Counter)
    cancelled: set[str] = field(default_factory=set)  # jobs somebody asked to cancel
    failovers: list[tuple[datetime, datetime]] = field(default_factory=list)
    """From when the replica heard nothing to when it was the primary: what happened in between is
    forgotten."""
    broken: list[BaseException] = field(default_factory=list)  # what went wrong in threads
    # Seconds from a kill to the return of the job it hit.
    worker_returns: list[float] = field(default_factory=list)
    host_returns: list[float] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.redis = RedisServer.start(self.folder / "redis-0")
        self._start_replica()
        self.s3 = S3Server.start(self.folder / "s3")
        os.environ.update(self.s3.credentials)
        self.receiver = Receiver()
        self.receiver.otherwise = _moody(random.Random(self.random.random()))
        self.environment = {
            **worker_environment(self.redis.url, self.s3, self.folder / "spool"),
            "LTXQ_LEASE": str(LEASE),
            "LTXQ_INSTANT_SECONDS": str(DENOISE),
            "LTXQ_DEFAULT_MODEL": self.model,
            "LTXQ_MODEL_DIR": str(self.folder / "models"),
            "LTXQ_WEBHOOK_SECRET": SECRET,
            "LTXQ_WEBHOOK_ALLOW": LOOPBACK,
            "OMP_NUM_THREADS": "1",  # four workers share few cores
        }
        if self.model != "instant":
            _make_model(self.folder / "models" / self.model)
        self.settings = Settings(
            url=self.redis.url,
            default_model=self.model,
            s3_endpoint=self.s3.endpoint,
            s3_bucket=self.s3.bucket,
        )
        self.client = Client(settings=self.settings)
        self.plain = PlainProducer(self.redis.url, self.model)
        self.ledger = Ledger(self.settings)
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
        self.plain.close()
        self.ledger.close()
        self.receiver.stop()
        self.s3.stop()
        self.redis.stop()
        self.replica.stop()

    def submit(self, prompt: str) -> Job:
        """A small clip, with a webhook."""
        return self.client.submit(prompt, webhook_url=self.receiver.url, **SMALL)

    def faults(self, counts: dict[str, int]) -> list[Callable[[], None]]:
        """The storm: each fault so often, in an order drawn by the seed."""
        drawn = [getattr(self, name) for name, count in counts.items() for _ in range(count)]
        self.random.shuffle(drawn)
        return drawn

    def kill_worker(self) -> None:
        """kill -9 of a worker process, mostly of one with a job, whatever it does just then."""
        worker = self._a_worker(at_work=self.random.random() < AT_WORK)
        held = self._held(name_of(worker))
        _signal(worker, signal.SIGKILL)
        self.counts["worker kills"] += 1
        self.counts["of those, of a worker with a job"] += bool(held)
        self._watch_return(held, self.worker_returns)

    def kill_host(self) -> None:
        """kill -9 of a supervisor and its workers at once, mostly of one at work; the host comes
        back.
        """
        worker = self._a_worker(at_work=self.random.random() < AT_WORK)
        name = name_of(worker).partition("@")[2] or self.random.choice(HOSTS)
        host = self.hosts[name]
        workers = host.workers()
        held = [job for worker in workers for job in self._held(name_of(worker))]
        host.supervisor.kill()
        for worker in workers:
            _signal(worker, signal.SIGKILL)
        self._watch_return(held, self.host_returns)
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
        self.redis = RedisServer.start(self._redis_folder(), port=self.redis.port)
        self.counts["Redis kills"] += 1

    def fail_over(self) -> None:
        """The replica takes over. It had heard nothing for a moment, as without WAIT it may."""
        with redis.Redis(port=self.replica.port, socket_timeout=5) as second:
            eventually(lambda: _follows(second))
            frozen = datetime.now(UTC)
            second.replicaof("NO", "ONE")
        time.sleep(self.random.uniform(0.05, 0.5))
        port = self.redis.port
        self.redis.process.kill()
        self.redis.stop()
        self.failovers.append((frozen, datetime.now(UTC)))
        self.replica.stop()
        self.redis = RedisServer.start(self._redis_folder(), port=port)
        self._start_replica()
        self.counts["failovers"] += 1

    def _redis_folder(self) -> Path:
        """The primary's: they change places at each failover."""
        return self.folder / f"redis-{len(self.failovers) % 2}"

    def _start_replica(self) -> None:
        folder = self.folder / f"redis-{(len(self.failovers) + 1) % 2}"
        shutil.rmtree(folder, ignore_errors=True)
        self.replica = RedisServer.start(folder)
        with redis.Redis(port=self.replica.port, socket_timeout=5) as second:
            second.replicaof("127.0.0.1", self.redis.port)

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
                job_id = self.random.choice(jobs).id
                self.cancelled.add(job_id)
                self.client.cancel(job_id)
                self.counts["cancels"] += 1
        except LtxqError:
            self.counts["calls refused while Redis was away"] += 1

    def plain_jobs(self) -> None:
        """Plain Celery producers send jobs: for now, for later, with an end."""
        self.counts["plain jobs"] += 3
        number = self.counts["plain jobs"]
        self._beside(lambda: self.plain.send_some(number))

    def send_again(self) -> None:
        """A stopped worker's job is deleted and sent again under its id."""
        self.counts["jobs sent again"] += 1
        job_id = f"again-{self.counts['jobs sent again']}"
        self._beside(lambda: send_again_while_stopped(self, job_id))

    def twin(self) -> None:
        """Another machine of the same name."""
        self.counts["twins"] += 1
        name = self.random.choice(HOSTS)
        self._beside(lambda: start_a_twin(self, name))

    def many_names(self) -> None:
        """Strangers ask for models that nobody has."""
        try:
            self.counts["strangers' models taken"] += ask_for_many_models(
                self.ledger, self.redis.url
            )
        except (LtxqError, redis.RedisError):
            self.counts["calls refused while Redis was away"] += 1

    def end_what_is_beside(self) -> None:
        """Wait for what goes on beside the storm, and raise what went wrong there."""
        for watch in self._watches:
            watch.join()
        self._watches.clear()
        if self.broken:
            raise self.broken[0]

    def _beside(self, act: Callable[[], None]) -> None:
        """`act()` while the storm goes on; what goes wrong is in `broken`."""

        def run() -> None:
            try:
                act()
            except BaseException as exc:  # noqa: BLE001 - told at the end
                self.broken.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        self._watches.append(thread)

    def _start_host(self, name: str) -> Fleet:
        return Fleet(self.environment, model=self.model, gpus="cpu,cpu", name=name)

    def _a_worker(self, *, at_work: bool = False) -> psutil.Process:
        """A worker process that lives, of any host; waits for one where all were just killed.

        Args:
            at_work: one that has a job, if any gets one soon.
        """
        found: list[psutil.Process] = []
        busy: list[psutil.Process] = []
        soon = time.monotonic() + AT_WORK_SECONDS

        def look() -> bool:
            found[:] = [worker for host in self.hosts.values() for worker in host.workers()]
            busy[:] = [worker for worker in found if at_work and self._held(name_of(worker))]
            return bool(busy) or (bool(found) and (not at_work or time.monotonic() > soon))

        eventually(look)
        return self.random.choice(busy or found)

    def _held(self, name: str) -> list[RunningJob]:
        """What a worker has; nothing while Redis is away."""
        try:
            return list(self.ledger.claims.running_on(name))
        except LtxqError:
            return []

    def _watch_return(self, held: list[RunningJob], returns: list[float]) -> None:
        """Note how long it takes until what was `held` is queued, final or another's."""
        killed = time.monotonic()

        def watch(job: RunningJob) -> None:
            claimed_at: datetime | None = None
            while time.monotonic() - killed < 60:
                try:
                    now = self.client.get(job.job_id)
                except JobNotFound:  # cancelled, and deleted to be sent again
                    return
                except LtxqError:
                    continue
                # A failover may forget claims, and count them anew.
                claimed_at = claimed_at or now.started_at
                again = now.attempts > job.attempt or now.started_at != claimed_at
                if now.state != "running" or again:
                    returns.append(time.monotonic() - killed)
                    return
                time.sleep(0.05)
            returns.append(float("inf"))

        for job in held:
            thread = threading.Thread(target=watch, args=(job,))
            thread.start()
            self._watches.append(thread)


def _follows(second: redis.Redis) -> bool:
    """Whether a replica has all that its primary had, on its disk too."""
    replication, persistence = second.info("replication"), second.info("persistence")
    return replication["master_link_status"] == "up" and not (
        persistence["aof_rewrite_in_progress"] or persistence["aof_rewrite_scheduled"]
    )


def _make_model(folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "ltxq", "model", "tiny", str(folder)],
        check=True,
        capture_output=True,
        timeout=300,
    )


def _moody(draw: random.Random) -> Callable[[str], Answer]:
    """Answers of a receiver that fails every tenth event once, half of these without a word."""
    failed: set[str] = set()

    def hang_up(handler: Handler) -> None:
        handler.close_connection = True

    def answer(event_id: str) -> Answer:
        mood = draw.random()
        if mood > 0.1 or event_id in failed:
            return 204
        failed.add(event_id)
        return hang_up if mood < 0.05 else 500

    return answer


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # gone by itself, or by another fault
