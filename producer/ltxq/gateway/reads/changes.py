"""Hears which jobs change, in one thread for all who follow one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

from ltxq.errors import LtxqError

NEXT_SECONDS = 0.5  # the thread looks that often at whether it is still wanted
AGAIN_SECONDS = 1.0  # between attempts to hear again while the queue is away


class Changes(Protocol):
    """The ids of jobs that change."""

    def next(self, timeout: float) -> str | None:
        """One of them, or None after `timeout` seconds."""


class ChangeListener:
    """An event for each follower, set when its job may have changed.

    Args:
        changes: connects to the queue.
        loop: the followers'.
    """

    def __init__(
        self,
        changes: Callable[[], AbstractContextManager[Changes]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._changes = changes
        self._loop = loop
        self._followers: dict[str, set[asyncio.Event]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="ltxq-news", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether nobody is to follow any more."""
        return self._end.is_set()

    @contextmanager
    def of(self, job_id: str) -> Iterator[asyncio.Event]:
        """Set when the job may have changed; whoever waits clears it, and looks after that."""
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
        """Wake every follower: it is over."""
        self._end.set()
        self._wake(None)

    def join(self) -> None:
        """Wait for the thread's end."""
        self._thread.join()

    def _listen(self) -> None:
        while not self._end.is_set():
            with suppress(LtxqError), self._changes() as changes:
                self._tell(None)  # what was published meanwhile is lost
                while not self._end.is_set():
                    if (job_id := changes.next(NEXT_SECONDS)) is not None:
                        self._tell(job_id)
            self._end.wait(AGAIN_SECONDS)

    def _tell(self, job_id: str | None) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._wake, job_id)

    def _wake(self, job_id: str | None) -> None:
        """Wake the followers of one job, or all."""
        whose = self._followers.values() if job_id is None else [self._followers.get(job_id, ())]
        for followers in whose:
            for event in followers:
                event.set()
