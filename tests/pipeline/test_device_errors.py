"""What an error of CUDA's means: memory, a process to replace, or one call that is refused. The
words are those of CUDA 13 and cuDNN 9, around them torch's own.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ltxq.errors import ConfigurationError
from ltxq_worker.pipeline import DeviceBroken
from ltxq_worker.pipeline.device import (
    exact_float32,
    find_device,
    is_about_capturing,
    is_broken,
    is_out_of_memory,
    is_refused_by_cudnn,
    raise_unless_out_of_memory,
)

MORE = """
Search for `{name}' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more.
CUDA kernel errors might be asynchronously reported at some other API call.
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""  # noqa: E501
CAPTURING = {
    900: "operation not permitted when stream is capturing",
    901: "operation failed due to a previous error during capture",
    902: "operation would result in a merge of separate capture sequences",
    903: "capture was not ended in the same stream as it began",
    904: "capturing stream has unjoined work",
    905: "dependency created on uncaptured work in another stream",
    906: "operation would make the legacy stream depend on a capturing blocking stream",
    907: "operation not permitted on an event last recorded in a capturing stream",
    908: "attempt to terminate a thread-local capture sequence from another thread",
}
LOST = {
    214: "uncorrectable ECC error encountered",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
    999: "unknown error",
}
REFUSED = {
    1: "invalid argument",
    9: "invalid configuration argument",
    98: "invalid device function",
    209: "no kernel image is available for execution on the device",
    701: "too many resources requested for launch",
    801: "operation not supported",
}


def of_cuda(words: str, kind: Callable[[str], Exception] = torch.AcceleratorError) -> Exception:
    return kind(f"CUDA error: {words}{MORE.format(name='cudaErrorStreamCaptureUnsupported')}")


@pytest.mark.parametrize("words", CAPTURING.values(), ids=map(str, CAPTURING))
def test_a_graph_that_cannot_be_recorded_breaks_no_device(words: str) -> None:
    exc = of_cuda(words)
    assert is_about_capturing(exc)
    assert not is_broken(exc)
    assert not is_out_of_memory(exc)


@pytest.mark.parametrize("kind", [torch.AcceleratorError, RuntimeError])
@pytest.mark.parametrize("words", LOST.values(), ids=map(str, LOST))
def test_an_error_that_cuda_repeats_for_ever_breaks_it(words: str, kind: type[Exception]) -> None:
    exc = of_cuda(words, kind)
    assert is_broken(exc)
    assert not is_about_capturing(exc)
    with pytest.raises(DeviceBroken, match=words):
        raise_unless_out_of_memory(exc)


@pytest.mark.parametrize("words", REFUSED.values(), ids=map(str, REFUSED))
def test_a_launch_that_is_refused_breaks_none(words: str) -> None:
    exc = of_cuda(words)
    assert not is_broken(exc)
    with pytest.raises(torch.AcceleratorError):
        raise_unless_out_of_memory(exc)


@pytest.mark.parametrize(
    ("said", "broken", "cudnn_refuses"),
    [
        ("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul(…)`", False, False),
        ("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx(…)`", False, False),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(…)`", True, False),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(…)`", True, False),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if …", False, True),
        ("cuDNN error: CUDNN_STATUS_BAD_PARAM", False, True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_COMPILATION_FAILED", False, True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", True, False),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED_CUDART", True, False),
        ("cuDNN Frontend error: Error: No valid execution plans built.", False, True),
        ("cuDNN Frontend error: execute failed: CUDNN_STATUS_EXECUTION_FAILED", True, False),
        ("GET was unable to find an engine to execute this computation", False, True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED: stream is capturing", False, False),
        ("CUFFT_EXEC_FAILED", True, False),
        ("Triton Error [CUDA]: an illegal memory access was encountered", True, False),
        ("Triton Error [CUDA]: invalid argument", False, False),
        ("CUDA driver error: an illegal memory access was encountered", True, False),
        ("The size of tensor a (3) must match the size of tensor b (4)", False, False),
    ],
)  # fmt: skip
def test_libraries_tell_a_call_they_cannot_do_from_a_lost_device(
    said: str, broken: bool, cudnn_refuses: bool
) -> None:
    exc = RuntimeError(said)
    assert (is_broken(exc), is_refused_by_cudnn(exc)) == (broken, cudnn_refuses)
    assert not is_out_of_memory(exc)


@pytest.mark.parametrize(
    "exc",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        of_cuda("out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        MemoryError(),
    ],
    ids=lambda exc: str(exc)[:40],
)
def test_memory_that_ran_out_is_told_as_that(exc: Exception) -> None:
    assert is_out_of_memory(exc)
    assert not is_broken(exc)
    assert not is_refused_by_cudnn(exc)
    raise_unless_out_of_memory(exc)


def test_a_compiler_that_cannot_capture_is_no_word_of_cudas() -> None:
    exc = RuntimeError("Dynamo: consider torch._dynamo.config.capture_scalar_outputs = True")
    assert not is_about_capturing(exc)
    assert not is_broken(exc)


def test_exact_float32_leaves_cudnn_on() -> None:
    def flags() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32

    before = flags()
    with exact_float32():
        assert flags() == (True, before[1], False)
    assert flags() == before


@pytest.mark.parametrize("name", ["gpu", "mps", "CUDA", "cuda:", "cuda:-1", "cuda:9999", "cuda:x"])
def test_a_word_that_is_no_device_is_told(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{name}' is not a device. Name cpu, cuda, or"):
        find_device(name)
