"""`Client` for an event loop: calls in few threads, reads of one moment joined into one call,
changes of a job followed without a thread for each follower.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from ltxq.client import Client
from ltxq.errors import QueueUnavailable
from ltxq.gateway.failures import Refused
from ltxq.job import Job
from ltxq.transport import Transport

THREADS = 16
WAITING_MOST = 512  # calls that wait for a thread; more are refused at once
TOGETHER = 100  # jobs in one reading
LOOK_SECONDS = 0.5  # between looks at a followed job
OUTAGE_PATIENCE = 60.0  # seconds a follower lives through a queue that is away

P = ParamSpec("P")
T = TypeVar("T")


class Queue:
    """The queue, for all owners. Made and used on one event loop."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ltxq")
        self._calls = 0
        self._readers: dict[str | None, _Reader] = {}
        self._closing = asyncio.Event()

    def client(self, owner: str | None) -> Client:
        """The owner's client; None: everybody's."""
        return Client(transport=self._transport, owner=owner)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function` in a thread."""
        if self._calls >= THREADS + WAITING_MOST:
            raise Refused(503, "overloaded", "The gateway has too much to do.", retry_after=2)
        self._calls += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, functools.partial(function, *args, **kwargs)
            )
        finally:
            self._calls -= 1

    async def get(self, owner: str | None, job_id: str) -> Job:
        """The owner's job; as `Client.get`."""
        reader = self._readers.get(owner)
        if reader is None:
            reader = self._readers[owner] = _Reader(self, self.client(owner))
        return await reader.get(job_id)

    async def follow(self, owner: str | None, job_id: str) -> AsyncIterator[Job]:
        """The job now and at each change; ends after its final state, or when the gateway stops."""
        last: Job | None = None
        away_since: float | None = None
        clock = asyncio.get_running_loop().time
        while not self._closing.is_set():
            try:
                job = await self.get(owner, job_id)
                away_since = None
            except QueueUnavailable:
                away_since = away_since or clock()
                if last is None or clock() - away_since > OUTAGE_PATIENCE:
                    raise
                job = last
            # An estimate that moves with the clock is no change of the job.
            if last is None or job != last.model_copy(update={"eta_seconds": job.eta_seconds}):
                yield job
                last = job
            if job.finished:
                return
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._closing.wait()
            except TimeoutError:
                continue

    def stop_following(self) -> None:
        """Every follower ends."""
        self._closing.set()

    async def close(self) -> None:
        """Wait for what runs, and close the connections."""
        self.stop_following()
        await asyncio.to_thread(self._pool.shutdown)
        self._transport.close()


class _Reader:
    """Joins what is asked for while a reading is under way into the next one."""

    def __init__(self, queue: Queue, client: Client) -> None:
        self._queue = queue
        self._client = client
        self._wanted: dict[str, list[asyncio.Future[Job]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def get(self, job_id: str) -> Job:
        answer: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(job_id, []).append(answer)
        if self._task is None:
            self._task = asyncio.create_task(self._read())
        return await answer

    async def _read(self) -> None:
        while self._wanted:
            ids = list(self._wanted)[:TOGETHER]
            asked = {job_id: self._wanted.pop(job_id) for job_id in ids}
            found = await self._found(ids)
            for job_id, answers in asked.items():
                for answer in answers:
                    if answer.done():  # who asked is gone
                        continue
                    outcome = found[job_id]
                    if isinstance(outcome, Job):
                        answer.set_result(outcome)
                    else:
                        answer.set_exception(outcome)
        self._task = None

    async def _found(self, ids: list[str]) -> dict[str, Job | Exception]:
        """Each job, or what is to be said of it."""
        try:
            if len(ids) == 1:
                return {ids[0]: await self._queue.call(self._client.get, ids[0])}
            jobs = await self._queue.call(self._client.get_many, ids)
        except Exception as exc:  # noqa: BLE001  handed to all who asked
            return dict.fromkeys(ids, exc)
        found: dict[str, Job | Exception] = dict(jobs)
        for job_id in ids:
            if job_id not in found:  # its own words say why
                try:
                    found[job_id] = await self._queue.call(self._client.get, job_id)
                except Exception as exc:  # noqa: BLE001
                    found[job_id] = exc
        return found
