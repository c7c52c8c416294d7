"""A denoising step as one CUDA graph: the CPU launches it once instead of thousands of kernels.

A graph reads and writes the same memory at each launch, so a step's inputs are copied to the
graph's memory and its outputs are copied out. The graphs of the last few sizes are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

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
from ltxq_worker.pipeline.fast.options import describe_error, step_down
from ltxq_worker.pipeline.fast.transformer import (
    FastTransformer,
    PreparedInputs,
    Streams,
    Tree,
    leaves,
    mapped,
    noise_levels,
)

SHAPES_KEPT = 4  # sizes whose graphs are kept; a clip in two stages has two sizes

# Picture tokens. With more, a step takes much longer than its launches, and its graph would keep
# gigabytes. 768×512 with 121 frames has 6,144 tokens, whose arithmetic alone takes an H200 171 ms
# in FP8 (computed).
TOKENS_GRAPHED = 8192

Run = Callable[[], Streams]


class GraphedTransformer:
    """A `Transformer` that replays recorded steps of a `FastTransformer`."""

    def __init__(self, transformer: FastTransformer, recorder: CudaGraphs) -> None:
        self._transformer = transformer
        self._recorder = recorder
        self._recorded: OrderedDict[tuple[torch.Size, ...], _Recorded] = OrderedDict()
        self._text: Tree = ()  # shared by all recordings, since it takes up to a gigabyte
        self.on = True  # until recording fails

    @property
    def kept(self) -> int:
        """Bytes of device memory that recordings keep, which torch does not count as allocated."""
        return self._recorder.kept

    def bind(
        self,
        video: LatentState,
        audio: LatentState,
        context: TextContext,
        levels: Sequence[float],
    ) -> Step:
        """As `Transformer.bind`. Records a step if there is no recording for the size."""
        recorded = None
        if self.on and video.latent.shape[1] <= TOKENS_GRAPHED:
            recorded = self._prepared(video, audio, context)
        if recorded is None:
            return self._transformer.bind(video, audio, context, levels)
        sigmas = noise_levels(tuple(levels), video.latent.device)
        return lambda video, audio, index: recorded.step(
            video, audio, sigmas[index], sigmas[index + 1]
        )

    def forget(self) -> None:
        """Free all memory. The next clip is recorded again."""
        self._recorded.clear()
        self._text = ()
        self._recorder.forget()

    def _prepared(
        self, video: LatentState, audio: LatentState, context: TextContext
    ) -> _Recorded | None:
        """A recording that holds this clip's text and positions; None: recording failed."""
        inputs = self._transformer.prepare(video, audio, context)
        if self._text:
            _copy(self._text, inputs.text)
        else:
            self._text = mapped(torch.clone, inputs.text)
        key = (video.latent.shape, audio.latent.shape)
        recorded = self._recorded.pop(key, None)
        if recorded is not None:
            recorded.take(inputs)
        else:
            inputs = replace(inputs, text=self._text, rest=mapped(torch.clone, inputs.rest))
            recorded = self._record(inputs, video.latent, audio.latent)
        if recorded is not None:
            self._recorded[key] = recorded  # in order of last use
            if len(self._recorded) > SHAPES_KEPT:
                self._recorded.popitem(last=False)
        return recorded

    def _record(
        self, inputs: PreparedInputs, video: torch.Tensor, audio: torch.Tensor
    ) -> _Recorded | None:
        try:
            return _Recorded(self._transformer, inputs, video, audio, self._recorder)
        except Exception as exc:  # CUDA forbids many calls while it records
            if is_broken(exc) or is_refused_by_cudnn(exc):
                raise  # not caused by recording
            no_memory = is_out_of_memory(exc)
            why = describe_error(exc)
        # Outside the `except`, the error and the tensors that its traceback held are freed.
        self.forget()
        free_memory(video.device)
        if not no_memory:  # out of memory, smaller clips may still be recorded
            self.on = False
            step_down("graphs", why, "Take graphs out of LTXQ_OPTIMIZE, and report this line.")
        return None


class _Recorded:
    """A recorded step for one size, and the memory it reads."""

    def __init__(
        self,
        transformer: FastTransformer,
        prepared: PreparedInputs,
        video: torch.Tensor,
        audio: torch.Tensor,
        recorder: CudaGraphs,
    ) -> None:
        """`prepared`: tensors that belong to this recording from now on, except the shared text."""
        self._prepared = prepared
        sigma = torch.ones((), device=video.device)
        self._inputs = (video.clone(), audio.clone(), sigma, sigma / 2)
        self._replay = recorder.record(lambda: transformer.step(prepared, *self._inputs))

    def take(self, prepared: PreparedInputs) -> None:
        """Use the positions of another clip from now on. Its text is in the shared memory."""
        _copy(self._prepared.rest, prepared.rest)

    def step(self, *inputs: torch.Tensor) -> Streams:
        """As `FastTransformer.step`."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        # Cloned, because all recordings write their outputs to the same memory pool.
        video, audio = self._replay()
        return video.clone(), audio.clone()


class CudaGraphs:
    """Records work on the device for replay. The graphs share one memory pool, since no two run at
    once.
    """

    def __init__(self, device: torch.device) -> None:
        self.kept = 0  # bytes of device memory that the recordings keep
        self._device = device
        # One stream for all recordings: cuBLAS keeps a workspace for each stream, and graphs of
        # different streams cannot reuse each other's memory in the pool.
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Run) -> Run:
        """Run `run` and return a function that replays it.

        `run` must not read values from the device. A replay reads the current contents of the
        memory that `run` read, and always returns the same tensors, with new contents.
        """
        now = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            run()  # compiles, plans and allocates workspaces, which a graph must not do
            run()
        now.wait_stream(self._stream)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        outputs = self._capture(graph, run, now)
        self.kept += max(0, torch.cuda.memory_reserved(self._device) - before)

        def replay() -> Streams:
            graph.replay()
            return outputs

        return replay

    def forget(self) -> None:
        """Release the memory of all recordings; none may be replayed any more."""
        self.kept = 0
        self._pool = torch.cuda.graph_pool_handle()

    def _capture(self, graph: torch.cuda.CUDAGraph, run: Run, now: torch.cuda.Stream) -> Streams:
        try:
            # thread_local: another thread may be waiting for frames of the previous clip. `now` is
            # entered so that it is restored: torch stays on its own stream if capturing fails.
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
            if exc.__context__ is not None:  # ending the failed capture raised a second error
                raise exc.__context__ from None
            raise

    def _close_pool(self) -> None:
        """End the pool's allocation mode after a failed capture. torch (2.11) leaves its allocator
        in it, and memory that several streams used would never be freed.
        """
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        with suppress(RuntimeError):  # torch has ended it itself and released the pool
            torch._C._cuda_endAllocateToPool(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)


def _copy(target: Tree, source: Tree) -> None:
    """Copy the values of `source` into the tensors of `target`, each tensor once."""
    done: set[int] = set()
    for tensor, values in zip(leaves(target), leaves(source), strict=True):
        if id(tensor) not in done:
            done.add(id(tensor))
            tensor.copy_(values)
