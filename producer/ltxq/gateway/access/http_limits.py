"""uvicorn's HTTP protocol (httptools) with limits that it lacks: on the size of a request's head,
on the time of a head, and on the rest of a body after the answer.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ltxq.gateway.openai.errors import Refused, answer

HEAD_MOST = 32 * 1024  # bytes
REST_MOST = 32 * 1024 * 1024  # bytes of a body read after the answer
REST_SECONDS = 10.0  # for these bytes
FRAMING_MOST = 2 * 1024 * 1024  # bytes of chunk sizes and trailers; 256 KiB in 1-byte chunks: 1.5 M
HEAD_SECONDS = 20.0  # from the connection, or a later request's first byte, to the head's end
STEP = 4 * 1024  # bytes for the parser at once: it does not report positions within them
ABORT = "ltxq.abort"  # in the scope: ends the connection at once, so that no client takes a cut
# answer for a whole one
BODY_ARRIVES = "ltxq.body_arrives"  # in the scope: tells whether more of the body is to come


class BoundedHttp(HttpToolsProtocol):
    """Closes the connection of a request whose head or framing is too long, or whose head is slow.

    The parser gets the received bytes in steps, and never more of a head than is allowed, so the
    limit does not depend on how the bytes arrive. If a step has the end of one request and the
    start of the next, the whole step counts for the next.
    """

    _step = 0  # bytes of the last step
    _head = 0  # bytes since the last request ended
    _framing = 0  # bytes sent with a body that are not part of it
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        start = 0
        while start < len(data) and not self.transport.is_closing():
            room = min(STEP, HEAD_MOST - self._head) if self._in_head else STEP
            if room == 0:
                self._refuse("The head of the request is too long.", "Shorten path and headers.")
                return
            self._parse(data[start : start + room])
            start += room

    def _parse(self, step: bytes) -> None:
        if self._in_head:
            self._head += len(step)
            if self._head_timer is None:
                self._start_timer()
        else:
            self._framing += len(step)
        self._step = len(step)
        super().data_received(step)
        if self._framing > FRAMING_MOST:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  it is uvicorn's
        """Refuse what is not HTTP, in the form of every error."""
        self._refuse(
            "The gateway cannot read this request: it is not valid HTTP/1.1.",
            "Check the request's first line and its headers.",
        )

    def _refuse(self, message: str, hint: str) -> None:
        refusal = answer(Refused(400, "invalid_request", message, hint=hint))
        head = [b"HTTP/1.1 400 Bad Request", *map(b": ".join, refusal.raw_headers)]
        head += [b"connection: close", b"\r\n"]
        self.transport.write(b"\r\n".join(head) + bytes(refusal.body))
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = self._step

    def on_headers_complete(self) -> None:
        self._in_head, self._head, self._framing = False, 0, 0
        self._stop_timer()
        super().on_headers_complete()
        cycle = self.cycle
        if self.scope["http_version"] == "1.0":
            cycle.__class__ = _UnframedAnswer  # uvicorn makes the cycle, and has not run it yet
        self.scope[BODY_ARRIVES] = lambda: cycle.more_body  # type: ignore[literal-required]
        self.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._framing = max(0, self._framing - len(body))

    def on_message_complete(self) -> None:
        self._in_head, self._head, self._framing = True, 0, 0
        super().on_message_complete()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_too_slow)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        self.transport.close()


class _UnframedAnswer(RequestResponseCycle):
    """An answer in HTTP/1.0, which has no chunks: the connection's end is the end of a body of
    unknown length. uvicorn would send chunks. Proxies ask in 1.0 too, nginx by default.
    """

    _until_close = False

    async def send(self, message: Message) -> None:  # type: ignore[override]
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            if b"content-length" not in names:
                self._until_close, self.chunked_encoding = True, False
        elif self._until_close:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)  # type: ignore[arg-type]


def closing_after_early_answers(app: ASGIApp) -> ASGIApp:
    """`app`, with the connection closed after each answer that comes before the end of the body.

    The answer announces it, because a client's next request on the connection would fail. The rest
    of the body is read first, because a client that is still sending would lose the answer.
    """

    async def closing(scope: Scope, receive: Receive, send: Send) -> None:
        early = False

        async def sent(message: Message) -> None:
            nonlocal early
            if message["type"] == "http.response.start" and scope[BODY_ARRIVES]():
                early = True
                headers = [*message["headers"], (b"connection", b"close")]
                message = {**message, "headers": headers}
            elif early and not message.get("more_body"):
                await send({**message, "more_body": True})
                await _skip_body(receive)
                message = {"type": "http.response.body"}
            await send(message)

        await app(scope, receive, sent if scope["type"] == "http" else send)

    return closing


async def _skip_body(receive: Receive) -> None:
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(REST_SECONDS):
            while size <= REST_MOST:
                message = await receive()
                if not message.get("more_body"):  # the end, or the client is gone
                    return
                size += len(message["body"])
