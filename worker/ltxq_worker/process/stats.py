"""What a worker process measures. Once a second it reports to its supervisor over the control
channel; the supervisor serves `/metrics`, so counters go on when a process dies.

prometheus_client's own multiprocess mode maps files into memory: its folder must be cleared at the
right moments, and gauges of a killed process would stay.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

TICK_SECONDS = 1.0  # between two reports; a killed process loses what it measured since the last
MOST_TIMINGS = 200  # in one report, which is one packet; each is one finished job's


class WorkerStats:
    """The jobs in hand, and what happened since the last report. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._timings: list[dict[str, float]] = []
        self._in_hand = self._on_gpu = 0  # jobs
        self._busy = 0.0  # seconds for which a job held the GPU
        self._since = 0.0  # the moment since which a job holds it

    def begins(self) -> None:
        """A job was claimed and holds the GPU."""
        with self._lock:
            self._in_hand += 1
            self._on_gpu += 1
            self._since = time.monotonic()

    def frees_gpu(self) -> None:
        """A job no longer holds the GPU."""
        with self._lock:
            self._on_gpu -= 1
            self._busy += time.monotonic() - self._since

    def ends(self) -> None:
        """The worker has stopped working on a job."""
        with self._lock:
            self._in_hand -= 1

    def count(self, what: str) -> None:
        """Count one of storage_failures or lease_failures."""
        with self._lock:
            self._counts[what] = self._counts.get(what, 0) + 1

    def finished(self, timings: Mapping[str, float]) -> None:
        """A job succeeded. `timings`: seconds by stage, as in `VideoResult`."""
        with self._lock:
            if len(self._timings) < MOST_TIMINGS:
                self._timings.append(dict(timings))

    def keep_reporting(
        self, send: Callable[[dict[str, Any]], bool], ended: threading.Event
    ) -> None:
        """Report every second until `ended`.

        Args:
            send: sends a report; False if it could not be sent. The next one then has it too.
        """
        reported_busy = 0.0
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
                "gpu_busy": round(busy - reported_busy, 6),
                "on_gpu": on_gpu,
                "spooled": spooled,
                "counts": counts,
                "timings": timings,
            }
            if send(figures):
                reported_busy = busy
            else:
                self._put_back(counts, timings)
            if last:
                return

    def _put_back(self, counts: dict[str, int], timings: list[dict[str, float]]) -> None:
        with self._lock:
            for what, number in counts.items():
                self._counts[what] = self._counts.get(what, 0) + number
            self._timings = (timings + self._timings)[:MOST_TIMINGS]
