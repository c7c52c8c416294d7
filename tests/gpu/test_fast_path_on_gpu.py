"""What only a GPU can show of the fast path, with a tiny model: graphs replay what eager computes,
nothing waits for the device, copies arrive whole, stages are timed on the device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ltx_core.types import VideoPixelShape

from ltxq.job import Stage, VideoRequest
from ltxq_worker.models.tiny.model import make_tiny
from ltxq_worker.pipeline.decode.decoder import channels_last
from ltxq_worker.pipeline.decode.transfer import AsyncCopies
from ltxq_worker.pipeline.decode.yuv import to_yuv420
from ltxq_worker.pipeline.denoise import Latents, Transformer, in_one_stage
from ltxq_worker.pipeline.device import exact_float32
from ltxq_worker.pipeline.fast.attention import AttentionKernels
from ltxq_worker.pipeline.fast.graphs import CudaGraphs, GraphedTransformer
from ltxq_worker.pipeline.fast.transformer import FastTransformer, Streams
from ltxq_worker.pipeline.ltx import LtxPipeline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUDA = torch.device("cuda")
SIZES = [VideoPixelShape(1, 9, 64, 64, 24), VideoPixelShape(1, 33, 512, 768, 24)]
REQUEST = VideoRequest(prompt="a cat", height=512, width=768, num_frames=33, seed=1)


@pytest.fixture(scope="module", params=["ltx-2-19b", "ltx-2.3-22b"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("models") / request.param
    make_tiny(path, request.param)
    return path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> LtxPipeline:
    return LtxPipeline.load(folder, device="cuda", optimize="hoist", quantization="bf16")


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_graphs_of_several_sizes_equal_eager(pipeline: LtxPipeline) -> None:
    fast = FastTransformer(pipeline._parts.transformer)
    graphed = GraphedTransformer(fast, CudaGraphs(CUDA))
    for prompt, size in (("a cat", 0), ("a dog", 1), ("rain", 0), ("a cat", 1)):
        ours = made(pipeline, graphed, SIZES[size], prompt)
        theirs = made(pipeline, fast, SIZES[size], prompt)
        assert torch.equal(ours.video, theirs.video)
        assert torch.equal(ours.audio, theirs.audio)
    assert graphed.on
    assert graphed.kept > 0
    graphed.forget()
    assert torch.equal(
        made(pipeline, graphed, SIZES[0]).video, made(pipeline, fast, SIZES[0]).video
    )


def test_a_step_that_cannot_be_recorded_is_made_without_and_nothing_stays_behind(
    pipeline: LtxPipeline,
) -> None:
    class Waits(FastTransformer):
        def step(self, bound: Any, video: Any, audio: Any, sigma: Any, after: Any) -> Streams:
            float(sigma)  # CUDA does not permit this while it records
            return super().step(bound, video, audio, sigma, after)

    before = torch.cuda.current_stream()
    graphed = GraphedTransformer(Waits(pipeline._parts.transformer), CudaGraphs(CUDA))
    plain = FastTransformer(pipeline._parts.transformer)
    for size in SIZES:
        ours, theirs = made(pipeline, graphed, size), made(pipeline, plain, size)
        assert torch.equal(ours.video, theirs.video)
    assert not graphed.on
    assert torch.cuda.current_stream() == before
    # torch's allocator waits for no recording to end: what two streams used is free again.
    torch.cuda.synchronize()
    active = torch.cuda.memory_stats()["active_bytes.all.current"]
    part = torch.empty(64_000_000, dtype=torch.uint8, device=CUDA)
    part.record_stream(torch.cuda.Stream())
    del part
    torch.cuda.synchronize()
    torch.empty(1, device=CUDA)  # it looks when it is asked for memory
    assert torch.cuda.memory_stats()["active_bytes.all.current"] < active + 32_000_000


def test_no_step_waits_for_the_device(pipeline: LtxPipeline) -> None:
    fast = FastTransformer(
        pipeline._parts.transformer, attention=AttentionKernels(prefer_cudnn=True)
    )
    made(pipeline, fast, SIZES[1])
    began: list[int] = []

    def step_done(step: int) -> None:
        began.append(step)
        torch.cuda.set_sync_debug_mode("error" if step < 8 else "default")

    try:
        made(pipeline, fast, SIZES[1], step_done=step_done)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert began == list(range(1, 9))


def test_cudnns_attention_is_as_near_to_float32_as_eager(pipeline: LtxPipeline) -> None:
    model = pipeline._parts.transformer
    plain = made(pipeline, FastTransformer(model), SIZES[1])
    ours = made(
        pipeline, FastTransformer(model, attention=AttentionKernels(prefer_cudnn=True)), SIZES[1]
    )
    assert error(ours.video, plain.video) < 0.1  # of eight steps on a tiny, sharp model


def test_everything_on_makes_clips_and_nothing_steps_down(folder: Path) -> None:
    pipeline = LtxPipeline.load(folder, device="cuda", optimize="all", quantization="bf16")
    pipeline.warm_up([REQUEST])
    assert str(pipeline.optimizations) == "hoist,attention,compile,graphs,decode,text,frames"
    clip = pipeline.generate(REQUEST, ignore)
    assert clip.pixels == "yuv420p"
    frames = np.concatenate(list(clip.frames))
    assert frames.shape == (33, 768, 768)
    assert frames.std() > 5
    assert clip.sound is not None
    assert np.isfinite(clip.sound.samples).all()
    assert set(clip.timings) == {"encode_text", "denoise", "decode"}
    assert all(0 < seconds < 60 for seconds in clip.timings.values())


def test_the_decoder_in_channels_last_equals_the_librarys(pipeline: LtxPipeline) -> None:
    decoder = copy.deepcopy(pipeline._parts.video_decoder).float()
    latent = torch.randn(1, 128, 3, 8, 12, device=CUDA)
    with exact_float32():
        theirs = decoder(latent)
        ours = channels_last(decoder)(latent)
    assert error(ours, theirs) < 1e-5


def test_copies_arrive_whole_while_the_device_goes_on() -> None:
    send = AsyncCopies(CUDA)
    parts = [torch.full((8, 768, 512), value, dtype=torch.uint8, device=CUDA) for value in range(9)]
    fetches = []
    for part in parts:
        fetches.append(send(part + 1))  # the original is dropped at once
    for value, fetch in enumerate(fetches):
        array = fetch()
        assert array.min() == array.max() == value + 1


def test_colours_on_the_device_are_those_of_the_cpu_within_one() -> None:
    frames = torch.randint(0, 256, (3, 64, 96, 3), dtype=torch.uint8)
    on_device = to_yuv420(frames.to(CUDA)).cpu().int()
    assert int((on_device - to_yuv420(frames).int()).abs().max()) <= 1


def made(
    pipeline: LtxPipeline,
    transformer: Transformer,
    size: VideoPixelShape,
    prompt: str = "a cat",
    step_done: object = None,
) -> Latents:
    generator = torch.Generator(CUDA).manual_seed(7)
    context = pipeline._context(prompt)
    return in_one_stage(transformer, context, size, generator, step_done or (lambda step: None))


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative, in L2."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def ignore(stage: Stage, step: int, steps: int) -> None:
    """A report nobody reads."""
