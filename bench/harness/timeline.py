"""Measures durations on the device: by CUDA events on a GPU, by the clock on a CPU."""

from __future__ import annotations

import time
from collections import defaultdict

import torch


class Timeline:
    """Marks in the making of a clip. Each names the time since the mark before it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, torch.cuda.Event | float]] = []

    def start(self) -> None:
        """Discard all marks, and measure from now on."""
        self._marks.clear()
        self.mark("")

    def mark(self, name: str) -> None:
        """End a span called `name`, which began at the last mark. Equal names are summed."""
        if self._device.type != "cuda":
            self._marks.append((name, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((name, event))

    def count(self, name: str) -> int:
        """The number of marks with that name."""
        return sum(mark == name for mark, _ in self._marks)

    def spans(self) -> dict[str, float]:
        """Seconds by name, in order. Waits for the device."""
        spans: defaultdict[str, float] = defaultdict(float)
        for (_, before), (name, now) in zip(self._marks, self._marks[1:], strict=False):
            spans[name] += seconds_between(before, now)
        return dict(spans)


def seconds_between(before: torch.cuda.Event | float, now: torch.cuda.Event | float) -> float:
    """The seconds between two marks of the same device."""
    if isinstance(before, float) or isinstance(now, float):
        return float(now) - float(before)  # type: ignore[arg-type]
    now.synchronize()
    return before.elapsed_time(now) / 1000  # events count milliseconds


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
