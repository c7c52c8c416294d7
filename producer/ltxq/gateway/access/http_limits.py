"""uvicorn's HTTP on httptools, with the bounds it lacks: on the size of a request's head, on the
time it takes to come, and on what still comes of a body that nobody wants any more.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_MOST = 32 * 1024  # bytes
REST_MOST = 1024 * 1024  # bytes; read so that a client that still sends gets to read its answer
FRAMING_MOST = 2 * 1024 * 1024  # bytes of chunk sizes and trailers; 256 KiB byte by byte take 1.5
HEAD_SECONDS = 20.0  # from a connection, or the first byte of a later request, to the head's end
STEP = 4 * 1024  # bytes given to the parser at once: it says what it found, but not where


class BoundedHttp(HttpToolsProtocol):
    """Closes a connection whose request is too long, or its head too slow.

    The parser gets what was received in steps, and no more of a head than is allowed. So the bound
    does not depend on how the bytes arrive. Where a step holds the end of one request and the
    beginning of the next one, the whole step counts as the next one's.
    """

    _step = 0  # bytes the parser got last
    _head = 0  # bytes of what came since the last request ended
    _framing = 0  # bytes of what came with a body and is not of it
    _rest = 0  # bytes of a body that came after its answer
    _in_head = True
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        start = 0
        while start < len(data) and not self.transport.is_closing():
            room = min(STEP, HEAD_MOST - self._head) if self._in_head else STEP
            if room == 0:
                self.send_400_response("The head of the request is too long.")
                return
            self._parse(data[start : start + room])
            start += room

    def _parse(self, step: bytes) -> None:
        if self._in_head:
            self._head += len(step)
            if self._late is None:
                self._wait_for_head()
        else:
            self._framing += len(step)
        self._step = len(step)
        super().data_received(step)
        if self._framing > FRAMING_MOST:
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = self._step

    def on_headers_complete(self) -> None:
        self._in_head, self._head, self._framing, self._rest = False, 0, 0, 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._framing = max(0, self._framing - len(body))
        if self.cycle.response_complete:
            self._rest += len(body)
            if self._rest > REST_MOST:
                self.transport.close()

    def on_message_complete(self) -> None:
        self._in_head, self._head, self._framing = True, 0, 0
        super().on_message_complete()

    def _wait_for_head(self) -> None:
        self._late = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        self.transport.close()
