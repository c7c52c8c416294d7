"""When Scope 0.2.4 shows a picture, by the rules of its `core/pacing.py`."""

from __future__ import annotations

DRIFT = 0.010  # seconds a picture may be early
REANCHOR = 0.5  # seconds; a picture that is later than that is shown at once and re-anchors
JUMP_SECONDS, JUMP_FRAMES = 0.25, 8.0  # a larger step is a new start
WEIGHT = 0.2  # of the last step in the running mean


class Pacing:
    """Anchors time stamps to the wall clock: first, after a jump, and after a very late picture."""

    def __init__(self) -> None:
        self._anchor: tuple[float, float] | None = None  # a time stamp and its wall-clock time
        self._last = 0.0  # the last stamp
        self._step: float | None = None  # running mean between two time stamps

    def wait(self, stamp: float, now: float) -> float:
        """Seconds from `now` until the picture with this time stamp is shown."""
        if self._anchor is None:
            return self._anchor_to(stamp, now)
        step = stamp - self._last
        jumps = self._step and step >= max(JUMP_SECONDS, JUMP_FRAMES * self._step)
        if step <= 0 or jumps:
            self._step = None
            return self._anchor_to(stamp, now)
        self._step = step if self._step is None else (1 - WEIGHT) * self._step + WEIGHT * step
        self._last = stamp
        late = (now - self._anchor[1]) - (stamp - self._anchor[0])
        if late >= REANCHOR:
            return self._anchor_to(stamp, now)
        return -late if late < -DRIFT else 0.0

    def _anchor_to(self, stamp: float, now: float) -> float:
        self._anchor, self._last = (stamp, now), stamp
        return 0.0
