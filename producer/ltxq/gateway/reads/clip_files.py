"""The files of clips, for a gateway that sends them itself or redirects to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ltxq.gateway.models import GatewayTransport
from ltxq.gateway.openai.errors import Refused
from ltxq.gateway.reads.queue_reader import QueueReader
from ltxq.job import Job
from ltxq.links import Variant

if TYPE_CHECKING:
    from ltxq.storage.reading import Opened

_NAMES: dict[Variant, str] = {
    "video": "clip.mp4",
    "thumbnail": "poster.jpg",
    "spritesheet": "spritesheet.jpg",
    "sidecar": "clip.json",
}


class ClipFiles:
    """Reads from the bucket. Create and use it on one event loop."""

    def __init__(self, transport: GatewayTransport, queue: QueueReader) -> None:
        self._storage = transport.storage
        self._queue = queue
        self.links = transport.opened_links
        self.proxies = transport.links is not None  # whether the gateway sends the files itself
        self._reader = self._storage.reader() if self._storage and self.proxies else None

    async def sign(self, job: Job, variant: Variant, *, head: bool) -> str:
        """What `open` takes."""
        assert self._reader is not None  # noqa: S101
        return await self._queue.call(self._reader.sign, _key(job, variant), head=head)

    @asynccontextmanager
    async def open(
        self, url: str, *, head: bool = False, part: tuple[int, int] | None = None
    ) -> AsyncIterator[Opened | None]:
        """As `Reader.open`."""
        assert self._reader is not None  # noqa: S101
        async with self._reader.open(url, head=head, part=part) as opened:
            yield opened

    async def size(self, job: Job, variant: Variant) -> int:
        """Bytes of a file whose size the record does not have."""
        url = await self.sign(job, variant, head=True)
        async with self.open(url, head=True) as opened:
            if opened is None:
                raise Refused(404, "no_content", f"A file of {job.id} is no longer in the storage.")
            return opened.total

    def url_for_head(self, job: Job, variant: Variant) -> str | None:
        """A URL for a HEAD request to the storage; None: only workers know the bucket."""
        if self._storage is None:
            return None
        return self._storage.url(_key(job, variant), job.request.expires_in, head=True)[0]

    async def close(self) -> None:
        """Close the connections to the storage."""
        if self._reader is not None:
            await self._reader.close()


def _key(job: Job, variant: Variant) -> str:
    assert job.result is not None  # noqa: S101
    folder = job.result.key.rpartition("/")[0]
    return f"{folder}/{_NAMES[variant]}"
