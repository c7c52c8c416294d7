"""A job's changes from a gateway, as server-sent events; without them, when to look at it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS = 2.0
SILENT_SECONDS = 40.0  # a gateway says something every 15; after so long without, it is gone
LIVE_LOOK_SECONDS = 15.0  # between looks at a job whose changes are heard
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between attempts to listen
LONGEST_EVENT = 1024**2  # bytes


class Events:
    """Listens in a thread of its own until it is closed.

    Args:
        path: of the job's events.
        poll_seconds: between looks at the job while nothing can be heard.
    """

    def __init__(self, http: httpx2.Client, path: str, poll_seconds: Callable[[], float]) -> None:
        self._http, self._path, self._poll_seconds = http, path, poll_seconds
        self._news = threading.Condition()
        self._heard = False
        self._live = False
        self._closed = threading.Event()
        self._response: httpx2.Response | None = None
        self._thread = threading.Thread(target=self._listen, name="ltxq-events", daemon=True)
        self._thread.start()

    @property
    def look_after(self) -> float:
        """Seconds after which to look at the job although nothing was heard."""
        return LIVE_LOOK_SECONDS if self._live else self._poll_seconds()

    def wait(self, timeout: float) -> bool:
        """True as soon as the job may have changed, False after `timeout` seconds without."""
        with self._news:
            heard = self._news.wait_for(lambda: self._heard, timeout)
            self._heard = False
            return heard

    def close(self) -> None:
        """Stop listening. The thread ends by itself, at once if it waits for an event."""
        with self._news:
            self._closed.set()
            response = self._response
        if response is not None:
            _hang_up(response)

    def _listen(self) -> None:
        pause = FIRST_PAUSE
        while not self._closed.is_set():
            if self._hear_out():
                pause = FIRST_PAUSE
                self._tell(live=False)
            if self._closed.wait(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE)

    def _hear_out(self) -> bool:
        """Listen until the events end or are cut off; whether there were any."""
        import httpx2

        timeout = httpx2.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS)
        headers = {"Accept": "text/event-stream"}
        heard = False
        # Whatever ends them, the job is looked at instead; `get` says what is wrong.
        with (
            contextlib.suppress(httpx2.HTTPError, httpx2.StreamError, OSError, RuntimeError),
            self._http.stream("GET", self._path, headers=headers, timeout=timeout) as response,
        ):
            with self._news:
                if self._closed.is_set():
                    return False
                self._response = response
            if response.status_code == 200:
                for _ in httpx2.EventSource(response, LONGEST_EVENT):
                    heard = True
                    self._tell(live=True)
        with self._news:
            self._response = None
        return heard

    def _tell(self, *, live: bool) -> None:
        with self._news:
            self._heard, self._live = True, live
            self._news.notify_all()


def _hang_up(response: httpx2.Response) -> None:
    """End a stream that another thread reads: it reads the end of it."""
    stream: Any = response.extensions.get("network_stream")
    connection = stream and stream.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):  # TLS or not, the connection below
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
