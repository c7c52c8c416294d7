"""A finished MP4, its pictures and its sound. PyAV and numpy are Scope's: they are imported when
the first clip is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ltxq.scope_plugin.timeline import SAMPLE_RATE

if TYPE_CHECKING:
    from ltxq.scope_plugin.showing import Picture, Sound

MOST_SECONDS = 30.0  # of sound that is decoded; no clip of the queue's is longer than 20


@dataclass(frozen=True)
class DownloadedClip:
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

    def sound(self) -> Sound | None:
        """All of it: [2, S] in −1..1 at 48 kHz, its first sample that of the first picture; None:
        the clip is silent.
        """
        import av
        import numpy as np

        with _open(self.data) as container:
            if not container.streams.audio:
                return None
            resampler = av.AudioResampler(format="fltp", layout="stereo", rate=SAMPLE_RATE)
            parts: list[Any] = []
            begins = 0.0  # seconds
            for frame in container.decode(container.streams.audio[0]):
                begins = begins if parts else frame.time
                if frame.time > MOST_SECONDS:
                    break
                parts += [part.to_ndarray() for part in resampler.resample(frame)]
            parts += [part.to_ndarray() for part in resampler.resample(None)]
        if not parts:
            return None
        sound: Sound = np.concatenate(parts, axis=1).clip(-1, 1)
        late = round(begins * SAMPLE_RATE)
        return np.pad(sound, ((0, 0), (late, 0))) if late > 0 else sound[:, -late:]

    def pictures(self, size: tuple[int, int] | None) -> Iterator[Picture]:
        """Each frame, [H, W, 3], RGB.

        Args:
            size: width and height to bring them to; None: their own, made even.
        """
        from av.video.reformatter import Colorspace

        with _open(self.data) as container:
            stream = _video(container)
            # One thread. Inside Scope, PyAV logs through Python: a decoder's thread that logs waits
            # for the GIL. PyAV frees a dropped decoder with the GIL held, waiting for its threads.
            stream.thread_type = "NONE"
            for frame in container.decode(stream):
                width, height = size or (frame.width & ~1, frame.height & ~1)
                # The worker's clips are BT.709. PyAV 16 reads that from nowhere, and heeds it only
                # beside another target (RGB has none). The exact flags of `encode/mp4.py` would
                # cost four times as much, for 2 of 255.
                rgb = frame.reformat(
                    width=width,
                    height=height,
                    format="rgb24",
                    src_colorspace=Colorspace.ITU709,
                    dst_colorspace=Colorspace.ITU601,
                )
                yield rgb.to_ndarray()


def _open(data: bytes) -> Any:
    import av

    return av.open(io.BytesIO(data), "r", format="mp4")


def _video(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("there is no picture in the clip")
    return container.streams.video[0]
