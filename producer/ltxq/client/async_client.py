"""`AsyncClient`: `Client` for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from ltxq.client.client import Client
from ltxq.client.transport import Transport
from ltxq.job import Job
from ltxq.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")


def _in_thread(
    method: Callable[Concatenate[Client, P], T],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    @functools.wraps(method)
    async def call(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, self._client, *args, **kwargs)

    return call


class AsyncClient:
    """The calls of `Client`, each in a thread, so that none blocks the event loop."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        settings: Settings | None = None,
        transport: Transport | None = None,
        owner: str | None = None,
    ) -> None:
        self._client = Client(
            url, api_key=api_key, settings=settings, transport=transport, owner=owner
        )

    submit = _in_thread(Client.submit)
    get = _in_thread(Client.get)
    get_many = _in_thread(Client.get_many)
    cancel = _in_thread(Client.cancel)
    retry = _in_thread(Client.retry)
    list = _in_thread(Client.list)
    models = _in_thread(Client.models)
    check_storage = _in_thread(Client.check_storage)
    delete = _in_thread(Client.delete)
    close = _in_thread(Client.close)

    async def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """As `Client.wait`."""
        return [job async for job in self.watch(job_id, timeout)][-1]

    async def watch(self, job_id: str, timeout: float | None = None) -> AsyncIterator[Job]:
        """As `Client.watch`."""
        stopped = threading.Event()
        jobs = self._client._watch(job_id, timeout, stopped)
        try:
            while (job := await asyncio.to_thread(next, jobs, None)) is not None:
                yield job
        finally:
            stopped.set()
            with contextlib.suppress(ValueError):  # a thread still runs it, and ends it soon
                jobs.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
