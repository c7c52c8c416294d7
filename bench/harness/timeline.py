"""What took how long, in the device's own time: CUDA events on a GPU, the clock on a CPU."""

from __future__ import annotations

import time
from collections import defaultdict

import torch


class Timeline:
    """Marks along a clip's way. Each says what went on since the one before it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, torch.cuda.Event | float]] = []

    def start(self) -> None:
        """Forget what was; what comes is measured from here."""
        self._marks.clear()
        self.mark("")

    def mark(self, name: str) -> None:
        """Until now it was `name`. Several of one name add up."""
        if self._device.type != "cuda":
            self._marks.append((name, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((name, event))

    def count(self, name: str) -> int:
        """How many marks have that name."""
        return sum(mark == name for mark, _ in self._marks)

    def spans(self) -> dict[str, float]:
        """Seconds by name, in the order they came; waits for the device."""
        spans: defaultdict[str, float] = defaultdict(float)
        for (_, before), (name, now) in zip(self._marks, self._marks[1:], strict=False):
            spans[name] += seconds_between(before, now)
        return dict(spans)


def seconds_between(before: torch.cuda.Event | float, now: torch.cuda.Event | float) -> float:
    """Of two marks of one device."""
    if isinstance(before, float) or isinstance(now, float):
        return float(now) - float(before)  # type: ignore[arg-type]
    now.synchronize()
    return before.elapsed_time(now) / 1000  # events count milliseconds


def wait_for(device: torch.device) -> None:
    """All that was queued is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
