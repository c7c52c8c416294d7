"""Each optimisation against the library's own code, on the tiny model: equal, or as near as
rounding allows. In float32, where rounding is small, a mistake has nowhere to hide.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ltx_core.types import VideoPixelShape
from torch.nn.attention import SDPBackend

from ltxq_worker.models.text import TextContext, TextEncoder
from ltxq_worker.models.tiny import make_tiny
from ltxq_worker.pipeline import attention
from ltxq_worker.pipeline.denoise import Latents, LibraryTransformer, Transformer, in_one_stage
from ltxq_worker.pipeline.ltx import LtxPipeline
from ltxq_worker.pipeline.transformer import FastTransformer, Streams, run_one_block

SHAPES = [
    VideoPixelShape(1, 1, 64, 64, 24),
    VideoPixelShape(1, 25, 96, 64, 25),
]
PROMPTS = ["a cat", "A lighthouse in a storm — rain on the glass.", "word " * 190]


@pytest.fixture(scope="module", params=["ltx-2-19b", "ltx-2.3-22b"])
def pipeline(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> LtxPipeline:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("models") / request.param
    make_tiny(path, request.param)
    return LtxPipeline.load(path, model=request.param, device="cpu", optimize="none")


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lean_equals_the_library_bit_for_bit(pipeline: LtxPipeline, shape: VideoPixelShape) -> None:
    model = pipeline._parts.transformer
    context = pipeline._context(PROMPTS[0])
    library = made(LibraryTransformer(model), context, shape)
    lean = made(FastTransformer(model), context, shape)
    assert torch.equal(lean.video, library.video)
    assert torch.equal(lean.audio, library.audio)
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

    fast = FastTransformer(model, run_block=look, cudnn=True)
    small = made(fast, context, SHAPES[1])
    assert set(seen) == {usual[0]} != {SDPBackend.CUDNN_ATTENTION.value}
    seen.clear()
    monkeypatch.setattr(attention, "CUDNN_FROM", 24)  # the clip's tokens
    large = made(fast, context, SHAPES[1])
    assert set(seen) == {SDPBackend.CUDNN_ATTENTION.value}
    assert len(seen) == 8 * len(model.velocity_model.transformer_blocks)
    assert torch._C._get_sdp_priority_order() == usual
    assert torch.equal(large.video, small.video)  # a CPU has one kernel


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
        text._tokenizer,
        copy.deepcopy(text._gemma).float(),
        copy.deepcopy(text._embeddings).float(),
    )


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative, in L2."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())
