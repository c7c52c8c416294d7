"""The media clock of one session, counted in samples of its sound: every frame and the sound that
belongs to it begin at the same number. Leaves what is played to `player.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction

SAMPLE_RATE = 48_000  # Hz: what WebRTC plays, so that Scope resamples nothing

# How Scope 0.2.4 plays after a stall (its core/pacing.py, server/audio_track.py): a picture that is
# over 0.5 s late is shown at once, and those queued behind it follow at their rate; the sound that
# was queued with them is played in one burst. While Scope is paused, its sound waits in the queue
# and its pictures do not. Both leave sound and picture apart. They are together again when
# both queues are empty and the time stamps jump: Scope shows the first picture after a jump when
# it comes. A jump is a step of at least 0.25 s and of 8 frames.
STALL_SECONDS = 0.4  # between two calls; after a shorter stall Scope catches up by itself
DRAIN_SECONDS = 0.1  # added to the time of what Scope holds: it may wake later than this plugin
JUMP_SECONDS, JUMP_FRAMES = 0.3, 10  # a little more than Scope asks for


class Timeline:
    """Time since the session's first output, as played so far and as the wall clock has it.

    What is played runs a little ahead of the wall. When it falls behind, since Scope was paused or
    the machine was busy, it jumps to the wall's time: Scope's own silence counts by that, and
    later time stamps below it would go back. After a stall, or a pause, it first waits until
    Scope has played all it holds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._zero: float | None = None  # the wall's time of the first output
        self._position = Fraction(0)  # samples; a frame need not be a whole number of them
        self._held = 0.0  # seconds that Scope had not played yet, at most, after the last output
        self._called_at = 0.0
        self._resume_at = 0.0

    def restart(self) -> None:
        """A new session: its time begins at 0 with its first output."""
        self._zero = None
        self._position = Fraction(0)
        self._resume_at = 0.0

    @property
    def ahead(self) -> float:
        """Seconds that are given out and not yet played; negative: time without any."""
        if self._zero is None:
            return 0.0
        return float(self._position / SAMPLE_RATE) - (self._clock() - self._zero)

    def drains(self, rate: Fraction) -> bool:
        """Whether Scope should get nothing now, since it may still play what it got before a stall.
        To be asked at each of Scope's calls: a stall is a time without any.

        Args:
            rate: frames per second of what was played last.
        """
        now = self._clock()
        idle, self._called_at = now - self._called_at, now
        if self._zero is None:
            return False
        if idle >= STALL_SECONDS:
            jump = max(JUMP_SECONDS, float(JUMP_FRAMES / rate))
            jumped_at = self._zero + float(self._position / SAMPLE_RATE) + jump
            self._resume_at = max(now + self._held + DRAIN_SECONDS, jumped_at)
        return now < self._resume_at

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
        self._held = self.ahead
        return [round(start + n * step) for n in range(frames + 1)]
