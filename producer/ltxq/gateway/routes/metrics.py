"""The gateway's own metrics: number and duration of HTTP requests. They are served at
`LTXQ_METRICS_ADDRESS`, which must not be public, together with the fleet's metrics.
"""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
UNKNOWN = "unknown"  # for unknown paths and methods, which would be unlimited label values
METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})


class Requests:
    """Measures every request of an application: ASGI middleware."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "ltxq_http_request_seconds",
            "Seconds from a request to the first byte of its answer, by route.",
            ("method", "route"),
            buckets=BUCKETS,
            registry=registry,
        )
        self._answers = Counter(
            "ltxq_http_requests",
            "Answers by route and status; 499: the client disconnected first.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._open = Gauge(
            "ltxq_http_open_requests",
            "Requests in progress, including event streams.",
            registry=registry,
        )

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app` with measurements."""

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
    """Method and the route's pattern below /v1; the pattern is known only after routing."""
    route: Any = scope.get("route")
    method = scope["method"] if scope["method"] in METHODS else UNKNOWN
    return method, getattr(route, "path", None) or scope.get("root_path") or UNKNOWN
