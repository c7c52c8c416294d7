"""What plain Celery producers, strangers and twins of a host do to a storm's world."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psutil
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from fleet import PATIENCE, SMALL, Fleet, name_of
from ltxq.errors import JobNotFound, LtxqError
from ltxq.job import CONTRACT, FINAL_STATES, Job, VideoRequest, new_job_id
from ltxq.ledger import PREFIX, Ledger, queue_name

if TYPE_CHECKING:
    from world import World

NAMES = 30_000  # models that strangers ask for
AGAIN_SECONDS = 120.0  # that a job sent again may take to be running, and to end


class PlainProducer:
    """Celery as anybody has it. `sent`: ids of its jobs; `may_expire`: of those with an end."""

    def __init__(self, url: str, model: str) -> None:
        self._app = Celery(broker=url, backend=url, set_as_current=False)
        self._queue = queue_name(model)
        self.sent: list[str] = []
        self.may_expire: set[str] = set()

    def send(self, job_id: str, **options: Any) -> None:
        """One job, tried again until Redis has taken it."""
        while True:
            try:
                self._app.send_task(
                    "ltxq.generate",
                    task_id=job_id,
                    kwargs={"request": {"prompt": job_id, **SMALL}},
                    queue=self._queue,
                    retry=False,
                    **options,
                )
                return
            except (OperationalError, redis.RedisError):
                time.sleep(0.1)

    def send_some(self, number: int) -> None:
        """One for now, one for soon, one that may come too late."""
        now, name = datetime.now(UTC), f"plain-{number}"
        self.send(name)
        self.send(f"{name}-later", eta=now + timedelta(seconds=3))
        self.send(f"{name}-expires", expires=now + timedelta(seconds=2))
        self.may_expire.add(f"{name}-expires")
        self.sent += [name, f"{name}-later", f"{name}-expires"]

    def close(self) -> None:
        self._app.close()


def ask_for_many_models(ledger: Ledger, url: str) -> int:
    """Submit a job for each of 30,000 models and cancel those that were taken; how many were."""
    request = VideoRequest(prompt="x", model="m", seed=1).model_dump_json()
    taken = []
    with redis.Redis.from_url(url, socket_timeout=10, decode_responses=True) as server:
        for start in range(0, NAMES, 500):
            pipe = server.pipeline(transaction=False)
            ids = [new_job_id() for _ in range(500)]
            for number, job_id in enumerate(ids, start):
                queue = queue_name(f"stranger-{number}")
                row = ["submit", job_id, CONTRACT, request, "", queue, 1, 1]
                row += ["", "", "", "", NAMES, NAMES, "", ""]
                ledger._script.lua(keys=[PREFIX], args=row, client=pipe)
            answers = pipe.execute(raise_on_error=False)
            for job_id, answer in zip(ids, answers, strict=True):
                if isinstance(answer, list) and answer[0] == "accepted":
                    taken.append(job_id)
    for job_id in taken:
        with suppress(LtxqError):
            ledger.jobs.cancel(job_id)
    return len(taken)


def send_again_while_stopped(world: World, job_id: str) -> None:
    """A job runs; its worker is stopped; it is cancelled, deleted and sent again under its id; the
    worker goes on.
    """
    world.cancelled.add(job_id)  # a failover may forget that it was sent again
    world.plain.send(job_id)
    job = _until(world, job_id, lambda job: job.state != "queued")
    stopped = _process_of(world, job)
    if stopped:
        with suppress(psutil.NoSuchProcess):
            stopped.send_signal(signal.SIGSTOP)
    try:
        _persist(lambda: world.client.cancel(job_id))
        _until(world, job_id, lambda job: job.state in FINAL_STATES)
        _persist(lambda: world.client.delete(job_id))
        world.plain.send(job_id)
        _until(world, job_id, lambda job: job.state in FINAL_STATES)
    finally:
        if stopped:
            with suppress(psutil.NoSuchProcess):
                stopped.send_signal(signal.SIGCONT)
    world.plain.sent.append(job_id)


def start_a_twin(world: World, name: str) -> None:
    """A second supervisor of a host's name, with a spool of its own: it must not stay."""
    environment = {**world.environment, "LTXQ_SPOOL_DIR": str(world.folder / "twin")}
    with Fleet(environment, model=world.model, gpus="cpu,cpu", name=name) as twin:
        twin.supervisor.wait(PATIENCE)
        assert "belongs to another supervisor" in twin.log, twin.log


def _process_of(world: World, job: Job) -> psutil.Process | None:
    for host in list(world.hosts.values()):
        for worker in host.workers():
            if job.state == "running" and name_of(worker) == job.worker:
                return worker
    return None


def _until(world: World, job_id: str, check: Callable[[Job], bool]) -> Job:
    """The job, once it is so; Redis may be away meanwhile."""
    end = time.monotonic() + AGAIN_SECONDS
    while time.monotonic() < end:
        with suppress(LtxqError):
            job = world.client.get(job_id)
            if check(job):
                return job
        threading.Event().wait(0.1)
    raise AssertionError(f"{job_id} did not come so far within {AGAIN_SECONDS:g} s")


def _persist(act: Callable[[], Any]) -> None:
    """`act()`, until Redis is there; it may have been done by a call whose answer was lost."""
    while True:
        try:
            act()
            return
        except JobNotFound:
            return
        except LtxqError:
            time.sleep(0.1)
