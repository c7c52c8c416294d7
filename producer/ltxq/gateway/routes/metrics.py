"""The gateway's `/metrics`, on an address of its own that is not for the public: what it was asked
and how long it took; and the fleet's figures, which are there also when no worker is.
"""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
UNKNOWN = "unknown"  # in place of paths there are not: anyone may ask for any
METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})


class Requests:
    """Measures every request of an application. Used as ASGI middleware: `Requests.around`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "ltxq_http_request_seconds",
            "From a request to its answer's first byte, by route.",
            ("method", "route"),
            buckets=BUCKETS,
            registry=registry,
        )
        self._answers = Counter(
            "ltxq_http_requests",
            "Answers by route and status; 499: the client went away first.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._open = Gauge(
            "ltxq_http_open_requests", "Under way, event streams among them.", registry=registry
        )

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app`, measured."""

        async def measured(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began, status = time.perf_counter(), 0

            async def sent(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    self._seconds.labels(*_route(scope)).observe(time.perf_counter() - began)
                await send(message)

            with self._open.track_inprogress():
                try:
                    await app(scope, receive, sent)
                finally:
                    self._answers.labels(*_route(scope), str(status or 499)).inc()

        return measured


def _route(scope: Scope) -> tuple[str, str]:
    """Method and the route's pattern below /v1, known once the request was routed."""
    route: Any = scope.get("route")
    method = scope["method"] if scope["method"] in METHODS else UNKNOWN
    return method, getattr(route, "path", None) or scope.get("root_path") or UNKNOWN
