"""Converts RGB to YUV 4:2:0 (BT.709, limited range) on the device: a GPU then transfers half the
bytes, and the CPU converts nothing.

The arithmetic follows swscale's exact path, which `encode/mp4.py` uses on a CPU: chroma at full
size first, then halved in each direction by its bicubic filter. Results differ by at most 1 of 255.
"""

from __future__ import annotations

import functools

import torch
from torch.nn.functional import conv2d, pad

from ltxq_worker.pipeline.device import exact_float32

# From R, G and B of 0..255 to Y of 16..235, and U and V of 16..240 around 128.
_KR, _KB = 0.2126, 0.0722
_Y = [_KR, 1 - _KR - _KB, _KB]
_MATRIX = [
    [219 / 255 * part for part in _Y],
    [112 / 255 * (own - part) / (1 - _KB) for own, part in zip((0, 0, 1), _Y, strict=True)],
    [112 / 255 * (own - part) / (1 - _KR) for own, part in zip((1, 0, 0), _Y, strict=True)],
]
_OFFSET = [16.0, 128.0, 128.0]

# swscale's bicubic filter (B 0, C 0.6) for half size: weights of the pixels at a distance of 0.25,
# 0.75, 1.25 and 1.75 on either side, in pixels of the smaller picture.
_NEAR_TO_FAR = [5.23125 / 12, 1.44375 / 12, -0.50625 / 12, -0.16875 / 12]
_TAPS = [*reversed(_NEAR_TO_FAR), *_NEAR_TO_FAR]


def to_yuv420(frames: torch.Tensor) -> torch.Tensor:
    """Convert uint8 [n, H, W, 3], both sides even, to uint8 [n, 3H/2, W]: a frame's Y, then U, then
    V, like FFmpeg's yuv420p without padding. Allocates new memory on the same device.
    """
    count, height, width, _ = frames.shape
    matrix, offset, _ = _constants(frames.device)
    yuv = (frames.float() @ matrix.T + offset).movedim(-1, 1)  # [n, 3, H, W]
    planes = torch.empty((count, height * 3 // 2, width), dtype=torch.uint8, device=frames.device)
    planes[:, :height] = _rounded(yuv[:, 0])
    colours = _halved(yuv[:, 1:].reshape(count * 2, 1, height, width))
    planes[:, height:] = _rounded(colours).view(count, height // 2, width)
    return planes


def _halved(planes: torch.Tensor) -> torch.Tensor:
    """[n, 1, H, W] to [n, 1, H/2, W/2]; border pixels are repeated outwards."""
    *_, taps = _constants(planes.device)
    around = len(_TAPS) // 2 - 1
    with exact_float32():  # rounding to TF32's ten bits would be visible
        wide = pad(planes, (around, around, 0, 0), mode="replicate")
        narrow = conv2d(wide, taps.view(1, 1, 1, -1), stride=(1, 2))
        tall = pad(narrow, (0, 0, around, around), mode="replicate")
        return conv2d(tall, taps.view(1, 1, -1, 1), stride=(2, 1))


@functools.cache
def _constants(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Matrix, offsets and taps, cached on the device: each upload would wait for the device."""
    matrix, offset, taps = torch.tensor(_MATRIX), torch.tensor(_OFFSET), torch.tensor(_TAPS)
    return matrix.to(device), offset.to(device), taps.to(device)


def _rounded(plane: torch.Tensor) -> torch.Tensor:
    return plane.round().clamp(0, 255).to(torch.uint8)
