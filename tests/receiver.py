"""A receiver of webhooks for the tests: a real HTTP server on loopback, as good or bad as told."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from fleet import PATIENCE

SECRET = "whsec_" + "c2l4dGVlbiBieXRlcyBhbmQgdGhlbiBzb21l"
LOOPBACK = "127.0.0.0/8"


Answer = int | tuple[int, str] | Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Keeps what is posted, and answers as its receiver says."""

    def do_POST(self) -> None:
        receiver: Receiver = self.server.receiver  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with receiver.news:
            answer = (
                receiver.answers.pop(0)
                if receiver.answers
                else receiver.otherwise(self.headers["webhook-id"])
            )
            taken = answer == 204
            call = Call(self.path, dict(self.headers), body, taken, verified(self.headers, body))
            receiver.calls.append(call)
            receiver.news.notify_all()
        if callable(answer):
            answer(self)
            return
        status, *location = answer if isinstance(answer, tuple) else (answer,)
        self.send_response(status)
        for where in location:
            self.send_header("Location", where)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Call:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes
    taken: bool  # answered with success
    verified: Any  # what it says, or what was wrong with its signature or age when it came

    @property
    def event(self) -> Any:
        """What it says, if its signature is right."""
        if isinstance(self.verified, WebhookVerificationError):
            raise self.verified
        return self.verified


def verified(headers: Mapping[str, str], body: bytes) -> Any:
    """The event, or the error."""
    try:
        return Webhook(SECRET).verify(body, dict(headers))
    except WebhookVerificationError as error:
        return error


class Receiver:
    """An HTTP server on loopback that keeps what it is sent and answers as it is told."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.calls: list[Call] = []
        self.answers: list[Answer] = []
        self.otherwise: Callable[[str], Answer] = lambda _id: 204  # once those are used up
        self.news = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.receiver = self  # type: ignore[attr-defined]
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/done"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def wait_for(self, calls: int) -> list[Call]:
        with self.news:
            assert self.news.wait_for(lambda: len(self.calls) >= calls, PATIENCE), self.calls
        return self.calls

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE)
        self._server.server_close()
