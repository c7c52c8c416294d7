"""Selects among torch's attention kernels, all of which are exact up to rounding."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ltxq_worker.pipeline.device import is_refused_by_cudnn
from ltxq_worker.pipeline.fast.options import describe_error, step_down

# Tokens. With fewer, attention is a small part of a step, and cuDNN has to plan each new shape.
CUDNN_FROM = 512

# torch uses the first kernel that supports its inputs: cuDNN's needs 16 bits and sm80 or newer.
_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class AttentionKernels:
    """The order in which torch tries its attention kernels for a transformer."""

    def __init__(self, *, prefer_cudnn: bool = False) -> None:
        """`prefer_cudnn`: cuDNN's kernel before flash attention, which is the optimization
        `attention`; else torch's own order, which on Hopper also begins with cuDNN's.
        """
        self.on = prefer_cudnn  # until `steps_down` switches it off
        self._has_stepped_down = False

    @property
    def tag(self) -> str:
        """Identifies the kernel order, for the cache key of compiled code."""
        return "no cudnn" if self._has_stepped_down else f"cudnn first: {self.on}"

    def kernels(self, tokens: int) -> AbstractContextManager[None]:
        """Inside, attention of a clip with `tokens` picture tokens uses this order.

        Enter it once a step, not for each call: entering takes as long as launching an attention.
        """
        if not self.on or tokens < CUDNN_FROM:
            return nullcontext()
        return sdpa_kernel(_ORDER, set_priority=True)

    def steps_down(self, exc: BaseException) -> bool:
        """If cuDNN's attention refused a call, switch it off for the whole process, including the
        text encoder. Returns whether to try the call that raised `exc` again.
        """
        if self._has_stepped_down or not is_refused_by_cudnn(exc):
            return False
        self._has_stepped_down, self.on = True, False
        torch.backends.cuda.enable_cudnn_sdp(False)
        step_down(
            "attention", describe_error(exc), "Flash attention runs instead; report this line."
        )
        return True
