"""Each optimisation against the library's own code, on the tiny model: equal, or as near as
rounding allows. In float32, where rounding is small, a mistake has nowhere to hide.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx_core.types import VideoPixelShape
from torch.nn.attention import SDPBackend

from ltxq.job import VideoRequest
from ltxq_worker.models.tiny.model import make_tiny
from ltxq_worker.models.weights.text import TextContext, TextEncoder
from ltxq_worker.pipeline.denoise import Latents, LibraryTransformer, Transformer, in_one_stage
from ltxq_worker.pipeline.fast import attention
from ltxq_worker.pipeline.fast.attention import AttentionKernels
from ltxq_worker.pipeline.fast.graphs import Run
from ltxq_worker.pipeline.fast.options import Optimizations
from ltxq_worker.pipeline.fast.path import FastPath
from ltxq_worker.pipeline.fast.transformer import FastTransformer, Streams, run_one_block
from ltxq_worker.pipeline.ltx import LtxPipeline

SHAPES = [
    VideoPixelShape(1, 1, 64, 64, 24),
    VideoPixelShape(1, 25, 96, 64, 25),
]
SMALL = VideoRequest(prompt="a cat", height=64, width=64, num_frames=9, seed=1)
PROMPTS = ["a cat", "A lighthouse in a storm — rain on the glass.", "word " * 190]


@pytest.fixture(scope="module", params=["ltx-2-19b", "ltx-2.3-22b"])
def pipeline(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> LtxPipeline:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("models") / request.param
    make_tiny(path, request.param)
    return LtxPipeline.load(path, device="cpu", optimize="none")


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lean_equals_the_library_bit_for_bit(pipeline: LtxPipeline, shape: VideoPixelShape) -> None:
    model = pipeline._parts.transformer
    context = pipeline._context(PROMPTS[0])
    library = made(LibraryTransformer(model), context, shape)
    hoist = made(FastTransformer(model), context, shape)
    assert torch.equal(hoist.video, library.video)
    assert torch.equal(hoist.audio, library.audio)
    other = made(FastTransformer(model), pipeline._context(PROMPTS[1]), shape)
    assert not torch.equal(other.video, library.video)  # the text is heard


def test_lean_works_out_text_and_positions_once_a_clip(pipeline: LtxPipeline) -> None:
    model = pipeline._parts.transformer
    block = model.velocity_model.transformer_blocks[0]
    calls = {"text": 0, "adaln rows": 0}

    def text(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        calls["text"] += 1

    def adaln(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        calls["adaln rows"] = max(calls["adaln rows"], args[0].shape[0])

    hooks = [
        block.attn2.to_k.register_forward_pre_hook(text),
        model.velocity_model.adaln_single.linear.register_forward_pre_hook(adaln),
    ]
    try:
        made(FastTransformer(model), pipeline._context(PROMPTS[0]), SHAPES[0])
    finally:
        for hook in hooks:
            hook.remove()
    modulated = model.velocity_model.cross_attention_adaln  # LTX-2.3: the text changes each step
    assert calls == {"text": 8 if modulated else 1, "adaln rows": 1}


def test_attention_is_cudnns_first_for_a_large_clip_in_every_step_and_only_there(
    pipeline: LtxPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, context = pipeline._parts.transformer, pipeline._context(PROMPTS[0])
    usual = torch._C._get_sdp_priority_order()
    seen: list[int] = []

    def look(*args: Any) -> Streams:
        seen.append(torch._C._get_sdp_priority_order()[0])
        return run_one_block(*args)

    fast = FastTransformer(model, run_block=look, attention=AttentionKernels(prefer_cudnn=True))
    small = made(fast, context, SHAPES[1])
    assert set(seen) == {usual[0]} != {SDPBackend.CUDNN_ATTENTION.value}
    seen.clear()
    monkeypatch.setattr(attention, "CUDNN_FROM", 24)  # the clip's tokens
    large = made(fast, context, SHAPES[1])
    assert set(seen) == {SDPBackend.CUDNN_ATTENTION.value}
    assert len(seen) == 8 * len(model.velocity_model.transformer_blocks)
    assert torch._C._get_sdp_priority_order() == usual
    assert torch.equal(large.video, small.video)  # a CPU has one kernel


@pytest.mark.parametrize("where", ["a compiled block", "the text encoder"])
def test_attention_that_cudnn_refuses_runs_on_other_kernels_and_nothing_else_is_blamed(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where it is off: on Hopper torch itself takes cuDNN's first."""
    make_tiny(tmp_path / "tiny")
    pipeline = LtxPipeline.load(tmp_path / "tiny", device="cpu", optimize="hoist")
    refused: list[str] = []

    def refuse(here: str) -> None:
        if here == where and torch.backends.cuda.cudnn_sdp_enabled():
            refused.append(here)
            raise RuntimeError("cuDNN Frontend error: No valid execution plans built.")

    def block(*args: Any) -> Streams:
        refuse("a compiled block")
        return run_one_block(*args)

    def encode(*args: Any, **options: Any) -> TextContext:
        refuse("the text encoder")
        return TextEncoder.encode(pipeline._parts.text, *args, **options)

    monkeypatch.setattr(pipeline._parts.text, "encode", encode)
    monkeypatch.setattr("ltxq_worker.pipeline.fast.compiled._compiled", lambda backend: block)
    monkeypatch.setattr("ltxq_worker.pipeline.fast.path.CudaGraphs", lambda device: Records())
    chosen = Optimizations(hoist=True, attention=True, compile=True, graphs=True)
    pipeline._fast = FastPath(pipeline._parts.transformer, chosen, torch.device("cpu"))
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                clip = pipeline.generate(SMALL, lambda *_: None)
                assert sum(map(len, clip.frames)) == SMALL.num_frames
        assert str(pipeline.optimizations) == "hoist,compile,graphs"
        assert refused == [where]
        (line,) = [record.getMessage() for record in caplog.records]
        assert "'attention' is now off" in line
        assert "No valid execution plans" in line
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


class Records:
    """As `CudaGraphs`, but does the work each time."""

    kept = 0

    def record(self, run: Run) -> Run:
        run()
        return run

    def forget(self) -> None: ...


@pytest.mark.parametrize("prompt", PROMPTS, ids=["few", "some", "beyond the sliding window"])
def test_a_prompt_without_padding_gives_the_same_contexts(
    pipeline: LtxPipeline, prompt: str
) -> None:
    text = in_float32(pipeline._parts.text)
    padded, bare = text.encode(prompt), text.encode(prompt, padded=False)
    assert bare.video.shape == padded.video.shape
    assert error(bare.video, padded.video) < 1e-5
    assert error(bare.audio, padded.audio) < 1e-5


def test_another_prompt_gives_other_contexts(pipeline: LtxPipeline) -> None:
    """That the comparison above can fail."""
    text = in_float32(pipeline._parts.text)
    padded, other = text.encode("a cat"), text.encode("a dog", padded=False)
    assert error(other.video, padded.video) > 1e-2
    assert error(other.audio, padded.audio) > 1e-2


def made(transformer: Transformer, context: TextContext, shape: VideoPixelShape) -> Latents:
    return in_one_stage(
        transformer, context, shape, torch.Generator().manual_seed(7), lambda step: None
    )


def in_float32(text: TextEncoder) -> TextEncoder:
    """The same one, unrounded from here on."""
    return TextEncoder(
        text.tokenizer,
        copy.deepcopy(text.gemma).float(),
        copy.deepcopy(text.embeddings).float(),
    )


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative, in L2."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())
