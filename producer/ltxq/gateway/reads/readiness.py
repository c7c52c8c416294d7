"""Whether a clip can be made now: queue, worker and storage, checked once for all probes."""

from __future__ import annotations

import asyncio
import logging

from pydantic import BaseModel

from ltxq.client import Client
from ltxq.errors import LtxqError
from ltxq.gateway.reads.queue_reader import QueueReader

log = logging.getLogger("ltxq.gateway")

FRESH_SECONDS = 5.0  # a result is reused this long: each check writes an object to the storage
PROBE_SECONDS = 2.0  # a probe waits this long for a new result


class Readiness(BaseModel):
    """Which parts of the service work. The gateway's log has the reasons."""

    queue: bool
    worker: bool
    storage: bool

    @property
    def ready(self) -> bool:
        """Whether a clip can be made."""
        return self.queue and self.worker and self.storage


NOT_READY = Readiness(queue=False, worker=False, storage=False)


class Prober:
    """Checks queue, workers and storage; one check at a time."""

    def __init__(self, queue: QueueReader) -> None:
        self._queue = queue
        self._client: Client = queue.client(None)
        self._result = NOT_READY
        self._checked_at = -FRESH_SECONDS
        self._check: asyncio.Task[None] | None = None

    async def readiness(self) -> Readiness:
        """The result of the last check; a new check if that one is too old."""
        clock = asyncio.get_running_loop().time
        if clock() - self._checked_at < FRESH_SECONDS:
            return self._result
        if self._check is None:
            self._check = asyncio.create_task(self._refresh())
        await asyncio.wait({self._check}, timeout=PROBE_SECONDS)
        late = clock() - self._checked_at >= FRESH_SECONDS + PROBE_SECONDS
        return NOT_READY if late else self._result

    async def _refresh(self) -> None:
        try:
            self._result = await self._ask()
            self._checked_at = asyncio.get_running_loop().time()
        finally:
            self._check = None

    async def _ask(self) -> Readiness:
        try:
            models = await self._queue.call(self._client.models)
        except LtxqError as exc:
            log.warning("Not ready, the queue failed: %s", exc)
            return NOT_READY
        storage = True
        try:
            await self._queue.call(self._client.check_storage)
        except LtxqError as exc:
            log.warning("Not ready, the storage failed: %s", exc)
            storage = False
        worker = any(model.ready_workers for model in models.values())
        return Readiness(queue=True, worker=worker, storage=storage)
