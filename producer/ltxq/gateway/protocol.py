"""uvicorn's HTTP on httptools, with the bounds it lacks: on the size of a request's head, on the
time it takes to come, and on what still comes of a body that nobody wants any more.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_MOST = 32 * 1024  # bytes
REST_MOST = 1024 * 1024  # bytes; read so that a client that still sends gets to read its answer
HEAD_SECONDS = 20.0  # from a connection, or the first byte of a later request, to the head's end


class BoundedHttp(HttpToolsProtocol):
    """Closes a connection whose request is too long, or its head too slow."""

    _head = 0  # bytes of what came since the last request ended
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
        if self._in_head:
            self._head += len(data)
            if self._late is None:
                self._wait_for_head()
        super().data_received(data)
        if self._in_head and self._head > HEAD_MOST and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_headers_complete(self) -> None:
        self._in_head, self._head, self._rest = False, 0, 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.cycle.response_complete:
            self._rest += len(body)
            if self._rest > REST_MOST:
                self.transport.close()

    def on_message_complete(self) -> None:
        self._in_head, self._head = True, 0
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
