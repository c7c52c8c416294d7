"""A job's changes from a gateway, as server-sent events. Where events do not arrive, the watcher
reads the job at intervals.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

from ltxq.client.http_connection import CONNECT_SECONDS, GatewayConnection

if TYPE_CHECKING:
    import httpx2

SILENT_SECONDS = 40.0  # a gateway sends something every 15 s; longer silence is a dead connection
LIVE_LOOK_SECONDS = 15.0  # between readings of a job while its events arrive
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between attempts to connect
LONGEST_EVENT = 1024**2  # bytes


class Events:
    """Receives the events at `path` in a thread until it is closed."""

    def __init__(self, gateway: GatewayConnection, path: str) -> None:
        self._gateway, self._path = gateway, path
        self._condition = threading.Condition()
        self._changed = False
        self._live = False  # events arrive
        self._closed = threading.Event()
        self._response: httpx2.Response | None = None
        self._thread = threading.Thread(target=self._listen, name="ltxq-events", daemon=True)
        self._thread.start()

    @property
    def look_after(self) -> float:
        """Seconds after which to read the job although no change was reported."""
        return LIVE_LOOK_SECONDS if self._live else self._gateway.poll_seconds

    def wait(self, timeout: float) -> bool:
        """True as soon as the job may have changed; False after `timeout` seconds."""
        with self._condition:
            changed = self._condition.wait_for(lambda: self._changed, timeout)
            self._changed = False
            return changed

    def close(self) -> None:
        """Disconnect. The thread then ends by itself; an open stream ends at once."""
        with self._condition:
            self._closed.set()
            response = self._response
        if response is not None:
            _disconnect(response)

    def _listen(self) -> None:
        pause = FIRST_PAUSE
        while not self._closed.is_set():
            if self._receive():
                pause = FIRST_PAUSE
                self._notify(live=False)
            if self._closed.wait(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE)

    def _receive(self) -> bool:
        """Receive events until the stream ends; whether there were any."""
        import httpx2

        timeout = httpx2.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS)
        headers = {"Accept": "text/event-stream"}
        received = False
        # No error leaves here: the watcher reads the job instead, and that reading raises it.
        with (
            contextlib.suppress(httpx2.HTTPError, httpx2.StreamError, OSError, RuntimeError),
            self._gateway.stream(self._path, headers=headers, timeout=timeout) as response,
        ):
            with self._condition:
                if self._closed.is_set():
                    return False
                self._response = response
            if response.status_code == 200:
                for _ in httpx2.EventSource(response, LONGEST_EVENT):
                    received = True
                    self._notify(live=True)
        with self._condition:
            self._response = None
        return received

    def _notify(self, *, live: bool) -> None:
        with self._condition:
            self._changed, self._live = True, live
            self._condition.notify_all()


def _disconnect(response: httpx2.Response) -> None:
    """Shut down the socket that another thread reads: that thread then reads end-of-file."""
    stream: Any = response.extensions.get("network_stream")
    connection = stream and stream.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):  # of the plain socket, below TLS
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
