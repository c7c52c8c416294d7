"""Whether a clip could be made now: queue, worker and storage, looked at once for all who ask."""

from __future__ import annotations

import asyncio
import logging

from pydantic import BaseModel

from ltxq.client import Client
from ltxq.errors import LtxqError
from ltxq.gateway.reads.queue_reader import QueueReader

log = logging.getLogger("ltxq.gateway")

FRESH_SECONDS = 5.0  # a finding is told again that long: looking writes an object
PROBE_SECONDS = 2.0  # a probe waits that long for a new one


class Readiness(BaseModel):
    """What is there and what is missing. The gateway's log says why."""

    queue: bool
    worker: bool
    storage: bool

    @property
    def ready(self) -> bool:
        """Whether a clip could be made."""
        return self.queue and self.worker and self.storage


NOTHING_FOUND = Readiness(queue=False, worker=False, storage=False)


class Prober:
    """Looks at queue, workers and storage, at most once at a time."""

    def __init__(self, queue: QueueReader) -> None:
        self._queue = queue
        self._client: Client = queue.client(None)
        self._found = NOTHING_FOUND
        self._found_at = -FRESH_SECONDS
        self._looking: asyncio.Task[None] | None = None

    async def readiness(self) -> Readiness:
        """What was found lately."""
        clock = asyncio.get_running_loop().time
        if clock() - self._found_at < FRESH_SECONDS:
            return self._found
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        await asyncio.wait({self._looking}, timeout=PROBE_SECONDS)
        late = clock() - self._found_at >= FRESH_SECONDS + PROBE_SECONDS
        return NOTHING_FOUND if late else self._found

    async def _look(self) -> None:
        try:
            self._found = await self._find()
            self._found_at = asyncio.get_running_loop().time()
        finally:
            self._looking = None

    async def _find(self) -> Readiness:
        try:
            models = await self._queue.call(self._client.models)
        except LtxqError as exc:
            log.warning("Not ready: %s", exc)
            return NOTHING_FOUND
        storage = True
        try:
            await self._queue.call(self._client.check_storage)
        except LtxqError as exc:
            log.warning("Not ready: %s", exc)
            storage = False
        return Readiness(queue=True, worker=any(models.values()), storage=storage)
