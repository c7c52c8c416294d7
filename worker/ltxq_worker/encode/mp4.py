"""Writes an MP4 by PyAV: frames as BT.709 H.264, samples as AAC."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from numpy.typing import NDArray

from ltxq.errors import PermanentError
from ltxq_worker.pipeline import Sound

# Noisy 768×512 frames on two cores: veryfast 106 frames a second, faster 89, fast 75, medium 58,
# and `faster` needs 7 % fewer bytes than `veryfast` for the same visual quality. At CRF 18 a
# difference from the source is no longer visible.
X264 = {"preset": "faster", "crf": "18"}

# swscale and `decode/yuv.py` make a chroma sample of two columns of pixels: it lies between them.
# H.264's default is on the left one. Players that ask for the place, as FFmpeg does, are right by
# this tag; browsers do not ask, and take the middle.
CHROMA = {"chroma_sample_location": "center"}

# Fixed, since x264's output depends on the number of threads: the same frames make the same file on
# every machine. More than four gain little on a clip of 768×512, and other clips need cores too.
# (Below a width of 128 files differ: x264's lookahead then reads uninitialised memory.)
X264_THREADS = 4

AAC_BIT_RATE = 192_000  # bits a second: more than FFmpeg's AAC needs to be transparent in stereo
AAC_FRAME = 1024  # samples in an AAC frame

# Without these flags swscale takes a shortcut with errors of up to 3 of 255.
_EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)


def exact_rate(rate: float) -> Fraction:
    """The exact fraction of a rate in frames per second: 23.976 becomes 24000/1001."""
    ntsc = Fraction(round(rate * 1.001) * 1000, 1001)
    if abs(rate - ntsc) < 1e-4:
        return ntsc
    return Fraction(rate).limit_denominator(1000)


def as_yuv420(picture: av.VideoFrame) -> av.VideoFrame:
    """Convert an RGB picture to BT.709 YUV 4:2:0, limited range; a yuv420p picture is returned
    unchanged.
    """
    if picture.format.name == "yuv420p":
        return picture
    return picture.reformat(
        format="yuv420p",
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        dst_colorspace=Colorspace.ITU709,
        dst_color_primaries=ColorPrimaries.BT709,
        dst_color_trc=ColorTrc.BT709,
        interpolation=_EXACT,
        threads=1,
    )


def yuv_picture(planes: NDArray[np.uint8]) -> av.VideoFrame:
    """A picture from planes in the format of `as_yuv420`, uint8 [3H/2, W]."""
    picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
    picture.color_range, picture.colorspace = ColorRange.MPEG, Colorspace.ITU709
    picture.color_primaries, picture.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return picture


class Mp4Writer:
    """An open MP4. Takes frames one by one, in order; leaving the `with` closes the file."""

    def __init__(self, path: Path, *, size: tuple[int, int], rate: Fraction) -> None:
        """`size`: width and height in pixels, both even."""
        self.packets = 0  # coded frames written so far
        self._rate = rate
        self._container = av.open(
            str(path),
            "w",
            format="mp4",
            options={
                "movflags": "+faststart",
                # The whole sound is written first: the muxer holds it until pictures arrive.
                "max_interleave_delta": "0",
                # The default, milliseconds, makes durations wrong by half an AAC frame.
                "movie_timescale": "90000",
            },
        )
        video = self._container.add_stream("libx264", rate=rate, options=X264 | CHROMA)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        context = video.codec_context
        context.time_base = 1 / rate
        context.gop_size = round(rate)  # a keyframe every second, for seeking
        context.thread_count = X264_THREADS
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.color_range = ColorRange.MPEG
        self._video = video

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        try:
            self._container.close()
        except av.FFmpegError:
            if error is None:  # otherwise the first error is more informative
                raise

    def write_sound(self, sound: Sound, seconds: Fraction) -> None:
        """Write the whole sound, trimmed or padded with silence to `seconds`. To be called before
        the first frame.

        AAC codes 1,024 samples at once, so a decoder may add a little silence; the file's edit list
        marks the end of the sound.

        Raises:
            PermanentError: the samples do not have the format of `Sound`.
        """
        samples, rate = _fitted(sound, seconds), sound.sample_rate
        stream = self._container.add_stream(
            "aac", rate=rate, layout="stereo", bit_rate=AAC_BIT_RATE
        )
        for start in range(0, samples.shape[1], AAC_FRAME):
            part = np.ascontiguousarray(samples[:, start : start + AAC_FRAME])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            frame.sample_rate = rate
            frame.pts, frame.time_base = start, Fraction(1, rate)
            self._container.mux(stream.encode(frame))
        self._container.mux(stream.encode(None))

    def write_frame(self, picture: av.VideoFrame, index: int) -> None:
        """Write frame number `index`, in RGB or from `yuv_picture`."""
        frame = as_yuv420(picture)
        frame.pts, frame.time_base = index, 1 / self._rate
        self._mux(self._video.encode(frame))

    def write_last(self) -> Iterator[None]:
        """Write the frames x264 still buffers; yields after each one."""
        for packet in self._video.encode_lazy(None):
            self._mux([packet])
            yield

    def _mux(self, packets: list[av.Packet[av.VideoStream]]) -> None:
        self._container.mux(packets)
        self.packets += len(packets)


def _fitted(sound: Sound, seconds: Fraction) -> NDArray[np.float32]:
    samples = sound.samples
    if samples.ndim != 2 or samples.shape[0] != 2 or samples.dtype != np.float32:
        raise PermanentError(
            f"The pipeline's sound is {samples.dtype} {list(samples.shape)}, not float32 [2, S]."
        )
    wanted = round(seconds * sound.sample_rate)
    samples = samples[:, :wanted]
    if not np.isfinite(samples).all():
        raise PermanentError("The pipeline's sound has samples that are not finite numbers.")
    return np.pad(samples, ((0, 0), (0, wanted - samples.shape[1])))
