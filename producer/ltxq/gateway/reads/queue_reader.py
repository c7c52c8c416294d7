"""`Client` for an event loop: calls in few threads, reads of one moment joined into one call,
changes of a job followed without a thread for each follower.
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
from ltxq.client.client import OUTAGE_PATIENCE, owned
from ltxq.client.transport import LOOK_SECONDS
from ltxq.errors import QueueUnavailable
from ltxq.gateway.models import GatewayTransport
from ltxq.gateway.openai.errors import Refused
from ltxq.gateway.reads.changes import ChangeListener
from ltxq.job import Job

THREADS = 16
WAITING_MOST = 512  # calls that wait for a thread; more are refused at once
TOGETHER = 100  # jobs in one reading
BUSY_SECONDS = 0.02  # if the last reading is no longer ago, many ask:
GATHER_SECONDS = 0.004  # then the next one waits so long for more to join it

P = ParamSpec("P")
T = TypeVar("T")


class QueueReader:
    """The queue, for all owners. Made and used on one event loop."""

    def __init__(self, transport: GatewayTransport) -> None:
        self._transport = transport
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ltxq")
        self._calls = 0
        self._reader = _Reader(self, self.client(None))
        self._news = ChangeListener(transport.all_changes, asyncio.get_running_loop())

    def client(self, owner: str | None) -> Client:
        """The owner's client; None: everybody's."""
        return Client(transport=self._transport, owner=owner)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function` in a thread.

        Raises:
            Refused: too many wait for one.
        """
        if self._calls >= THREADS + WAITING_MOST:
            raise Refused(
                503, "overloaded", "The gateway has more to do than it can.", retry_after=2
            )
        self._calls += 1
        work = functools.partial(function, *args, **kwargs)
        running = asyncio.get_running_loop().run_in_executor(self._pool, work)
        running.add_done_callback(self._called)  # not before its thread is free again
        return await asyncio.shield(running)

    async def check_model(self, name: str) -> None:
        """As `ServedModels.check`."""
        await self.call(self._transport.served.check, name)

    def _called(self, running: asyncio.Future[T]) -> None:
        self._calls -= 1
        if not running.cancelled():
            running.exception()  # who asked may be gone: then nobody else looks at it

    async def get(self, owner: str | None, job_id: str) -> Job:
        """The owner's job; as `Client.get`."""
        return owned(await self._reader.get(job_id), owner)

    async def follow(self, owner: str | None, job_id: str) -> AsyncGenerator[Job, None]:
        """The job now and at each change; ends after its final state, or when the gateway stops.

        Lives through a queue that is away, as `Client.watch` does.
        """
        clock = asyncio.get_running_loop().time
        last: Job | None = None
        away_since: float | None = None
        with self._news.of(job_id) as news:
            while not self._news.ended:
                news.clear()
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
                with suppress(TimeoutError):  # its place in the queue moves without news
                    await asyncio.wait_for(news.wait(), LOOK_SECONDS)

    def stop_following(self) -> None:
        """Every follower ends soon."""
        self._news.end()

    async def close(self) -> None:
        """Wait for what runs, and close the connections."""
        self._news.end()
        await asyncio.to_thread(self._pool.shutdown)
        await asyncio.to_thread(self._news.join)
        self._transport.close()


class _Reader:
    """Joins what is asked for in one moment, by whomever, into one reading: ten jobs cost little
    more than one, and most of what a gateway is asked is how far a job is.
    """

    def __init__(self, queue: QueueReader, client: Client) -> None:
        self._queue = queue
        self._client = client
        self._wanted: dict[str, list[asyncio.Future[Job]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._alone: set[asyncio.Task[None]] = set()
        self._read_at = -math.inf

    async def get(self, job_id: str) -> Job:
        answer: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(job_id, []).append(answer)
        if self._task is None:
            self._task = asyncio.create_task(self._read())
        return await answer

    async def _read(self) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while self._wanted:
                if clock() - self._read_at < BUSY_SECONDS:
                    await asyncio.sleep(GATHER_SECONDS)
                ids = list(self._wanted)[:TOGETHER]
                asked = {job_id: self._wanted.pop(job_id) for job_id in ids}
                await self._answer(asked)
                self._read_at = clock()
        finally:
            self._task = None

    async def _answer(self, asked: dict[str, list[asyncio.Future[Job]]]) -> None:
        try:
            jobs = await self._queue.call(self._client.get_many, list(asked))
        except Exception as exc:  # noqa: BLE001  for all who asked
            for answers in asked.values():
                _tell(answers, exc)
            return
        for job_id, answers in asked.items():
            if job_id in jobs:
                _tell(answers, jobs[job_id])
            else:  # its own words say why; the others do not wait for them
                task = asyncio.create_task(self._answer_alone(job_id, answers))
                self._alone.add(task)
                task.add_done_callback(self._alone.discard)

    async def _answer_alone(self, job_id: str, answers: list[asyncio.Future[Job]]) -> None:
        try:
            _tell(answers, await self._queue.call(self._client.get, job_id))
        except Exception as exc:  # noqa: BLE001  for who asked
            _tell(answers, exc)


def _tell(answers: list[asyncio.Future[Job]], outcome: Job | Exception) -> None:
    for answer in answers:
        if answer.done():  # who asked is gone
            continue
        if isinstance(outcome, Job):
            answer.set_result(outcome)
        else:
            answer.set_exception(outcome)
