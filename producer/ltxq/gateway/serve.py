"""Runs the gateway: opens the socket, serves the application, and shuts down gracefully."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType

import uvicorn

from ltxq.errors import ConfigurationError, QueueUnavailable, StorageUnavailable
from ltxq.gateway.access.browser_guard import is_loopback
from ltxq.gateway.access.cross_origin import open_to_pages
from ltxq.gateway.access.http_limits import BoundedHttp, closing_after_early_answers
from ltxq.gateway.access.keys import ApiKeys
from ltxq.gateway.access.listening import listening, shown
from ltxq.gateway.app import make_app
from ltxq.gateway.models import GatewayTransport
from ltxq.gateway.routes.metrics import Requests
from ltxq.ops.metrics import new_registry, served_metrics
from ltxq.settings import Settings
from ltxq.stopping import StopRequests, stop_signals
from ltxq.systemd import Service

log = logging.getLogger("ltxq.gateway")

FILES_MOST = 65_536  # open files, connections included
CHECK_SECONDS = 10.0  # for the storage at the start: one that hangs must not hold the gateway up
GRACE_SECONDS = 30  # for requests in progress at shutdown
# An idle connection is closed by the client or proxy, never by the gateway while a request is on
# its way. Proxies keep theirs for up to 600 seconds (Google's load balancers; nginx and AWS: 60).
IDLE_SECONDS = 620


def serve(settings: Settings, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP, then finish the requests in progress.

    Args:
        port: 0: any free port.
        ready: called with the URL when the gateway listens.

    Raises:
        ConfigurationError: `host` is public and there are no API keys; or the port is taken; or
            Redis would refuse the work, or lose jobs.
        StorageRefused: the bucket refuses a call that the gateway makes.
    """
    if settings.is_gateway:
        raise ConfigurationError(
            "LTXQ_URL is the URL of a gateway, but a gateway needs Redis itself.",
            hint="Set LTXQ_URL to redis://…, rediss://…, unix://… or sentinel://…",
        )
    only_here = not ApiKeys.from_settings(settings)
    registry = new_registry()
    with (
        listening(host, port, only_here=only_here) as sockets,
        served_metrics(settings, registry),
    ):
        url = f"http://{shown(host)}:{sockets[0].getsockname()[1]}"
        _check_content(settings, host)
        app = make_app(settings.model_copy(update={"public_url": settings.public_url or url}))
        _check_storage(app.state.transport)
        _check_redis(app.state.transport)
        config = uvicorn.Config(
            closing_after_early_answers(
                Requests(registry).around(open_to_pages(app, settings.cors_origins))
            ),
            http=BoundedHttp,
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            proxy_headers=False,  # the gateway uses no client addresses
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        server = _Server(
            config,
            started=lambda: ready(url),
            ending=lambda: app.state.gateway.queue.stop_following(),
        )
        _allow_connections()
        _tune_garbage_collection()
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(server.serve(sockets=sockets))


def _check_content(settings: Settings, host: str) -> None:
    if settings.content != "proxy":
        return
    if not settings.s3_bucket:
        raise ConfigurationError(
            "LTXQ_CONTENT=proxy needs a bucket, and LTXQ_S3_BUCKET is not set.",
            hint="Set LTXQ_S3_BUCKET, LTXQ_S3_ENDPOINT and the storage's keys, as for workers.",
        )
    if settings.public_url is None and not is_loopback(host):
        raise ConfigurationError(
            "LTXQ_CONTENT=proxy needs the gateway's address for viewers, and LTXQ_PUBLIC_URL is "
            "not set.",
            hint="Set LTXQ_PUBLIC_URL, such as https://clips.example.com.",
        )


def _check_storage(transport: GatewayTransport) -> None:
    """Try what the gateway does in the bucket; a storage that is away now may come back.

    Raises:
        StorageRefused: names the call, and the right to grant.
    """
    checked: Future[None] = Future()

    def check() -> None:
        try:
            transport.check_storage()
            checked.set_result(None)
        except BaseException as exc:  # noqa: BLE001  the caller raises it
            checked.set_exception(exc)

    threading.Thread(target=check, name="storage", daemon=True).start()
    try:
        checked.result(CHECK_SECONDS)
    except StorageUnavailable as exc:
        log.warning("The storage does not answer yet: %s", exc)
    except TimeoutError:
        log.warning("The storage does not answer yet: it was silent for %g s.", CHECK_SECONDS)


def _check_redis(transport: GatewayTransport) -> None:
    """Refuse a Redis that would refuse the work; while it is away, the gateway answers 503."""
    try:
        transport.check_queue()
    except QueueUnavailable as exc:
        log.warning("Redis accepts no jobs now. Until it does the gateway answers 503: %s", exc)


def _allow_connections() -> None:
    """Raise the limit of open files, which is often 1,024, as far as the system allows."""
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = FILES_MOST if hard == resource.RLIM_INFINITY else min(hard, FILES_MOST)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _tune_garbage_collection() -> None:
    """Leave the loaded modules out of garbage collection: that took a fifth of an answer's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


class _Server(uvicorn.Server):
    """Calls `started` when it serves and `ending` before it shuts down: open event streams must end
    then, or the shutdown waits for them.
    """

    def __init__(
        self, config: uvicorn.Config, *, started: Callable[[], None], ending: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_started = started
        self._on_ending = ending
        self._requests = StopRequests()
        self._service = Service()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn's, where a second SIGINT does not wait for requests in progress."""
        if self._requests.note(sig):
            super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but it does not raise the signal again after the shutdown."""
        before = {number: signal.signal(number, self.handle_exit) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._service.ready()
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stopping()
        self._on_ending()
        await super().shutdown(sockets)
