"""Estimates the memory a clip needs beside the model, and the largest clip that fits.

The estimate depends on sizes alone; its constants were computed on the real modules. `device.py`
measures a GPU's memory, this module a CPU's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltxq.limits import FRAME_STEP, MIN_SIDE, SIDE_STEP

# Activations of a denoising step: 0.5, 2 and 5 GB at 1,920, 6,144 and 24,576 tokens in bf16.
BYTES_PER_TOKEN = 330_000
# Decoding in one piece: 1.1, 3.8 and 15.3 GB at 13, 48 and 190 million pixels.
BYTES_PER_PIXEL = 85
# The part of them for the frames themselves, three bf16 channels a few times; and the same where
# tiles are blended (measured with the tiny model: 27 and 42 bytes).
BYTES_PER_FRAME_PIXEL, BYTES_PER_BLENDED_PIXEL = 24, 45
# Encoding a prompt: Gemma's 49 hidden states of 1,024 tokens (0.4 GB), stacked and normalized.
BYTES_FOR_TEXT = 2_500_000_000

# A clip of more pixels (121 frames of 512×768, about 4 GB) is decoded in tiles, unless the
# optimization `decode` is on and memory suffices for one piece.
PIXELS_UNTILED = 48_000_000
TILE_FRAMES, TILE_FRAMES_OVERLAP = 64, 24  # as ltx-core's default
TILE_SIDE, TILE_SIDE_OVERLAP = 1024, 64  # pixels; ltx-core's default of 512 costs more arithmetic

FEW_FRAMES = 17  # from here on suggest a smaller picture, not fewer frames


@dataclass(frozen=True)
class Shape:
    """A clip's size."""

    height: int  # pixels
    width: int  # pixels
    num_frames: int
    stages: int = 1

    @property
    def pixels(self) -> int:
        """The number of pixels in all frames."""
        return self.height * self.width * self.num_frames

    @property
    def tokens(self) -> int:
        """The number of picture tokens in the transformer."""
        frames = (self.num_frames - 1) // FRAME_STEP + 1
        return frames * (self.height // SIDE_STEP) * (self.width // SIDE_STEP)

    def __str__(self) -> str:
        return f"{self.width}×{self.height} with {self.num_frames} frames"


def tiles_in_time(shape: Shape) -> bool:
    """Whether a clip is decoded in overlapping runs of 64 frames."""
    return shape.pixels > PIXELS_UNTILED and shape.num_frames > TILE_FRAMES


def tiles_in_space(shape: Shape) -> bool:
    """Whether pictures are decoded in overlapping tiles too."""
    frames = min(shape.num_frames, TILE_FRAMES)
    return shape.height * shape.width * frames > 2 * PIXELS_UNTILED


def bytes_needed(config: dict[str, Any], shape: Shape, *, in_one_piece: bool = False) -> int:
    """Peak memory in bytes beside the weights, for a checkpoint's configuration.

    `in_one_piece`: the clip is decoded without tiles, however large it is.
    """
    in_time = tiles_in_time(shape) and not in_one_piece
    in_space = tiles_in_space(shape) and not in_one_piece
    transformer = config["transformer"]
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"] / 4096
    channels = config["vae"].get("decoder_base_channels", 128) / 128
    frames = TILE_FRAMES if in_time else shape.num_frames
    pixels = at_once = shape.height * shape.width * frames
    if in_space:
        at_once = min(shape.height, TILE_SIDE) * min(shape.width, TILE_SIDE) * frames
    tiled = in_time or in_space
    decoding = pixels * (BYTES_PER_BLENDED_PIXEL if tiled else BYTES_PER_FRAME_PIXEL)
    decoding += int((BYTES_PER_PIXEL - BYTES_PER_FRAME_PIXEL) * channels * at_once)
    return int(max(BYTES_FOR_TEXT * width, BYTES_PER_TOKEN * width * shape.tokens, decoding))


def largest_that_fits(config: dict[str, Any], shape: Shape, budget: int) -> Shape | None:
    """The first clip of `_smaller` that needs at most `budget` bytes; None: no clip does."""
    return next((s for s in _smaller(shape) if bytes_needed(config, s) <= budget), None)


def _smaller(shape: Shape) -> Iterator[Shape]:
    """Ever smaller clips: fewer frames first, then smaller pictures of about the same aspect."""
    frames = shape.num_frames
    while frames > FEW_FRAMES:
        frames -= FRAME_STEP
        yield replace(shape, num_frames=frames)
    step = shape.stages * SIDE_STEP
    for percent in range(95, 0, -5):
        height, width = (
            max(MIN_SIDE, side * percent // 100 // step * step)
            for side in (shape.height, shape.width)
        )
        yield replace(shape, height=height, width=width, num_frames=frames)


def available_ram() -> int:
    """Bytes of RAM this process may still allocate, by Linux and by its container's limit."""
    meminfo = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    cgroup = Path("/sys/fs/cgroup")
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and used.is_file() and (maximum := limit.read_text().strip()) != "max":
        free = min(free, int(maximum) - int(used.read_text()))
    return free
