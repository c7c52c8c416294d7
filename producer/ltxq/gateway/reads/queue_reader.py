"""`Client` for an event loop: calls run in a few threads, concurrent reads become one call to
Redis, and following a job needs no thread.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

from ltxq.client import Client
from ltxq.client.client import owned
from ltxq.client.job_watch import JobWatch
from ltxq.client.transport import LOOK_SECONDS
from ltxq.errors import QueueUnavailable
from ltxq.gateway.models import GatewayTransport
from ltxq.gateway.openai.errors import Refused
from ltxq.gateway.reads.changes import ChangeListener
from ltxq.job import Job

THREADS = 16
OVERLOADED_SECONDS = 2  # `retry-after` when more wait than:
WAITING_MOST = 512  # calls that wait for a thread; more calls get 503
BATCH_MOST = 100  # jobs in one batch
BUSY_SECONDS = 0.02  # if the last batch is more recent than this, the gateway is busy:
GATHER_SECONDS = 0.004  # then the next batch waits this long for more reads

P = ParamSpec("P")
T = TypeVar("T")


class QueueReader:
    """The queue, for all owners. Create and use it on one event loop."""

    def __init__(self, transport: GatewayTransport) -> None:
        self._transport = transport
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ltxq")
        self._calls = 0
        self._batches = _BatchReader(self, self.client(None))
        self._changes = ChangeListener(transport)

    def client(self, owner: str | None) -> Client:
        """A `Client` that sees this owner's jobs; None: all jobs."""
        return Client(transport=self._transport, owner=owner)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in a thread.

        Raises:
            Refused: 503, too many calls wait for a thread.
        """
        if self._calls >= THREADS + WAITING_MOST:
            raise Refused(
                503,
                "overloaded",
                "The gateway is overloaded: too many requests wait.",
                hint=f"Try again in {OVERLOADED_SECONDS} s.",
                retry_after=OVERLOADED_SECONDS,
            )
        self._calls += 1
        work = functools.partial(function, *args, **kwargs)
        running = asyncio.get_running_loop().run_in_executor(self._pool, work)
        running.add_done_callback(self._count_down)
        return await asyncio.shield(running)  # a cancelled caller does not free the thread

    async def check_model(self, name: str) -> None:
        """As `ServedModels.check`."""
        await self.call(self._transport.served.check, name)

    def _count_down(self, running: asyncio.Future[T]) -> None:
        self._calls -= 1
        if not running.cancelled():
            running.exception()  # retrieved: asyncio logs errors that no caller retrieves

    async def get(self, owner: str | None, job_id: str) -> Job:
        """As `Client.get`, for the owner."""
        return owned(await self._batches.get(job_id), owner)

    async def follow(self, owner: str | None, job_id: str) -> AsyncGenerator[Job, None]:
        """The job now and at each change; ends after its final state, or when the gateway stops.

        Survives an outage of the queue as `Client.watch` does.
        """
        clock = asyncio.get_running_loop().time
        watch = JobWatch(now=clock())
        with self._changes.of(job_id) as changed:
            while not self._changes.ended:
                changed.clear()
                try:
                    job = await self.get(owner, job_id)
                except QueueUnavailable:
                    if not watch.survives_outage(clock()):
                        raise
                else:
                    if watch.changed(job):
                        yield job
                    if job.finished:
                        return
                # Its position in the queue changes without a message: read it again after a while.
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), watch.pause(LOOK_SECONDS, clock()))

    def stop_following(self) -> None:
        """End every `follow` soon."""
        self._changes.end()

    async def close(self) -> None:
        """Wait for running calls, then close the connections."""
        self._changes.end()
        await asyncio.to_thread(self._pool.shutdown)
        await asyncio.to_thread(self._changes.join)
        self._transport.close()


class _BatchReader:
    """Joins reads that come at the same time, from all callers, into one call. Ten jobs cost little
    more than one, and most requests to a gateway read one job.
    """

    def __init__(self, queue: QueueReader, client: Client) -> None:
        self._queue = queue
        self._client = client
        self._waiting: dict[str, asyncio.Future[Job]] = {}
        self._task: asyncio.Task[None] | None = None
        self._single_reads: set[asyncio.Task[None]] = set()
        self._read_at = -math.inf

    async def get(self, job_id: str) -> Job:
        job = self._waiting.setdefault(job_id, asyncio.get_running_loop().create_future())
        if self._task is None:
            self._task = asyncio.create_task(self._read_batches())
        return await asyncio.shield(job)  # other readers may wait for it too

    async def _read_batches(self) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while self._waiting:
                if clock() - self._read_at < BUSY_SECONDS:
                    await asyncio.sleep(GATHER_SECONDS)
                ids = list(self._waiting)[:BATCH_MOST]
                await self._read_batch({job_id: self._waiting.pop(job_id) for job_id in ids})
                self._read_at = clock()
        finally:
            self._task = None

    async def _read_batch(self, batch: dict[str, asyncio.Future[Job]]) -> None:
        try:
            jobs = await self._queue.call(self._client.get_many, list(batch))
        except Exception as exc:  # noqa: BLE001  every reader gets it
            for job in batch.values():
                _fail(job, exc)
            return
        for job_id, job in batch.items():
            if job_id in jobs:
                job.set_result(jobs[job_id])
            else:  # `get` raises the reason; the other readers need not wait for that
                task = asyncio.create_task(self._read_one(job_id, job))
                self._single_reads.add(task)
                task.add_done_callback(self._single_reads.discard)

    async def _read_one(self, job_id: str, job: asyncio.Future[Job]) -> None:
        try:
            job.set_result(await self._queue.call(self._client.get, job_id))
        except Exception as exc:  # noqa: BLE001  every reader gets it
            _fail(job, exc)


def _fail(job: asyncio.Future[Job], exc: Exception) -> None:
    job.set_exception(exc)
    job.exception()  # retrieved: its readers may have disconnected
