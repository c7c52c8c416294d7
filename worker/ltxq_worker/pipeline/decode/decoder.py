"""ltx-core's video decoder in the channels-last layout, in which a GPU's convolutions are fastest.

The weights are the library's. The modules replaced here would lose that layout in the library, or
read and write memory more often. Equal to the library's decoder up to rounding.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from ltx_core.model.common.normalization import PixelNorm
from ltx_core.model.video_vae.convolution import CausalConv3d
from ltx_core.model.video_vae.sampling import DepthToSpaceUpsample
from torch.nn.functional import conv3d, rms_norm

LAST = torch.channels_last_3d


def channels_last(decoder: torch.nn.Module) -> torch.nn.Module:
    """`decoder` itself, or a copy of it with channels-last modules; `decoder` changes only in the
    memory order of its weights.
    """
    match decoder:
        case CausalConv3d():
            return _Convolution(decoder)
        case PixelNorm() if decoder.dim == 1:
            return _Norm(decoder.eps)
        case DepthToSpaceUpsample():
            return _Upsample(decoder)
    parts: dict[str, Any] = {
        name: part and channels_last(part) for name, part in decoder._modules.items()
    }
    if all(part is decoder._modules[name] for name, part in parts.items()):
        return decoder
    view = copy.copy(decoder)
    view._modules = parts
    return view


def channels_first(decoder: torch.nn.Module) -> torch.nn.Module:
    """`decoder` with its weights back in the library's memory order."""
    for weight in decoder.parameters():
        weight.data = weight.data.contiguous()
    return decoder


class _Convolution(torch.nn.Module):
    """A CausalConv3d: the padding in time repeats the first and the last frame."""

    def __init__(self, library: CausalConv3d) -> None:
        super().__init__()
        self._conv = conv = library.conv
        conv.weight.data = conv.weight.data.contiguous(memory_format=LAST)
        self._frames = library.time_kernel_size - 1  # of padding
        # The convolution pads with zeros itself. Other borders are written here, together with the
        # padding in time, because the library's separate padding pass loses the layout.
        self._border = conv.padding[1:] if conv.padding_mode != "zeros" else (0, 0)

    def forward(self, x: torch.Tensor, causal: bool = True) -> torch.Tensor:
        """[B, C, F, H, W] to the same with other channels; the input is not modified."""
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
    """A PixelNorm in one pass over memory; the library's makes four."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, F, H, W]."""
        return rms_norm(x.movedim(1, -1), x.shape[1:2], eps=self._eps).movedim(-1, 1)


class _Upsample(torch.nn.Module):
    """A DepthToSpaceUpsample: rearranges channels into more frames, rows and columns."""

    def __init__(self, library: DepthToSpaceUpsample) -> None:
        super().__init__()
        self._stride = library.stride
        self._conv = _Convolution(library.conv)
        self._residual = library.residual

    def forward(self, x: torch.Tensor, causal: bool = True) -> torch.Tensor:
        """[B, C, F, H, W] to [B, C', F', H', W']."""
        larger = self._spread(self._conv(x, causal=causal))
        if self._residual:  # added to each group of channels
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
        # The first latent frame makes one frame, not `in_time`.
        return spread.movedim(-1, 1)[:, :, in_time - 1 :]
