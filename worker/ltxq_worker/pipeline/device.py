"""The device a pipeline runs on: choosing it, classifying its errors, measuring its memory."""

from __future__ import annotations

import gc
import re
from contextlib import AbstractContextManager

import torch

from ltxq.errors import ConfigurationError
from ltxq.printable import one_line
from ltxq_worker.pipeline import DeviceBroken, memory

KEPT_FREE = 1_500_000_000  # bytes of a card reserved for CUDA and the allocator's fragmentation

# Texts by which torch's messages name errors of CUDA, of cuDNN, and of all CUDA libraries. Errors
# of cuBLAS also begin with "CUDA error".
_CUDA = re.compile(r"CUDA error|CUDA driver error|Triton Error \[CUDA\]")
_CUDNN = re.compile(r"cuDNN error|cuDNN Frontend error|CUDNN_STATUS_|unable to find an engine")
_LIBRARY = re.compile(rf"{_CUDNN.pattern}|CUBLAS_STATUS_|CUFFT_")
# Out of memory outside torch's allocator, and on a CPU, where torch has no exception type for it.
_OUT_OF_MEMORY = re.compile(
    r"(?:CUDA error|Triton Error \[CUDA\]): out of memory|_STATUS_ALLOC_FAILED|"
    r"CUDNN_STATUS_INTERNAL_ERROR_\w+_ALLOCATION_FAILED|DefaultCPUAllocator"
)
# After these errors the library fails in this process for good. Its other errors concern one call.
_LIBRARY_BROKEN = re.compile(
    r"(?:CUBLAS|CUDNN)_STATUS_(?:NOT_INITIALIZED|MAPPING_ERROR|EXECUTION_FAILED|"
    r"INTERNAL_ERROR(?!_COMPILATION|_UNEXPECTED))|"
    r"CUFFT_(?:INTERNAL_ERROR|EXEC_FAILED|SETUP_FAILED)"
)
# CUDA errors that concern one call: a refused launch (codes 1, 9, 98, 209, 701, 801).
_LAUNCH_REFUSED = re.compile(
    r"invalid argument|invalid configuration argument|invalid device function|"
    r"no kernel image is available|too many resources requested for launch|"
    r"operation not supported(?! on)"  # "… on global/shared address space" is 717: not recoverable
)
_CAPTURING = "captur"  # in the messages of CUDA's errors 900 to 908: a graph cannot be recorded


def find_device(name: str | None) -> torch.device:
    """The device of that name: 'cuda', 'cuda:1' or 'cpu'; None: a GPU if there is one.

    Raises:
        ConfigurationError: there is no such device.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ConfigurationError(
            f"{one_line(name[:40])!r} is not a device.", hint="Name cpu, cuda, or a GPU: cuda:1."
        )
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"There is no device {device}: torch sees {torch.cuda.device_count()} GPUs.",
            hint="Check nvidia-smi: the driver must be 580 or newer. Or run on the CPU.",
        )
    return device


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether the device or the host ran out of memory."""
    return isinstance(exc, torch.OutOfMemoryError | MemoryError) or bool(
        _OUT_OF_MEMORY.search(str(exc))
    )


def is_broken(exc: BaseException) -> bool:
    """Whether `exc` is a CUDA error after which every further call of this process fails."""
    message = str(exc)
    if not _is_of_cuda(exc) or is_out_of_memory(exc) or is_about_capturing(exc):
        return False
    if _LIBRARY.search(message):
        return bool(_LIBRARY_BROKEN.search(message))
    return not _LAUNCH_REFUSED.search(message)


def is_refused_by_cudnn(exc: BaseException) -> bool:
    """Whether cuDNN refuses one call, such as a shape it has no kernel for, and others may work."""
    other = is_broken(exc) or is_out_of_memory(exc) or is_about_capturing(exc)
    return bool(_CUDNN.search(str(exc))) and not other


def is_about_capturing(exc: BaseException) -> bool:
    """Whether CUDA reports that a graph cannot be recorded. Errors of compilers, whose messages
    may also contain "captur", do not count.
    """
    return _is_of_cuda(exc) and _CAPTURING in str(exc)


def _is_of_cuda(exc: BaseException) -> bool:
    message = str(exc)
    return isinstance(exc, torch.AcceleratorError) or bool(
        _CUDA.search(message) or _LIBRARY.search(message)
    )


def raise_unless_out_of_memory(exc: BaseException) -> None:
    """Raise `exc` again, unless it means out of memory. To be called in an `except`.

    Raises:
        DeviceBroken: in place of a CUDA error after which every further call of this process fails.
    """
    if is_out_of_memory(exc):
        return
    if is_broken(exc):
        raise DeviceBroken(str(exc).splitlines()[0]) from exc
    raise exc


def exact_float32() -> AbstractContextManager[None]:
    """Inside, cuDNN multiplies float32 exactly, not rounded to ten bits of mantissa (TF32)."""
    # `flags` switches off whatever is not passed, cuDNN itself included.
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=torch.backends.cudnn.benchmark, allow_tf32=False
    )


def free_memory(device: torch.device) -> None:
    """Return unreferenced memory to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def memory_left(device: torch.device) -> int:
    """Bytes available to a clip now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] - KEPT_FREE
    return memory.available_ram()


def total_memory(device: torch.device) -> int:
    """Bytes of the whole device; on a CPU the available RAM."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory.available_ram()
