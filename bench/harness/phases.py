"""What a run spends its time on, and when the time it was given is over. Knows no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """The parts of a run, one after the other, each with its seconds."""

    def __init__(self, limit: float | None = None) -> None:
        """`limit`: seconds from now on; None: as long as it takes."""
        self._began = time.perf_counter()
        self._limit = limit
        self.seconds: dict[str, float] = {}  # by phase, in the order they came

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is done inside, and say how long it took. Phases of one name add up."""
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
        """Whether what takes so many seconds would still end within the limit."""
        return self._limit is None or self.elapsed + seconds <= self._limit
