"""A session's media clock. It counts samples of sound: a frame and its sound begin at one number.

`player.py` chooses what to play; this module gives it its time.
"""

from __future__ import annotations

import time
from fractions import Fraction

SAMPLE_RATE = 48_000  # Hz: what WebRTC plays, so that Scope resamples nothing

# How Scope 0.2.4 plays after a stall (its core/pacing.py, server/audio_track.py): a picture that is
# over 0.5 s late is shown at once, and those queued behind it follow at their frame rate, but
# the queued sound is played in one burst. While Scope is paused, its queued sound waits and its
# queued pictures do not. In both cases picture and sound come apart. They are together again once
# both queues are empty and the time stamps jump by at least 0.25 s and 8 frames: Scope shows the
# first picture after a jump when it arrives.
STALL_SECONDS = 0.4  # between two calls; after a shorter stall Scope catches up by itself
DRAIN_SECONDS = 0.1  # added to the time to play Scope's queues: it may resume later than the plugin
JUMP_SECONDS, JUMP_FRAMES = 0.3, 10  # a little more than Scope's limits


class Timeline:
    """Media time and wall-clock time since the session's first output.

    Media time runs a little ahead of the wall clock. When it falls behind (Scope was paused, or the
    machine was busy), it jumps to the wall clock: Scope stamps its own silence by the wall clock,
    and lower time stamps afterwards would go back. After a stall or a pause the timeline first
    waits until Scope has played its queues.
    """

    def __init__(self) -> None:
        self._started_at: float | None = None  # wall-clock time of the first output
        self._position = Fraction(0)  # samples; a frame need not be a whole number of them
        self._queued = 0.0  # seconds in Scope's queues after the last output, at most
        self._called_at = 0.0
        self._resume_at = 0.0

    def restart(self) -> None:
        """Start a session: its media time is 0 at its first output."""
        self._started_at = None
        self._position = Fraction(0)
        self._resume_at = 0.0

    @property
    def ahead(self) -> float:
        """Seconds of output that Scope has not played yet; negative: Scope ran out of it."""
        if self._started_at is None:
            return 0.0
        return float(self._position / SAMPLE_RATE) - (time.monotonic() - self._started_at)

    def must_drain(self, rate: Fraction) -> bool:
        """Whether to output nothing now, because Scope still plays what it queued before a stall.

        Call this at each of Scope's calls: it detects a stall by the time between two of them.

        Args:
            rate: frames per second of the last output.
        """
        now = time.monotonic()
        pause, self._called_at = now - self._called_at, now
        if self._started_at is None:
            return False
        if pause >= STALL_SECONDS:
            jump = max(JUMP_SECONDS, float(JUMP_FRAMES / rate))
            jumped_at = self._started_at + float(self._position / SAMPLE_RATE) + jump
            self._resume_at = max(now + self._queued + DRAIN_SECONDS, jumped_at)
        return now < self._resume_at

    def advance(self, frames: int, rate: Fraction) -> list[int]:
        """Assign media time to the next `frames` frames at `rate` frames per second.

        Returns:
            The sample at which each frame begins, and the one at which the last frame ends.
        """
        now = time.monotonic()
        if self._started_at is None:
            self._started_at = now
        wall = (now - self._started_at) * SAMPLE_RATE
        start = Fraction(round(wall)) if self._position < wall else self._position
        step = SAMPLE_RATE / rate
        self._position = start + frames * step
        self._queued = self.ahead
        return [round(start + n * step) for n in range(frames + 1)]
