"""Measures when a worker's pipeline has work for the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from bench.harness.timeline import Timeline
from ltxq.job import VideoRequest
from ltxq_worker.pipeline import ClipStream, Pipeline, Report

BUSY, IDLE, ELSE = "busy", "idle", ""


class TimedPipeline:
    """A `Pipeline` that sets marks on the device's timeline. The device counts as idle while
    nothing is queued on it: between two clips of a size, and while decoding waits for the encoder.
    """

    def __init__(self, pipeline: Pipeline, device: torch.device) -> None:
        self.model, self.versions = pipeline.model, pipeline.versions
        self._pipeline = pipeline
        self._line = Timeline(device)
        self._line.start()
        self._clips: dict[str, int] = {}  # by size
        self._last = ""

    def generate(self, request: VideoRequest, report: Report) -> ClipStream:
        """As `Pipeline.generate`."""
        size = f"{request.width}x{request.height}x{request.num_frames}"
        self._line.mark(f"{IDLE} {size}" if size == self._last else ELSE)
        self._last = size
        clip = self._pipeline.generate(request, report)
        self._line.mark(f"{BUSY} {size}")
        return replace(clip, frames=self._timed(clip.frames, size))

    def _timed(self, frames: Iterator[Any], size: str) -> Iterator[Any]:
        """The frames; the device is idle while the encoder takes one."""
        while True:
            self._line.mark(f"{IDLE} {size}")
            chunk = next(frames, None)
            self._line.mark(f"{BUSY} {size}")
            if chunk is None:
                break
            yield chunk
        self._clips[size] = self._clips.get(size, 0) + 1

    def figures(self) -> dict[str, dict[str, float]]:
        """By size: the number of clips, the seconds from the start of the first to the end of the
        last, and the share of them with work for the device. Waits for the device.
        """
        spans = self._line.spans()
        seen = {}
        for size, clips in self._clips.items():
            busy, idle = (spans.get(f"{what} {size}", 0.0) for what in (BUSY, IDLE))
            seen[size] = {
                "jobs": clips, "seconds": busy + idle, "share busy": busy / (busy + idle)
            }  # fmt: skip
        return seen

    def start(self) -> None:
        """Discard all figures, and measure from now on."""
        self._line.start()
        self._clips.clear()
        self._last = ""
