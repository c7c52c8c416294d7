"""torch.compile of the transformer's block: one compiled function serves all blocks, one for each
size of clip. Where it cannot be compiled, clips are made without, and the log says so.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections import OrderedDict
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
from ltxq_worker.pipeline.fast.options import keep_compiled_code, said_by, step_down
from ltxq_worker.pipeline.fast.transformer import RunBlock, Streams, run_one_block

SHAPES_KEPT = 8  # sizes whose code is kept; a clip in two stages has two

# What torch's cache of compiled code cannot see: which attention kernels the code was made for.
_TAG = "ltxq {kernels}"

# Errors that would be raised without compiling, too.
_NOT_THE_COMPILERS = (is_out_of_memory, is_broken, is_refused_by_cudnn, is_about_capturing)


class CompiledBlocks:
    """A `RunBlock`. The first call for a size compiles, which takes a minute or, from the cache
    on disk, seconds; `keep_compiled_code` says where that is.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        attention: AttentionKernels | None = None,
        backend: str = "inductor",
    ) -> None:
        """`attention`: whose kernels run. `backend`: torch.compile's."""
        self._attention = attention or AttentionKernels()
        self._backend = backend
        self._functions: OrderedDict[tuple[str | torch.Size, ...], RunBlock] = OrderedDict()
        self.on = True  # until it steps down
        keep_compiled_code()
        lacking = what_compiling_lacks(device.type) if backend == "inductor" else None
        if lacking:
            self._step_down(lacking)

    def __call__(
        self, block: torch.nn.Module, video: TransformerArgs, audio: TransformerArgs
    ) -> Streams:
        """As `run_one_block`, within rounding: fused operations round once."""
        if not self.on:
            return run_one_block(block, video, audio)
        kernels = self._attention.tag
        run = self._function(kernels, video.x.shape, audio.x.shape)
        try:
            with torch.compiler.config.patch(  # type: ignore[attr-defined]
                cache_key_tag=_TAG.format(kernels=kernels)
            ):
                return run(block, video, audio)
        except Exception as exc:  # compilers raise whatever they like
            cause = getattr(exc, "inner_exception", exc)  # dynamo's errors wrap the compiler's
            if any(judge(cause) for judge in _NOT_THE_COMPILERS):
                raise
            self._step_down(said_by(cause))
        return run_one_block(block, video, audio)

    def _function(self, *key: str | torch.Size) -> RunBlock:
        run = self._functions.pop(key, None) or _compiled(self._backend)
        self._functions[key] = run  # the last used last
        if len(self._functions) > SHAPES_KEPT:
            self._functions.popitem(last=False)
        return run

    def _step_down(self, why: str) -> None:
        self.on = False
        self._functions.clear()
        step_down(
            "compile",
            why,
            "Install gcc, g++ and the headers of this Python (python3-dev), or take compile out "
            "of LTXQ_OPTIMIZE.",
        )


def what_compiling_lacks(device_type: str) -> str | None:
    """What torch.compile needs for a device and is not here; None: it is all here.

    Triton builds a launcher with a C compiler, torch its code for a CPU with a C++ one.
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
    """A compiled `run_one_block` with nothing compiled yet.

    What torch compiles hangs on the code object, which allows eight versions. So each size has one
    of its own, whose few versions are those of FP8 and of bf16 blocks, and which goes as a whole.
    """
    copy = FunctionType(run_one_block.__code__.replace(), run_one_block.__globals__)
    return cast("RunBlock", torch.compile(copy, backend=backend, dynamic=False, fullgraph=True))
