"""`AsyncClient`: `Client` for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Collection
from typing import Any, Self

from ltxq.client.client import Client
from ltxq.client.transport import Transport
from ltxq.job import Job, JobPage, JobState, Order, VideoRequest
from ltxq.limits import ServedModel
from ltxq.settings import Settings


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

    async def submit(
        self,
        request: VideoRequest | str,
        /,
        *,
        idempotency_key: str | None = None,
        resent: bool | None = None,
        **fields: Any,
    ) -> Job:
        """As `Client.submit`."""
        return await asyncio.to_thread(
            self._client.submit, request, idempotency_key=idempotency_key, resent=resent, **fields
        )

    async def get(self, job_id: str) -> Job:
        """As `Client.get`."""
        return await asyncio.to_thread(self._client.get, job_id)

    async def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        """As `Client.get_many`."""
        return await asyncio.to_thread(self._client.get_many, job_ids)

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

    async def cancel(self, job_id: str) -> Job:
        """As `Client.cancel`."""
        return await asyncio.to_thread(self._client.cancel, job_id)

    async def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """As `Client.retry`."""
        return await asyncio.to_thread(self._client.retry, job_id, idempotency_key=idempotency_key)

    async def list(
        self,
        *,
        state: JobState | None = None,
        limit: int = 20,
        after: str | None = None,
        order: Order = "desc",
    ) -> JobPage:
        """As `Client.list`."""
        return await asyncio.to_thread(
            self._client.list, state=state, limit=limit, after=after, order=order
        )

    async def models(self) -> dict[str, ServedModel]:
        """As `Client.models`."""
        return await asyncio.to_thread(self._client.models)

    async def check_storage(self) -> None:
        """As `Client.check_storage`."""
        await asyncio.to_thread(self._client.check_storage)

    async def delete(self, job_id: str) -> None:
        """As `Client.delete`."""
        await asyncio.to_thread(self._client.delete, job_id)

    async def close(self) -> None:
        """As `Client.close`."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
