"""torch.compile of the transformer's block: for each clip size, one compiled function serves all
blocks. If compiling fails, the blocks run uncompiled, and the log says so.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from types import FunctionType
from typing import cast

import torch
from ltx_core.model.transformer.transformer_args import TransformerArgs

from ltxq_worker.pipeline.device import (
    is_about_capturing,
    is_broken,
    is_out_of_memory,
    is_refused_by_cudnn,
)
from ltxq_worker.pipeline.fast.attention import AttentionKernels
from ltxq_worker.pipeline.fast.options import describe_error, step_down
from ltxq_worker.pipeline.fast.transformer import RunBlock, Streams, run_one_block

SHAPES_KEPT = 8  # sizes whose code is kept; a clip in two stages has two sizes

# Predicates of errors that are not the compiler's: they would be raised without compiling too.
_NOT_COMPILER_ERRORS = (is_out_of_memory, is_broken, is_refused_by_cudnn, is_about_capturing)


class CompiledBlocks:
    """A `RunBlock`. The first call for a size compiles, which takes a minute, or seconds if the
    code is in the cache on disk; `keep_compiled_code` names its folder.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        attention: AttentionKernels | None = None,
        backend: str = "inductor",
    ) -> None:
        """`attention`: the order of attention kernels. `backend`: of torch.compile."""
        self._attention = attention or AttentionKernels()
        self._function = functools.lru_cache(SHAPES_KEPT)(lambda *_size: _compiled(backend))
        self.on = True  # until `_step_down`
        if backend == "inductor" and (missing := missing_compiler(device.type)):
            self._step_down(missing)

    def __call__(
        self, block: torch.nn.Module, video: TransformerArgs, audio: TransformerArgs
    ) -> Streams:
        """As `run_one_block`, up to rounding: fused operations round once."""
        if not self.on:
            return run_one_block(block, video, audio)
        kernels = self._attention.tag
        run = self._function(kernels, video.x.shape, audio.x.shape)
        try:
            # The key in torch's cache of compiled code does not itself depend on these kernels.
            with torch.compiler.config.patch(  # type: ignore[attr-defined]
                cache_key_tag=f"ltxq {kernels}"
            ):
                return run(block, video, audio)
        except Exception as exc:  # compilers raise errors of any type
            cause = getattr(exc, "inner_exception", exc)  # dynamo's errors wrap the compiler's
            if any(matches(cause) for matches in _NOT_COMPILER_ERRORS):
                raise
            self._step_down(describe_error(cause))
        return run_one_block(block, video, audio)

    def _step_down(self, why: str) -> None:
        self.on = False
        self._function.cache_clear()
        step_down(
            "compile",
            why,
            "Install gcc, g++ and the headers of this Python (python3-dev), or take compile out "
            "of LTXQ_OPTIMIZE.",
        )


def missing_compiler(device_type: str) -> str | None:
    """Which requirement of torch.compile is missing for a type of device; None: none is.

    Triton builds its launchers with a C compiler; torch builds CPU code with a C++ compiler.
    """
    names = [os.environ.get("CC"), "gcc", "clang"]
    if device_type == "cpu":
        names = [os.environ.get("CXX", "g++")]
    if not any(name and shutil.which(name) for name in names):
        return f"there is no compiler: {' or '.join(name for name in names if name)}."
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"there are no headers of Python {version}: no Python.h in {headers}."
    return None


def _compiled(backend: str) -> RunBlock:
    """A `run_one_block` that compiles at its first call.

    torch attaches compiled versions to the code object, eight at most. So each size gets a copy of
    the code object, whose few versions are for FP8 and bf16 blocks and are freed together.
    """
    copy = FunctionType(run_one_block.__code__.replace(), run_one_block.__globals__)
    return cast("RunBlock", torch.compile(copy, backend=backend, dynamic=False, fullgraph=True))
