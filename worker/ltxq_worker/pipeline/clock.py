"""Measures the stages of a clip on the device without blocking it.

GPU work is queued long before it runs, so the clock of the queueing thread would measure the wrong
thing.
"""

from __future__ import annotations

import time

import torch

from ltxq.job import Stage


class StageClock:
    """Times the consecutive stages of one clip."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: list[tuple[Stage | None, torch.cuda.Event | float]] = []

    def begin(self, stage: Stage) -> None:
        """Count work that is queued from now on as `stage`."""
        self._begun.append((stage, self._now()))

    def end(self) -> None:
        """End the last stage: all work is queued."""
        self._begun.append((None, self._now()))

    def seconds(self) -> dict[Stage, float]:
        """Seconds by stage. Waits until the device has done all work queued before `end`."""
        _, last = self._begun[-1]
        if isinstance(last, torch.cuda.Event):
            last.synchronize()
        return {
            stage: _between(began, ended)
            for (stage, began), (_, ended) in zip(self._begun, self._begun[1:], strict=False)
            if stage is not None
        }

    def _now(self) -> torch.cuda.Event | float:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(began: torch.cuda.Event | float, ended: torch.cuda.Event | float) -> float:
    if isinstance(began, float):
        assert isinstance(ended, float)  # noqa: S101  a device has one kind of mark
        return ended - began
    assert not isinstance(ended, float)  # noqa: S101
    return began.elapsed_time(ended) / 1000
