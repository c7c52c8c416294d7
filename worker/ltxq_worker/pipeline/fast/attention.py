"""Which of torch's attention kernels runs. All are exact up to rounding."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ltxq_worker.pipeline.device import is_refused_by_cudnn
from ltxq_worker.pipeline.fast.options import said_by, step_down

# Tokens. Below this attention is a small part of a step, and cuDNN plans each new shape anew.
CUDNN_FROM = 512

# torch takes the first that can run what it is given: cuDNN's needs 16 bits and sm80 or newer.
_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class AttentionKernels:
    """The kernels of a transformer's attention."""

    def __init__(self, *, prefer_cudnn: bool = False) -> None:
        """`prefer_cudnn`: cuDNN's before flash attention, the optimization `attention`; else in
        torch's own order, which on Hopper begins with cuDNN's as well.
        """
        self.on = prefer_cudnn  # until it steps down
        self._has_stepped_down = False

    @property
    def tag(self) -> str:
        """Tells apart code that was compiled for other kernels."""
        return "no cudnn" if self._has_stepped_down else f"cudnn first: {self.on}"

    def kernels(self, tokens: int) -> AbstractContextManager[None]:
        """Inside, attention of a clip with so many picture tokens runs on these kernels.

        Entered once a step, not around each call: entering takes as long as launching an attention.
        """
        if not self.on or tokens < CUDNN_FROM:
            return nullcontext()
        return sdpa_kernel(_ORDER, set_priority=True)

    def steps_down(self, exc: BaseException) -> bool:
        """Whether the call that raised `exc` may be tried again: from now on without cuDNN's
        attention, which cannot do it. For the whole process, the text encoder included.
        """
        if self._has_stepped_down or not is_refused_by_cudnn(exc):
            return False
        self._has_stepped_down, self.on = True, False
        torch.backends.cuda.enable_cudnn_sdp(False)
        step_down("attention", said_by(exc), "Flash attention runs instead; report this line.")
        return True
