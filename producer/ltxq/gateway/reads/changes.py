"""Receives the ids of changed jobs from Redis, in one thread for all followers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ltxq.client.transport import RESUBSCRIBE_SECONDS
from ltxq.errors import LtxqError
from ltxq.gateway.models import GatewayTransport

NEXT_SECONDS = 0.5  # how often the thread checks whether to end


class ChangeListener:
    """An `asyncio.Event` for each follower, set when its job may have changed. Create it on the
    event loop of the followers.
    """

    def __init__(self, transport: GatewayTransport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._followers: dict[str, set[asyncio.Event]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="ltxq-changes", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether followers must stop."""
        return self._end.is_set()

    @contextmanager
    def of(self, job_id: str) -> Iterator[asyncio.Event]:
        """Set when the job may have changed. The follower clears it before it reads the job."""
        event = asyncio.Event()
        self._followers.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            followers = self._followers[job_id]
            followers.discard(event)
            if not followers:
                del self._followers[job_id]

    def end(self) -> None:
        """Wake every follower, so that it sees `ended`."""
        self._end.set()
        self._wake(None)

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def _listen(self) -> None:
        while not self._end.is_set():
            with suppress(LtxqError), self._transport.all_changes() as changes:
                self._wake_soon(None)  # messages before the subscription are lost
                while not self._end.is_set():
                    if (job_id := changes.next(NEXT_SECONDS)) is not None:
                        self._wake_soon(job_id)
            self._end.wait(RESUBSCRIBE_SECONDS)

    def _wake_soon(self, job_id: str | None) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._wake, job_id)

    def _wake(self, job_id: str | None) -> None:
        """Wake the followers of one job; None: all followers."""
        every = self._followers.values()
        for followers in every if job_id is None else [self._followers.get(job_id, ())]:
            for event in followers:
                event.set()
