"""The device a pipeline runs on: which one, what its errors mean, how much memory it has."""

from __future__ import annotations

import gc

import torch

from ltxq.errors import ConfigurationError
from ltxq_worker.pipeline import DeviceBroken, memory

KEPT_FREE = 1_500_000_000  # bytes of a card for CUDA itself and the allocator's gaps

# How CUDA's libraries begin what they say; the first is torch's for CUDA itself.
_BROKEN = ("CUDA error", "CUDA driver error", "CUBLAS_STATUS_", "cuDNN error", "CUFFT_")
# Where memory ran out beside torch's allocator; on a CPU torch has no type for it.
_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator")


def find_device(name: str | None) -> torch.device:
    """'cuda', 'cuda:1' or 'cpu'; None: a GPU if there is one.

    Raises:
        ConfigurationError: there is no such device.
    """
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"There is no {device} here: {torch.cuda.device_count()} GPUs are seen.",
            hint="Look at nvidia-smi: the driver must be 580 or newer. Or run on the CPU.",
        )
    return device


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether the device, or the computer, ran out of memory."""
    return isinstance(exc, torch.OutOfMemoryError | MemoryError) or any(
        sign in str(exc) for sign in _OUT_OF_MEMORY
    )


def is_broken(exc: BaseException) -> bool:
    """Whether it is an error of CUDA's own, after which no further call succeeds."""
    return isinstance(exc, torch.AcceleratorError) or any(sign in str(exc) for sign in _BROKEN)


def raise_unless_out_of_memory(exc: BaseException) -> None:
    """Called in an `except`.

    Raises:
        DeviceBroken: after an error of CUDA's own no further call succeeds in this process.
    """
    if is_out_of_memory(exc):
        return
    if is_broken(exc):
        raise DeviceBroken(str(exc).splitlines()[0]) from exc
    raise exc


def free_memory(device: torch.device) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def memory_left(device: torch.device) -> int:
    """Bytes that are free for a clip."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] - KEPT_FREE
    return memory.available_ram()


def total_memory(device: torch.device) -> int:
    """Bytes the device has in all; on a CPU those that are free."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory.available_ram()
