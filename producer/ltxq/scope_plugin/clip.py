"""A finished MP4, and its pictures and sound as Scope takes them. PyAV and torch are Scope's: they
are imported when the first clip is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ltxq.scope_plugin.timeline import SAMPLE_RATE

MOST_SECONDS = 30.0  # of sound that is decoded; no clip of the queue's is longer than 20


@dataclass(frozen=True)
class Clip:
    """An MP4 in memory, some megabytes; its frames would be a hundred."""

    data: bytes

    def rate(self) -> Fraction:
        """Frames per second.

        Raises:
            ValueError: there is no picture in it.
        """
        with _open(self.data) as container:
            rate = _video(container).average_rate
            if not rate:
                raise ValueError("the clip does not say its frame rate")
            return Fraction(rate)

    def sound(self) -> Any:
        """All of it: float32 tensor [2, S] in −1..1 at 48 kHz, its first sample that of the first
        picture; None: the clip is silent.
        """
        import av
        import torch

        with _open(self.data) as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp", layout="stereo", rate=SAMPLE_RATE)
            parts: list[Any] = []
            begins = 0.0  # seconds
            for frame in container.decode(stream):
                if not parts:
                    begins = frame.time or 0.0
                if (frame.time or 0.0) > MOST_SECONDS:
                    break
                parts += [torch.from_numpy(part.to_ndarray()) for part in resampler.resample(frame)]
            parts += [torch.from_numpy(part.to_ndarray()) for part in resampler.resample(None)]
            if not parts:
                return None
            sound = torch.cat(parts, dim=1).clamp(-1, 1)
            offset = round(begins * SAMPLE_RATE)
            if offset < 0:
                return sound[:, -offset:]
            return torch.nn.functional.pad(sound, (offset, 0)) if offset else sound

    def pictures(self, size: tuple[int, int] | None) -> Iterator[Any]:
        """Each frame as uint8 tensor [H, W, 3], RGB.

        Args:
            size: width and height to bring them to; None: their own, made even.
        """
        import torch
        from av.video.reformatter import Colorspace

        with _open(self.data) as container:
            stream = _video(container)
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                width, height = size or (frame.width & ~1, frame.height & ~1)
                # The worker's clips are BT.709. PyAV 16 reads that from nowhere, and heeds it only
                # beside another target (RGB has none). The exact flags of `encode_mp4.py` would
                # cost four times as much, for 2 of 255.
                rgb = frame.reformat(
                    width=width,
                    height=height,
                    format="rgb24",
                    src_colorspace=Colorspace.ITU709,
                    dst_colorspace=Colorspace.ITU601,
                )
                yield torch.from_numpy(rgb.to_ndarray())


def _open(data: bytes) -> Any:
    import av

    return av.open(io.BytesIO(data), "r", format="mp4")


def _video(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("there is no picture in the clip")
    return container.streams.video[0]
