"""Times the phases of a run, and checks its time limit. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """The consecutive phases of a run, with their durations."""

    def __init__(self, limit: float | None = None) -> None:
        """`limit`: seconds from now on; None: no limit."""
        self._began = time.perf_counter()
        self._limit = limit
        self.seconds: dict[str, float] = {}  # by phase, in order

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body and print its duration. Phases of the same name are summed."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            print(f"[{self.elapsed:6.1f} s] {name}: {took:.1f} s", flush=True)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began

    def allows(self, seconds: float = 0.0) -> bool:
        """Whether work that takes `seconds` would end within the limit."""
        return self._limit is None or self.elapsed + seconds <= self._limit
