"""A file of a clip, from the storage through the gateway to a client, as fast as the client reads.

No thread and no file holds it: what the client has not read yet stays in the storage.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ltxq.errors import LtxqError
from ltxq.gateway.access.http_limits import ABORT
from ltxq.gateway.access.rates import Rates
from ltxq.gateway.openai.errors import Refused
from ltxq.gateway.reads.clip_files import ClipFiles

if TYPE_CHECKING:
    from ltxq.storage.reading import Opened

log = logging.getLogger("ltxq.gateway")

SEND_SECONDS = 60.0  # for a client to read the next 64 kB


@dataclass(frozen=True)
class Wanted:
    """A file, and what of it."""

    url: str
    head: bool
    part: tuple[int, int] | None
    size: int | None  # bytes of the whole file, where the job's record says so
    what: str  # for messages: "video_1"


class ClipFile(Response):
    """While open, counts as one of the owner's downloads."""

    def __init__(
        self,
        wanted: Wanted,
        headers: Mapping[str, str],
        *,
        clips: ClipFiles,
        rates: Rates,
        owner: str | None,
    ) -> None:
        self._wanted, self._clips, self._rates, self._owner = wanted, clips, rates, owner
        self._own_headers = dict(headers)
        self.status_code = 200 if wanted.part is None else 206
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._rates.stream(self._owner, "downloads"):
            sending = asyncio.ensure_future(self._send(send))
            gone = asyncio.ensure_future(_until_gone(receive))
            try:
                await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done() and sending.exception() is None and not sending.result():
                    scope[ABORT]()  # the client must not take this for the whole file
                    await gone
            finally:
                for task in (sending, gone):
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait({task})
            if sending.done() and not sending.cancelled() and (error := sending.exception()):
                raise error

    async def _send(self, send: Send) -> bool:
        """Whether all was sent."""
        wanted = self._wanted
        async with self._clips.open(wanted.url, head=wanted.head, part=wanted.part) as opened:
            if opened is None:
                raise Refused(
                    404,
                    "no_content",
                    f"A file of {wanted.what} is no longer in the storage.",
                    hint="Create the video again.",
                )
            if wanted.size is not None and opened.total != wanted.size:
                raise Refused(
                    500,
                    "content_changed",
                    f"The clip of {wanted.what} has {opened.total} bytes in the storage, but "
                    f"{wanted.size} were uploaded.",
                    hint="Create the video again.",
                )
            await _within(send, self._start(opened))
            if wanted.head:
                await _within(send, {"type": "http.response.body"})
                return True
            try:
                async for chunk in opened.chunks:
                    message = {"type": "http.response.body", "body": chunk, "more_body": True}
                    await _within(send, message)
            except (LtxqError, TimeoutError) as exc:
                why = exc if isinstance(exc, LtxqError) else "the client stopped reading"
                log.warning("A file of %s was cut off: %s", wanted.what, why)
                return False
            await _within(send, {"type": "http.response.body"})
        return True

    def _start(self, opened: Opened) -> Message:
        headers = {**self._own_headers, "content-length": str(opened.size)}
        if self._wanted.part is not None:
            last = opened.first + opened.size - 1
            headers["content-range"] = f"bytes {opened.first}-{last}/{opened.total}"
        return {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": [(name.encode(), text.encode("latin-1")) for name, text in headers.items()],
        }


async def _within(send: Send, message: Message) -> None:
    async with asyncio.timeout(SEND_SECONDS):
        await send(message)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
