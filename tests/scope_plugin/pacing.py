"""When a picture track of Scope 0.2.4 shows a picture: as its `core/pacing.py` does it."""

from __future__ import annotations

DRIFT = 0.010  # seconds a picture may be early
REANCHOR = 0.5  # seconds late from which pictures are not hurried any more
JUMP_SECONDS, JUMP_FRAMES = 0.25, 8.0  # a step of the stamps that is no longer one stream
WEIGHT = 0.2  # of the last step in the mean of steps


class Pacing:
    """Anchors the stamps to the wall, at first, after a jump, and when a picture is very late."""

    def __init__(self) -> None:
        self._anchor: tuple[float, float] | None = None  # a stamp, and the wall's time for it
        self._last = 0.0  # the last stamp
        self._step: float | None = None  # between two stamps, a running mean

    def wait(self, stamp: float, now: float) -> float:
        """Seconds from `now` until the picture of that stamp is shown."""
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
