"""The media clock of one session, counted in samples of its sound: every frame and the sound that
belongs to it begin at the same number. Leaves what is played to `player.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction

SAMPLE_RATE = 48_000  # Hz: what WebRTC plays, so that Scope resamples nothing


class Timeline:
    """Time since the session's first output, as played so far and as the wall clock has it.

    What is played runs a little ahead of the wall. When it falls behind, since Scope was paused or
    the machine was busy, it jumps to the wall's time: Scope's own silence counts by that, and
    later time stamps below it would go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._zero: float | None = None  # the wall's time of the first output
        self._position = Fraction(0)  # samples; a frame need not be a whole number of them

    def restart(self) -> None:
        """A new session: its time begins at 0 with its first output."""
        self._zero = None
        self._position = Fraction(0)

    @property
    def ahead(self) -> float:
        """Seconds that are given out and not yet played; negative: time without any."""
        if self._zero is None:
            return 0.0
        return float(self._position / SAMPLE_RATE) - (self._clock() - self._zero)

    def advance(self, frames: int, rate: Fraction) -> list[int]:
        """Give the next `frames` frames at `rate` their time: where each one begins, and where the
        last one ends, in samples.
        """
        now = self._clock()
        self._zero = now if self._zero is None else self._zero
        start, wall = self._position, (now - self._zero) * SAMPLE_RATE
        if start < wall:
            start = Fraction(round(wall))
        step = SAMPLE_RATE / rate
        self._position = start + frames * step
        return [round(start + n * step) for n in range(frames + 1)]
