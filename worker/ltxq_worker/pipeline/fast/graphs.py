"""A denoising step as one CUDA graph: the CPU launches it once instead of thousands of kernels.

A graph reads and writes the same memory each time, so a step's inputs are copied to where its
graph expects them and its outcome is copied out. Graphs of the last few sizes are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import torch
from ltx_core.types import LatentState

from ltxq_worker.models.weights.text import TextContext
from ltxq_worker.pipeline.denoise import Step
from ltxq_worker.pipeline.device import (
    free_memory,
    is_broken,
    is_out_of_memory,
    is_refused_by_cudnn,
)
from ltxq_worker.pipeline.fast.options import said_by, step_down
from ltxq_worker.pipeline.fast.transformer import (
    FastTransformer,
    PreparedInputs,
    Streams,
    Tree,
    leaves,
    mapped,
    noise_levels,
)

SHAPES_KEPT = 4  # sizes whose graphs are kept; a clip in two stages has two

# Above this a step is long beside its launches, and its graph would keep gigabytes. 768×512 with
# 121 frames has 6,144 tokens, whose arithmetic alone takes an H200 171 ms in FP8 (computed).
TOKENS_GRAPHED = 8192

Run = Callable[[], Streams]


class Recorder(Protocol):
    """Turns work on the device into something that repeats it."""

    kept: int
    """Bytes of the device that recordings hold on to."""

    def record(self, run: Run) -> Run:
        """Do `run`, which must not ask the device for anything, and give back what does the same
        again, with what then is in the memory that `run` read, and always returns the same tensors.
        """

    def forget(self) -> None:
        """All recordings are gone."""


class GraphedTransformer:
    """A `Transformer` that does a `FastTransformer`'s steps from recordings."""

    def __init__(self, transformer: FastTransformer, recorder: Recorder) -> None:
        self._transformer = transformer
        self._recorder = recorder
        self._recorded: OrderedDict[tuple[torch.Size, ...], _Recorded] = OrderedDict()
        self._text: Tree = ()  # where all recordings look for it: as large as a gigabyte
        self.on = True  # until it steps down

    @property
    def kept(self) -> int:
        """Bytes of the device that are held on to beside what torch counts as allocated."""
        return self._recorder.kept

    def bind(
        self,
        video: LatentState,
        audio: LatentState,
        context: TextContext,
        levels: Sequence[float],
    ) -> Step:
        """As `Transformer.bind`. Records a step if there is no recording for the size."""
        if not self.on or video.latent.shape[1] > TOKENS_GRAPHED:
            return self._transformer.bind(video, audio, context, levels)
        recorded = self._prepared(video, audio, context)
        if recorded is None:
            return self._transformer.bind(video, audio, context, levels)
        sigmas = noise_levels(tuple(levels), video.latent.device)
        return lambda video, audio, index: recorded.step(
            video, audio, sigmas[index], sigmas[index + 1]
        )

    def forget(self) -> None:
        """Give back all memory. The next clip records anew."""
        self._recorded.clear()
        self._text = ()
        self._recorder.forget()

    def _prepared(
        self, video: LatentState, audio: LatentState, context: TextContext
    ) -> _Recorded | None:
        """A recording that has this clip's text and positions; None: it could not be made."""
        bound = self._transformer.prepare(video, audio, context)
        if self._text:
            _copy(self._text, bound.text)
        else:
            self._text = mapped(torch.clone, bound.text)
        key = (video.latent.shape, audio.latent.shape)
        recorded = self._recorded.pop(key, None)
        if recorded is not None:
            recorded.take(bound)
        else:
            bound = replace(bound, text=self._text, rest=mapped(torch.clone, bound.rest))
            recorded = self._record(bound, video.latent, audio.latent)
        if recorded is not None:
            self._recorded[key] = recorded  # the last used last
            if len(self._recorded) > SHAPES_KEPT:
                self._recorded.popitem(last=False)
        return recorded

    def _record(
        self, bound: PreparedInputs, video: torch.Tensor, audio: torch.Tensor
    ) -> _Recorded | None:
        try:
            return _Recorded(self._transformer, bound, video, audio, self._recorder)
        except Exception as exc:  # whatever CUDA forbids while it records
            if is_broken(exc) or is_refused_by_cudnn(exc):
                raise  # not the recording's doing
            no_memory = is_out_of_memory(exc)
            why = said_by(exc)
        # Here the error and the tensors its traceback held are gone.
        self.forget()
        free_memory(video.device)
        if not no_memory:  # this clip may need more than others
            self.on = False
            step_down("graphs", why, "Take graphs out of LTXQ_OPTIMIZE, and report this line.")
        return None


class _Recorded:
    """A step of one size, and the memory it reads."""

    def __init__(
        self,
        transformer: FastTransformer,
        bound: PreparedInputs,
        video: torch.Tensor,
        audio: torch.Tensor,
        recorder: Recorder,
    ) -> None:
        """`bound` is its own from here on, but for the text."""
        self._bound = bound
        sigma = torch.ones((), device=video.device)
        self._inputs = (video.clone(), audio.clone(), sigma, sigma / 2)
        self._again = recorder.record(lambda: transformer.step(bound, *self._inputs))

    def take(self, bound: PreparedInputs) -> None:
        """Make the steps that follow those of another clip, whose text is in place."""
        _copy(self._bound.rest, bound.rest)

    def step(self, *inputs: torch.Tensor) -> Streams:
        """As `FastTransformer.step`."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        # Other recordings share the memory these are in.
        video, audio = self._again()
        return video.clone(), audio.clone()


class CudaGraphs:
    """A `Recorder` with CUDA's graphs, which share one pool of memory: none runs beside another."""

    def __init__(self, device: torch.device) -> None:
        self.kept = 0
        self._device = device
        # One for all recordings: cuBLAS keeps a workspace for each stream, and graphs of different
        # streams cannot use the pool's memory one after the other.
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Run) -> Run:
        """As `Recorder.record`."""
        now = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            run()  # compiles, plans and takes workspaces, none of which a graph may do
            run()
        now.wait_stream(self._stream)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        outcome = self._capture(graph, run, now)
        self.kept += max(0, torch.cuda.memory_reserved(self._device) - before)

        def again() -> Streams:
            graph.replay()
            return outcome

        return again

    def forget(self) -> None:
        """As `Recorder.forget`."""
        self.kept = 0
        self._pool = torch.cuda.graph_pool_handle()

    def _capture(self, graph: torch.cuda.CUDAGraph, run: Run, now: torch.cuda.Stream) -> Streams:
        try:
            # thread_local: another thread may be waiting for frames of the clip before. `now` is
            # entered for its end: torch does not leave its own stream where capturing fails.
            with (
                torch.cuda.stream(now),
                torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ),
            ):
                return run()
        except Exception as exc:
            self._close_pool()
            if exc.__context__ is not None:  # ending a capture that failed raises another error
                raise exc.__context__ from None
            raise

    def _close_pool(self) -> None:
        """After a capture that failed, where torch (2.11) leaves its allocator waiting for the end
        of it: memory that several streams used would never be free again.
        """
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        with suppress(RuntimeError):  # torch has ended it: then it gives the pool back as well
            torch._C._cuda_endAllocateToPool(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)


def _copy(own: Tree, given: Tree) -> None:
    """The values of `given` into the tensors of `own`, each tensor once."""
    done: set[int] = set()
    for mine, theirs in zip(leaves(own), leaves(given), strict=True):
        if id(mine) not in done:
            done.add(id(mine))
            mine.copy_(theirs)
