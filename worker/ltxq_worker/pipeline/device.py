"""The device a pipeline runs on: which one, what its errors mean, how much memory it has."""

from __future__ import annotations

import gc
import re
from contextlib import AbstractContextManager

import torch

from ltxq.errors import ConfigurationError
from ltxq_worker.pipeline import DeviceBroken, memory

KEPT_FREE = 1_500_000_000  # bytes of a card for CUDA itself and the allocator's gaps

# How torch names errors of CUDA, of cuDNN, and of all of CUDA's libraries. Those of cuBLAS begin
# with "CUDA error" too.
_CUDA = re.compile(r"CUDA error|CUDA driver error|Triton Error \[CUDA\]")
_CUDNN = re.compile(r"cuDNN error|cuDNN Frontend error|CUDNN_STATUS_|unable to find an engine")
_LIBRARY = re.compile(rf"{_CUDNN.pattern}|CUBLAS_STATUS_|CUFFT_")
# Memory that ran out beside torch's allocator; on a CPU torch has no type for it.
_OUT_OF_MEMORY = re.compile(
    r"(?:CUDA error|Triton Error \[CUDA\]): out of memory|_STATUS_ALLOC_FAILED|"
    r"CUDNN_STATUS_INTERNAL_ERROR_\w+_ALLOCATION_FAILED|DefaultCPUAllocator"
)
# A library that says this works no more in this process. Its other errors concern one call.
_LIBRARY_BROKEN = re.compile(
    r"(?:CUBLAS|CUDNN)_STATUS_(?:NOT_INITIALIZED|MAPPING_ERROR|EXECUTION_FAILED|"
    r"INTERNAL_ERROR(?!_COMPILATION|_UNEXPECTED))|"
    r"CUFFT_(?:INTERNAL_ERROR|EXEC_FAILED|SETUP_FAILED)"
)
# CUDA's own errors that concern one call: a launch it refuses (codes 1, 9, 98, 209, 701, 801).
_LAUNCH_REFUSED = re.compile(
    r"invalid argument|invalid configuration argument|invalid device function|"
    r"no kernel image is available|too many resources requested for launch|"
    r"operation not supported(?! on)"  # on an address space: 717, after which all is lost
)
_CAPTURING = "captur"  # in the words of CUDA's errors 900 to 908: a graph cannot be recorded


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
    return isinstance(exc, torch.OutOfMemoryError | MemoryError) or bool(
        _OUT_OF_MEMORY.search(str(exc))
    )


def is_broken(exc: BaseException) -> bool:
    """Whether it is an error of CUDA's after which no further call of this process succeeds."""
    said = str(exc)
    if not _is_of_cuda(exc) or is_out_of_memory(exc) or is_about_capturing(exc):
        return False
    if _LIBRARY.search(said):
        return bool(_LIBRARY_BROKEN.search(said))
    return not _LAUNCH_REFUSED.search(said)


def is_refused_by_cudnn(exc: BaseException) -> bool:
    """Whether cuDNN cannot do one call, as for a shape it has no kernel for, and can do others."""
    other = is_broken(exc) or is_out_of_memory(exc) or is_about_capturing(exc)
    return bool(_CUDNN.search(str(exc))) and not other


def is_about_capturing(exc: BaseException) -> bool:
    """Whether CUDA says that a graph cannot be recorded so. Compilers speak of capturing, too."""
    return _is_of_cuda(exc) and _CAPTURING in str(exc)


def _is_of_cuda(exc: BaseException) -> bool:
    said = str(exc)
    return isinstance(exc, torch.AcceleratorError) or bool(
        _CUDA.search(said) or _LIBRARY.search(said)
    )


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


def exact_float32() -> AbstractContextManager[None]:
    """Inside, cuDNN multiplies float32 as it is, not rounded to ten bits (TF32)."""
    # What is not named here is switched off, cuDNN itself first.
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=torch.backends.cudnn.benchmark, allow_tf32=False
    )


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
