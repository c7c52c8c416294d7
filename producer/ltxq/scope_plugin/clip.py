"""Decodes the MP4 of a finished job into pictures and sound.

PyAV and numpy come with Scope; they are imported when the first clip is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

from ltxq.scope_plugin.timeline import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Picture: TypeAlias = "NDArray[np.uint8]"  # [H, W, 3], RGB
Sound: TypeAlias = "NDArray[np.float32]"  # [2, S] in −1..1, 48 kHz

MAX_SOUND_SECONDS = 30.0  # decoding stops here; the queue's clips last at most 20 seconds


@dataclass(frozen=True)
class DownloadedClip:
    """An MP4 in memory. It has a few megabytes; its decoded frames would have a hundred."""

    data: bytes

    def frame_rate(self) -> Fraction:
        """Frames per second.

        Raises:
            ValueError: the MP4 has no video stream, or does not state its frame rate.
        """
        with _open(self.data) as container:
            rate = _video_stream(container).average_rate
            if not rate:
                raise ValueError("the MP4 does not state its frame rate")
            return Fraction(rate)

    def sound(self) -> Sound | None:
        """The whole sound track; sample 0 belongs to frame 0. None: the clip is silent."""
        import av
        import numpy as np

        with _open(self.data) as container:
            if not container.streams.audio:
                return None
            resampler = av.AudioResampler(format="fltp", layout="stereo", rate=SAMPLE_RATE)
            parts: list[Any] = []
            offset = 0.0  # seconds from the first picture to the first sample
            for frame in container.decode(container.streams.audio[0]):
                offset = offset if parts else frame.time
                if frame.time > MAX_SOUND_SECONDS:
                    break
                parts += [part.to_ndarray() for part in resampler.resample(frame)]
            parts += [part.to_ndarray() for part in resampler.resample(None)]
        if not parts:
            return None
        sound: Sound = np.concatenate(parts, axis=1).clip(-1, 1)
        missing = round(offset * SAMPLE_RATE)
        return np.pad(sound, ((0, 0), (missing, 0))) if missing > 0 else sound[:, -missing:]

    def pictures(self, size: tuple[int, int] | None) -> Iterator[Picture]:
        """Each frame as RGB.

        Args:
            size: width and height to scale to; None: the clip's size, rounded down to even.
        """
        from av.video.reformatter import Colorspace

        with _open(self.data) as container:
            stream = _video_stream(container)
            # One thread. Inside Scope, PyAV logs through Python, so a decoder thread that logs
            # waits for the GIL. PyAV holds the GIL while it frees a decoder and joins its threads:
            # with several threads, dropping a clip would deadlock the process.
            stream.thread_type = "NONE"
            for frame in container.decode(stream):
                width, height = size or (frame.width & ~1, frame.height & ~1)
                # The worker's clips are BT.709. PyAV 16 ignores the stream's colour space, and
                # applies src_colorspace only if dst_colorspace differs (RGB has none). The exact
                # flags of `encode/mp4.py` would take four times as long to correct 2 of 255.
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


def _video_stream(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("the MP4 has no video stream")
    return container.streams.video[0]
