"""How long a clip's stages took on the device, without ever waiting for it: a GPU's work is queued
long before it is done, so the queueing thread's own clock tells little.
"""

from __future__ import annotations

import time

import torch

from ltxq.job import Stage


class StageClock:
    """One clip's. Stages follow each other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: list[tuple[Stage | None, torch.cuda.Event | float]] = []

    def begin(self, stage: Stage) -> None:
        """What is queued from here on is `stage`'s."""
        self._begun.append((stage, self._now()))

    def end(self) -> None:
        """What was queued so far is all."""
        self._begun.append((None, self._now()))

    def seconds(self) -> dict[Stage, float]:
        """By stage, once the device has done what was queued before `end`, which is waited for."""
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
        assert isinstance(ended, float)  # noqa: S101  one clock, one kind
        return ended - began
    assert not isinstance(ended, float)  # noqa: S101
    return began.elapsed_time(ended) / 1000
