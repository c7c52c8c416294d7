"""What a worker process measures, until its supervisor is told: the supervisor serves `/metrics`,
so its figures outlive a process that dies. A tick of news a second, over the line they have anyway.

prometheus_client's own way for several processes, files mapped into memory, would need a folder to
be cleared at the right moments and could not carry gauges of a process that was killed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

TICK_SECONDS = 1.0  # between two reports; what a killed process measured since the last is lost
MOST_TIMINGS = 200  # in one report; each is one finished job's, and a report is one packet


class WorkerStats:
    """Counts, from any thread, the jobs in hand and what happened since the last report."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._timings: list[dict[str, float]] = []
        self._in_hand = self._on_gpu = 0  # jobs
        self._busy = self._since = 0.0  # seconds the GPU was held; since when it is

    def begins(self) -> None:
        """A job is claimed, and has the GPU."""
        with self._lock:
            self._in_hand += 1
            self._on_gpu += 1
            self._since = time.monotonic()

    def frees_gpu(self) -> None:
        """A job does not need it any more."""
        with self._lock:
            self._on_gpu -= 1
            self._busy += time.monotonic() - self._since

    def ends(self) -> None:
        """A job is done with."""
        with self._lock:
            self._in_hand -= 1

    def count(self, what: str) -> None:
        """One more of `what`: storage_failures, lease_failures."""
        with self._lock:
            self._counts[what] = self._counts.get(what, 0) + 1

    def finished(self, timings: Mapping[str, float]) -> None:
        """A job succeeded; seconds by stage, as VideoResult has them."""
        with self._lock:
            if len(self._timings) < MOST_TIMINGS:
                self._timings.append(dict(timings))

    def keep_reporting(
        self, tell: Callable[[dict[str, Any]], bool], ended: threading.Event
    ) -> None:
        """Until `ended`: what is in hand, and what happened since the supervisor was told last.

        Args:
            tell: whether the supervisor could be told; if not, the next report says it.
        """
        told_busy = 0.0
        while True:
            last = ended.wait(TICK_SECONDS)
            with self._lock:
                held = time.monotonic() - self._since if self._on_gpu else 0.0
                busy, on_gpu, spooled = (
                    self._busy + held,
                    self._on_gpu,
                    self._in_hand - self._on_gpu,
                )
                counts, self._counts = self._counts, {}
                timings, self._timings = self._timings, []
            figures = {
                "gpu_busy": round(busy - told_busy, 6),
                "on_gpu": on_gpu,
                "spooled": spooled,
                "counts": counts,
                "timings": timings,
            }
            if tell(figures):
                told_busy = busy
            else:
                self._put_back(counts, timings)
            if last:
                return

    def _put_back(self, counts: dict[str, int], timings: list[dict[str, float]]) -> None:
        with self._lock:
            for what, number in counts.items():
                self._counts[what] = self._counts.get(what, 0) + number
            self._timings = (timings + self._timings)[:MOST_TIMINGS]
