"""The process: a socket, an application on it, and an end without haste."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from ltxq.errors import ConfigurationError
from ltxq.gateway.access.browser_guard import is_loopback
from ltxq.gateway.access.http_limits import BoundedHttp
from ltxq.gateway.access.keys import ApiKeys
from ltxq.gateway.app import make_app
from ltxq.gateway.routes.metrics import Requests
from ltxq.ops.metrics import new_registry, served_metrics
from ltxq.settings import Settings

log = logging.getLogger("ltxq.gateway")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
FILES_MOST = 65_536  # connections among them
GRACE_SECONDS = 30  # for requests under way at the end


def serve(settings: Settings, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; then let what is under way finish.

    Args:
        port: 0: any that is free.
        ready: called with the address once it listens.

    Raises:
        ConfigurationError: there are no keys for a host others can reach; or the port is taken.
    """
    if settings.is_gateway:
        raise ConfigurationError(
            "LTXQ_URL is a gateway's, and a gateway stands before a Redis.",
            hint="Point it at the queue: redis://… or rediss://…",
        )
    if not ApiKeys.from_settings(settings) and not is_loopback(host):
        raise ConfigurationError(
            f"Without API keys the gateway listens on this machine alone, not on {host}.",
            hint="Make a key with `ltxq key NAME` and set LTXQ_API_KEYS.",
        )
    registry = new_registry()
    with _listening(host, port) as listener, served_metrics(settings, registry):
        app = make_app(settings)
        config = uvicorn.Config(
            Requests(registry).around(app),
            http=BoundedHttp,
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            proxy_headers=False,  # who asks is said by keys, not by addresses
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        server = _Server(
            config,
            started=lambda: ready(url),
            ending=lambda: app.state.gateway.queue.stop_following(),
        )
        _allow_connections()
        _calm_collector()
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(server.serve(sockets=[listener]))


def _allow_connections() -> None:
    """Let this process have many: often it may have 1,024 files at first, and more if it asks."""
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = FILES_MOST if hard == resource.RLIM_INFINITY else min(hard, FILES_MOST)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _calm_collector() -> None:
    """What is loaded by now stays: looking through it for garbage, over and over, cost a fifth of
    the time of an answer.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


class _Server(uvicorn.Server):
    """Says when it serves, and when it is about to end: for event streams it would wait long."""

    def __init__(
        self, config: uvicorn.Config, *, started: Callable[[], None], ending: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._when_started = started
        self._when_ending = ending

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the process is not killed by the signal once all is done."""
        before = {number: signal.signal(number, self.handle_exit) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._when_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._when_ending()
        await super().shutdown(sockets)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as exc:
        raise ConfigurationError(
            f"The gateway cannot listen on {host}, port {port}: {exc.strerror or exc}.",
            hint="Stop what listens there, or choose another with --port.",
        ) from None
