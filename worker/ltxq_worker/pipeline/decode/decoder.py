"""ltx-core's video decoder with its channels last, as the convolutions of a GPU want them.

Weights are the library's own; what is replaced here loses the layout there, or goes over memory
more often. Equal to the library's up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from ltx_core.model.common.normalization import PixelNorm
from ltx_core.model.video_vae.convolution import CausalConv3d
from ltx_core.model.video_vae.sampling import DepthToSpaceUpsample
from torch.nn.functional import conv3d, rms_norm

LAST = torch.channels_last_3d


def channels_last(decoder: torch.nn.Module) -> torch.nn.Module:
    """`decoder` in that layout. It keeps its own, but for the order of its weights in memory."""
    return _exchanged(decoder, _replacement)


def channels_first(decoder: torch.nn.Module) -> torch.nn.Module:
    """`decoder` with its weights in the library's order again."""
    for weight in decoder.parameters():
        weight.data = weight.data.contiguous()
    return decoder


def _replacement(module: torch.nn.Module) -> torch.nn.Module | None:
    match module:
        case CausalConv3d():
            return _Convolution(module)
        case PixelNorm() if module.dim == 1:
            return _Norm(module.eps)
        case DepthToSpaceUpsample():
            return _Upsample(module)
    return None


def _exchanged(
    module: torch.nn.Module, replacement: Callable[[torch.nn.Module], torch.nn.Module | None]
) -> torch.nn.Module:
    """`module`, or another with the same parts but for those that have a replacement."""
    if (other := replacement(module)) is not None:
        return other
    parts: dict[str, Any] = {
        name: part and _exchanged(part, replacement) for name, part in module._modules.items()
    }
    if all(part is module._modules[name] for name, part in parts.items()):
        return module
    view = copy.copy(module)
    view._modules = parts
    return view


class _Convolution(torch.nn.Module):
    """A CausalConv3d: frames before the first and after the last are copies of those."""

    def __init__(self, library: CausalConv3d) -> None:
        super().__init__()
        self._conv = conv = library.conv
        conv.weight.data = conv.weight.data.contiguous(memory_format=LAST)
        self._frames = library.time_kernel_size - 1  # of padding
        # Zeros are the convolution's own; other borders are written here, beside the padding in
        # time: the library's pass for them gives up the layout.
        self._border = conv.padding[1:] if conv.padding_mode != "zeros" else (0, 0)

    def forward(self, x: torch.Tensor, causal: bool = True) -> torch.Tensor:
        """[B, C, F, H, W], of which nothing is changed."""
        conv, (rows, columns) = self._conv, self._border
        before = self._frames if causal else self._frames // 2
        after = 0 if causal else self._frames // 2
        batch, channels, frames, height, width = x.shape
        padded = torch.empty(
            (batch, channels, before + frames + after, height + 2 * rows, width + 2 * columns),
            dtype=x.dtype,
            device=x.device,
            memory_format=LAST,
        )
        inner = padded[..., rows : rows + height, columns : columns + width]
        inner[:, :, before : before + frames] = x
        inner[:, :, :before] = x[:, :, :1]
        inner[:, :, before + frames :] = x[:, :, -1:]
        for axis, border in ((3, rows), (4, columns)):
            self._write_border(padded, axis, border)
        own = (0, *conv.padding[1:]) if self._border == (0, 0) else 0
        return conv3d(padded, conv.weight, conv.bias, conv.stride, own, conv.dilation, conv.groups)

    def _write_border(self, padded: torch.Tensor, axis: int, border: int) -> None:
        size = padded.shape[axis]
        mirror = 1 if self._conv.padding_mode == "reflect" else 0
        for step in range(border):
            inside = border + mirror * (border - step)
            for to, source in ((step, inside), (size - 1 - step, size - 1 - inside)):
                padded.narrow(axis, to, 1).copy_(padded.narrow(axis, source, 1))


class _Norm(torch.nn.Module):
    """A PixelNorm in one pass, which the library's makes of four."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, F, H, W]."""
        return rms_norm(x.movedim(1, -1), x.shape[1:2], eps=self._eps).movedim(-1, 1)


class _Upsample(torch.nn.Module):
    """A DepthToSpaceUpsample: more frames, rows and columns out of channels."""

    def __init__(self, library: DepthToSpaceUpsample) -> None:
        super().__init__()
        self._stride = library.stride
        self._conv = _Convolution(library.conv)
        self._residual = library.residual

    def forward(self, x: torch.Tensor, causal: bool = True) -> torch.Tensor:
        """[B, C, F, H, W] to [B, C', F', H', W']."""
        larger = self._spread(self._conv(x, causal=causal))
        if self._residual:  # the same for each part of the channels
            same = self._spread(x)
            larger.unflatten(1, (-1, same.shape[1])).add_(same[:, None])
        return larger

    def _spread(self, x: torch.Tensor) -> torch.Tensor:
        in_time, in_height, in_width = self._stride
        parts = x.unflatten(1, (-1, in_time, in_height, in_width))
        batch, channels, *_, frames, height, width = parts.shape
        spread = parts.permute(0, 5, 2, 6, 3, 7, 4, 1).reshape(
            batch, frames * in_time, height * in_height, width * in_width, channels
        )
        # The first frame stands for one, not for two.
        return spread.movedim(-1, 1)[:, :, in_time - 1 :]
