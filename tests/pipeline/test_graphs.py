"""Recorded denoising steps: the same as unrecorded ones, for whichever clip, size and text, within
bounds, and without them where they cannot be. CUDA's own part is in tests/gpu.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ltx_core.types import VideoPixelShape

from ltxq.job import VideoRequest
from ltxq_worker.models.tiny.model import make_tiny
from ltxq_worker.pipeline import memory
from ltxq_worker.pipeline.denoise import Latents, Step, Transformer, in_one_stage, in_two_stages
from ltxq_worker.pipeline.fast import graphs
from ltxq_worker.pipeline.fast.graphs import CudaGraphs, GraphedTransformer, Run
from ltxq_worker.pipeline.fast.transformer import (
    FastTransformer,
    PreparedInputs,
    Streams,
    leaves,
    mapped,
)
from ltxq_worker.pipeline.ltx import LtxPipeline

SMALL = VideoPixelShape(1, 9, 64, 64, 24)
LARGE = VideoPixelShape(1, 17, 96, 64, 31)
PROMPTS = "a cat", "A lighthouse in a storm — rain on the glass."


class Replays:
    """A recorder that does as `CudaGraphs` does: no Python runs again but the work itself, on the
    memory it first had, into the memory it first wrote.
    """

    def __init__(self) -> None:
        self.kept = 0
        self.recorded = 0
        self.forgotten = 0

    def record(self, run: Run) -> Run:
        self.recorded += 1
        self.kept += 1000
        outcome = run()

        def again() -> Streams:
            for own, new in zip(outcome, run(), strict=True):
                own.copy_(new)
            return outcome

        return again

    def forget(self) -> None:
        self.forgotten += 1
        self.kept = 0


@pytest.fixture(scope="module", params=["ltx-2-19b", "ltx-2.3-22b"])
def pipeline(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> LtxPipeline:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("models") / request.param
    make_tiny(path, request.param)
    return LtxPipeline.load(path, device="cpu", optimize="hoist")


@pytest.fixture
def recorder() -> Replays:
    return Replays()


@pytest.fixture
def graphed(pipeline: LtxPipeline, recorder: Replays) -> GraphedTransformer:
    return GraphedTransformer(FastTransformer(pipeline._parts.transformer), recorder)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_clips_in_any_order_equal_those_of_unrecorded_steps(
    pipeline: LtxPipeline, graphed: GraphedTransformer, recorder: Replays
) -> None:
    plain = FastTransformer(pipeline._parts.transformer)
    orders = [(SMALL, 0), (LARGE, 1), (SMALL, 1), (LARGE, 1), (LARGE, 0), (SMALL, 0)]
    kept: list[tuple[Latents, Latents]] = []
    for seed, (shape, prompt) in enumerate(orders):
        kept.append(
            (
                made(pipeline, graphed, shape, PROMPTS[prompt], seed),
                made(pipeline, plain, shape, PROMPTS[prompt], seed),
            )
        )
    for ours, theirs in kept:  # at the end: a later clip must not have written into an earlier one
        assert torch.equal(ours.video, theirs.video)
        assert torch.equal(ours.audio, theirs.audio)
    assert recorder.recorded == 2


def test_what_a_step_gave_stays_as_it_is_in_the_next(
    pipeline: LtxPipeline, graphed: GraphedTransformer
) -> None:
    gave: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched:
        def bind(self, *clip: Any) -> Step:
            step = graphed.bind(*clip)

            def watched(*state: Any) -> Streams:
                for tensor in (streams := step(*state)):
                    gave.append((tensor, tensor.clone()))
                return streams

            return watched

    made(pipeline, Watched(), SMALL)
    assert len(gave) == 16
    assert all(torch.equal(tensor, then) for tensor, then in gave)


def test_a_recording_has_the_positions_of_the_last_clip(
    pipeline: LtxPipeline, recorder: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which another frame rate changes; in bf16, and in clips as short as these, by nothing."""
    fast = FastTransformer(pipeline._parts.transformer)
    prepare, prepared = fast.prepare, []

    def elsewhere(*clip: Any) -> PreparedInputs:
        bound = prepare(*clip)
        share = 1 / (1 + len(prepared))
        prepared.append(replace(bound, rest=mapped(lambda tensor: tensor * share, bound.rest)))
        return prepared[-1]

    monkeypatch.setattr(fast, "prepare", elsewhere)
    graphed = GraphedTransformer(fast, recorder)
    for count in (1, 2):
        made(pipeline, graphed, LARGE)
        (recorded,) = graphed._recorded.values()
        held = list(leaves(recorded._prepared.rest))
        assert all(map(torch.equal, held, leaves(prepared[count - 1].rest)))


def test_two_stages_have_a_recording_each(
    pipeline: LtxPipeline, graphed: GraphedTransformer, recorder: Replays
) -> None:
    shape = VideoPixelShape(1, 9, 128, 64, 24)
    context = pipeline._context(PROMPTS[0])

    def both(transformer: Transformer) -> Latents:
        generator = torch.Generator().manual_seed(3)
        return in_two_stages(
            transformer, pipeline._upsample, context, shape, generator, lambda step: None
        )

    theirs = both(FastTransformer(pipeline._parts.transformer))
    for _ in range(2):
        assert torch.equal(both(graphed).video, theirs.video)
    assert recorder.recorded == 2


def test_kept_prompts_are_not_written_to(
    pipeline: LtxPipeline, graphed: GraphedTransformer
) -> None:
    first = pipeline._context(PROMPTS[0])
    before = first.video.clone(), first.audio.clone()
    made(pipeline, graphed, SMALL, PROMPTS[0])
    made(pipeline, graphed, SMALL, PROMPTS[1])
    assert torch.equal(first.video, before[0])
    assert torch.equal(first.audio, before[1])


def test_only_the_last_sizes_are_kept_and_only_those_it_pays_for(
    pipeline: LtxPipeline,
    graphed: GraphedTransformer,
    recorder: Replays,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graphs, "SHAPES_KEPT", 2)
    sizes = [SMALL._replace(frames=frames) for frames in (1, 9, 17)]
    for shape in (*sizes, sizes[2], sizes[0]):
        made(pipeline, graphed, shape)
    assert recorder.recorded == 4
    assert len(graphed._recorded) == 2
    monkeypatch.setattr(graphs, "TOKENS_GRAPHED", 3)
    made(pipeline, graphed, SMALL)
    assert recorder.recorded == 4


def test_a_step_between_two_reports_is_one_replay(
    pipeline: LtxPipeline, graphed: GraphedTransformer
) -> None:
    """So that cancelling is heard after each, and stops it."""

    class Stop(Exception):
        """What a report raises."""

    def stop(step: int) -> None:
        if step == 3:
            raise Stop

    context = pipeline._context(PROMPTS[0])
    with pytest.raises(Stop):
        in_one_stage(graphed, context, SMALL, torch.Generator().manual_seed(1), stop)
    plain = FastTransformer(pipeline._parts.transformer)
    assert torch.equal(made(pipeline, graphed, SMALL).video, made(pipeline, plain, SMALL).video)


class Refuses(Replays):
    """Raises what CUDA does."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def record(self, run: Run) -> Run:
        self.recorded += 1
        raise self._error


def test_what_cannot_be_recorded_is_told_and_clips_are_made_without(
    pipeline: LtxPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Refuses(
        torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing\n…")
    )
    graphed = GraphedTransformer(FastTransformer(pipeline._parts.transformer), recorder)
    plain = FastTransformer(pipeline._parts.transformer)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(
                made(pipeline, graphed, SMALL).video, made(pipeline, plain, SMALL).video
            )
    (line,) = [record.getMessage() for record in caplog.records]
    assert "'graphs' is now off" in line
    assert "not permitted when stream is capturing" in line
    assert recorder.recorded == 1
    assert not graphed.on
    assert not graphed._text


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN Frontend error: No valid execution plans built."),  # attention's matter
    ],
    ids=["broken", "refused by cuDNN"],
)
def test_what_is_not_the_recordings_doing_is_passed_on(
    pipeline: LtxPipeline, error: Exception
) -> None:
    graphed = GraphedTransformer(FastTransformer(pipeline._parts.transformer), Refuses(error))
    with pytest.raises(type(error), match=str(error)):
        made(pipeline, graphed, SMALL)
    assert graphed.on


def test_a_recording_that_memory_does_not_hold_is_left_out_once(
    pipeline: LtxPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(Replays):
        def record(self, run: Run) -> Run:
            if self.recorded == 1:
                self.recorded += 1
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().record(run)

    recorder = Full()
    graphed = GraphedTransformer(FastTransformer(pipeline._parts.transformer), recorder)
    for shape in (SMALL, LARGE, LARGE):
        made(pipeline, graphed, shape)
    assert recorder.recorded == 3
    assert recorder.forgotten == 1
    assert graphed.on
    assert not caplog.records


def test_a_clip_that_needs_the_recordings_memory_gets_it(
    pipeline: LtxPipeline, graphed: GraphedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline._fast, "transformer", graphed)
    monkeypatch.setattr(pipeline._fast, "_graphs", graphed)
    request = VideoRequest(seed=42, prompt=PROMPTS[0], height=64, width=64, num_frames=9)
    list(pipeline.generate(request, lambda *_: None).frames)
    assert pipeline._fast.bytes_kept == 1000
    list(pipeline.generate(request, lambda *_: None).frames)
    assert pipeline._fast.bytes_kept == 1000
    needed = memory.bytes_needed(pipeline._config, memory.Shape(64, 64, 9))
    monkeypatch.setattr(pipeline, "_budget", lambda: needed + 999)
    monkeypatch.setattr(graphed, "on", False)
    list(pipeline.generate(request, lambda *_: None).frames)
    assert pipeline._fast.bytes_kept == 0


class Cuda:
    """What `CudaGraphs` uses of torch, as torch 2.11 behaves: whose stream is current, and what its
    allocator waits for. That graphs replay is tests/gpu's.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current, self.streams = "now", 0
        self.capturing: set[str] = set()  # pools whose end the allocator waits for
        self.given_back: list[str] = []
        self.ends_well = True
        cuda = {
            "Stream": self._stream,
            "current_stream": lambda device: Cuda.Stream("now"),
            "stream": self.entered,
            "graph": self.graph,
            "graph_pool_handle": lambda: "pool",
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "empty_cache": lambda: None,
            "memory_reserved": lambda device: 0,
            "current_device": lambda: 0,
        }
        for name, what in cuda.items():
            monkeypatch.setattr(torch.cuda, name, what)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self._end)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda _, p: self.given_back.append(p))

    @dataclass
    class Stream:
        name: str

        def wait_stream(self, other: Cuda.Stream) -> None: ...

    def _stream(self, device: object) -> Cuda.Stream:
        self.streams += 1
        return Cuda.Stream(f"side {self.streams}")

    @contextmanager
    def entered(self, stream: Cuda.Stream) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, _: object, *, pool: str, stream: Cuda.Stream, **how: object) -> Iterator[None]:
        before, self.current = self.current, stream.name
        self.capturing.add(pool)
        try:
            yield
        finally:
            if not self.ends_well:  # its stream stays, and the allocator goes on waiting
                raise torch.AcceleratorError("CUDA error: a previous error during capture")
            self.capturing.remove(pool)
            self.current = before

    def _end(self, _: int, pool: str) -> None:
        if pool not in self.capturing:
            raise RuntimeError("not currently recording to mempool_id")
        self.capturing.remove(pool)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


def test_all_recordings_share_one_stream(cuda: Cuda) -> None:
    recorder = CudaGraphs(torch.device("cuda"))
    used: list[str] = []
    for _ in range(3):
        recorder.record(lambda: used.append(cuda.current))  # type: ignore[arg-type, func-returns-value]
    assert used == ["side 1"] * 9  # twice to prepare, once to record
    assert cuda.current == "now"
    assert not cuda.given_back


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_capture_that_fails_leaves_stream_and_allocator_as_they_were(
    cuda: Cuda, ends_well: bool
) -> None:
    recorder = CudaGraphs(torch.device("cuda"))
    cuda.ends_well = ends_well
    runs: list[None] = []

    def run() -> Any:
        runs.append(None)
        if len(runs) == 3:
            raise torch.AcceleratorError("CUDA error: not permitted when stream is capturing")

    with pytest.raises(torch.AcceleratorError, match="not permitted"):  # the first of the errors
        recorder.record(run)
    assert cuda.current == "now"
    assert not cuda.capturing
    # Given back once: by torch's own graph, if that ended well.
    assert cuda.given_back == ([] if ends_well else ["pool"])


def made(
    pipeline: LtxPipeline,
    transformer: Transformer,
    shape: VideoPixelShape,
    prompt: str = PROMPTS[0],
    seed: int = 7,
) -> Latents:
    context = pipeline._context(prompt)
    return in_one_stage(
        transformer, context, shape, torch.Generator().manual_seed(seed), lambda step: None
    )
