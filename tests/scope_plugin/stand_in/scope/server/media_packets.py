"""The packets in a processor's queues."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class MediaTimestamp:
    pts: int | None = None
    time_base: Fraction | None = None

    @property
    def is_valid(self) -> bool:
        return self.pts is not None and self.time_base is not None


@dataclass(frozen=True)
class VideoPacket:
    tensor: Any  # uint8 [1, H, W, 3]
    timestamp: MediaTimestamp = MediaTimestamp()


@dataclass(frozen=True)
class AudioPacket:
    audio: Any  # [C, S]
    sample_rate: int
    timestamp: MediaTimestamp = MediaTimestamp()
