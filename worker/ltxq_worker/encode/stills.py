"""Writes a clip's JPEGs: the poster, and the spritesheet for previews in a web page."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

MAX_TILES = 16  # pictures on a spritesheet: 4 × 4
TILE_SIDE = 192  # pixels: a tile's longer side; a 768×512 clip makes a sheet of 768×512
JPEG_QSCALE = 3  # 2 (best) to 31; 3 is about quality 90


def write_jpeg(picture: av.VideoFrame, path: Path) -> None:
    """Write `picture`, in RGB or in YUV with its colour space set, with even sides."""
    frame = picture.reformat(
        format="yuvj420p",
        dst_colorspace=Colorspace.ITU601,  # the only one in JFIF
        dst_color_range=ColorRange.JPEG,
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
        threads=1,
    )
    mjpeg = av.VideoCodecContext.create("mjpeg", "w")
    mjpeg.width, mjpeg.height, mjpeg.pix_fmt = frame.width, frame.height, "yuvj420p"
    mjpeg.color_range = ColorRange.JPEG
    mjpeg.time_base = Fraction(1)
    mjpeg.thread_count = 1
    mjpeg.qmin = mjpeg.qmax = JPEG_QSCALE
    frame.pts = 0
    path.write_bytes(b"".join(bytes(packet) for packet in [*mjpeg.encode(frame), *mjpeg.encode()]))


class Spritesheet:
    """Small pictures of frames spread evenly over a clip, in a grid, row by row.

    1 frame makes 1 tile, 9 frames make 3×3, more make 4×4; first and last frame are included.
    """

    def __init__(self, num_frames: int, size: tuple[int, int]) -> None:
        """`size`: width and height of the clip in pixels."""
        count = min(num_frames, MAX_TILES)
        spread = np.linspace(0, num_frames - 1, count).round().astype(int)
        self._tile_of_frame = {int(frame): tile for tile, frame in enumerate(spread)}
        self._columns = math.ceil(math.sqrt(count))
        rows = math.ceil(count / self._columns)
        scale = min(1.0, TILE_SIDE / max(size))
        # Even sides, for the JPEG's half-size chroma planes.
        self._tile = tuple(max(2, round(side * scale / 2) * 2) for side in size)
        width, height = self._tile
        self._sheet = np.zeros((rows * height, self._columns * width, 3), np.uint8)

    def add(self, picture: av.VideoFrame, index: int) -> None:
        """Add frame number `index`, if the sheet shows it."""
        tile = self._tile_of_frame.get(index)
        if tile is None:
            return
        width, height = self._tile
        small = picture.reformat(
            width=width,
            height=height,
            format="rgb24",
            dst_color_range=ColorRange.JPEG,
            interpolation=Interpolation.AREA,
            threads=1,
        )
        row, column = divmod(tile, self._columns)
        top, left = row * height, column * width
        self._sheet[top : top + height, left : left + width] = small.to_ndarray()

    def write(self, path: Path) -> None:
        """Write the sheet as a JPEG."""
        write_jpeg(av.VideoFrame.from_ndarray(self._sheet, format="rgb24"), path)
