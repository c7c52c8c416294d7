"""Which of torch's attention kernels runs: on Hopper cuDNN's is ahead of flash attention 2, which
torch would take first. All are exact up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

# Tokens. Below this attention is a small part of a step, and cuDNN plans each new shape for longer
# than it saves.
CUDNN_FROM = 512

# torch takes the first that can run what it is given: cuDNN's needs 16 bits and sm80 or newer.
_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@contextmanager
def prefer_cudnn(tokens: int) -> Iterator[None]:
    """Inside, attention of a clip with so many picture tokens is cuDNN's where it can be.

    Entered once a step, not around each call: entering takes as long as launching an attention.
    """
    if tokens < CUDNN_FROM:
        yield
        return
    with sdpa_kernel(_ORDER, set_priority=True):
        yield
