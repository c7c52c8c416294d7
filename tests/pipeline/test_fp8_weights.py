"""The transformer in FP8 from both kinds of checkpoint, against bf16 and the library's own cast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ltx_core.types import VideoPixelShape
from safetensors.torch import load_file

from ltxq_worker.models.tiny.model import CHECKPOINT, make_tiny
from ltxq_worker.models.weights import fp8
from ltxq_worker.models.weights.fp8 import Fp8Linear
from ltxq_worker.models.weights.resident import Quantization
from ltxq_worker.models.weights.text import TextContext
from ltxq_worker.pipeline.denoise import Latents, LibraryTransformer, in_one_stage
from ltxq_worker.pipeline.ltx import LtxPipeline

BLOCKS, IN_FP8 = 8, {1, 2}  # all but the first and the last five
PREFIX = "model.diffusion_model."
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Models:
    """A tiny model in both forms."""

    bf16: Path
    published: Path


@pytest.fixture(scope="module", params=["ltx-2-19b", "ltx-2.3-22b"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    make_tiny(folder / "bf16", request.param, blocks=BLOCKS)
    make_tiny(folder / "published", request.param, blocks=BLOCKS, published_fp8=True)
    return Models(folder / "bf16", folder / "published")


def loaded(folder: Path, quantization: Quantization) -> LtxPipeline:
    return LtxPipeline.load(folder, device="cpu", quantization=quantization, optimize="none")


def cast_by_the_library(pipeline: LtxPipeline) -> LtxPipeline:
    """`pipeline` with ltx-core's own FP8, which converts each weight to bf16 on use."""
    from ltx_core.quantization import QuantizationPolicy  # it can only be imported after the loader

    policy = QuantizationPolicy.fp8_cast()
    model = pipeline._parts.transformer.velocity_model
    weights: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        weights |= dict(policy.sd_ops.apply_to_key_value(name, value))
    model.load_state_dict(weights, strict=True, assign=True)
    for operation in policy.module_ops:
        operation.mutator(model)
    return pipeline


def layers(pipeline: LtxPipeline) -> dict[str, torch.nn.Module]:
    return dict(pipeline._parts.transformer.velocity_model.named_modules())


def in_fp8(pipeline: LtxPipeline) -> dict[str, Fp8Linear]:
    return {n: layer for n, layer in layers(pipeline).items() if isinstance(layer, Fp8Linear)}


@pytest.mark.parametrize("form", ["bf16", "published"])
def test_each_layer_is_near_the_bf16_one_and_the_rest_is_the_same(
    models: Models, form: str
) -> None:
    folder = getattr(models, form)
    ours, theirs = in_fp8(loaded(folder, "fp8")), layers(loaded(folder, "bf16"))
    assert {int(name.split(".")[1]) for name in ours} == IN_FP8
    assert len(ours) == 28 * len(IN_FP8)
    with torch.inference_mode():
        for name, layer in ours.items():
            x = torch.randn(64, layer.in_features).bfloat16()
            assert 0.01 < error(layer(x), theirs[name](x)) < 0.05, name
            assert torch.equal(layer.bias, theirs[name].bias)
    kept = layers(loaded(folder, "fp8"))["transformer_blocks.0.attn1.to_q"]
    assert torch.equal(kept.weight, theirs["transformer_blocks.0.attn1.to_q"].weight)


def test_a_bf16_weight_gets_a_scale_for_each_row(models: Models) -> None:
    stored = load_file(models.bf16 / CHECKPOINT)
    for name, layer in in_fp8(loaded(models.bf16, "fp8")).items():
        weight = stored[f"{PREFIX}{name}.weight"].float()
        assert layer.weight_scale.shape == (1, len(weight))
        assert torch.equal(layer.weight_scale[0], weight.abs().amax(1) / 448)
        rows = layer.weight.float() * layer.weight_scale.T
        assert ((rows - weight).abs() <= weight.abs() / 16 + layer.weight_scale.T / 512).all()


def test_published_weights_are_taken_as_they_are_with_their_scales(models: Models) -> None:
    stored = load_file(models.published / CHECKPOINT)
    ours = in_fp8(loaded(models.published, "fp8"))
    assert {name for name in stored if name.endswith(".weight_scale")} == {
        f"{PREFIX}{name}.weight_scale" for name in ours
    }
    for name, layer in ours.items():
        assert torch.equal(
            layer.weight.view(torch.uint8), stored[f"{PREFIX}{name}.weight"].view(torch.uint8)
        )
        scale = stored[f"{PREFIX}{name}.weight_scale"]
        assert torch.equal(layer.weight_scale, scale.expand(1, layer.out_features))


def test_published_weights_are_widened_by_their_scales_where_bf16_is_wanted(
    models: Models,
) -> None:
    stored = load_file(models.published / CHECKPOINT)
    pipeline = loaded(models.published, "bf16")
    assert not in_fp8(pipeline)
    modules = layers(pipeline)
    for name, scale in stored.items():
        if name.endswith(".weight_scale"):
            layer = name.removeprefix(PREFIX).removesuffix(".weight_scale")
            weight = stored[f"{PREFIX}{layer}.weight"].float() * scale
            assert torch.equal(modules[layer].weight, weight.bfloat16())


def test_the_latent_is_nearer_to_bf16s_than_the_librarys_cast_is(models: Models) -> None:
    """Seen: 0.54 to 0.65 of its error; from published weights, against those widened, 0.31 to 0.48.
    Ours has two of the eight blocks in FP8, the cast has all, but leaves tokens alone.
    """
    bf16 = loaded(models.bf16, "bf16")
    context = bf16._context("a cat in the snow")
    exact = denoised(bf16, context)
    cast = denoised(cast_by_the_library(loaded(models.bf16, "bf16")), context)
    ours = denoised(loaded(models.bf16, "fp8"), context)
    published = denoised(loaded(models.published, "fp8"), context)
    widened = denoised(loaded(models.published, "bf16"), context)
    for stream in ("video", "audio"):
        library = error(getattr(cast, stream), getattr(exact, stream))
        assert 0 < error(getattr(ours, stream), getattr(exact, stream)) < 0.8 * library
        assert 0 < error(getattr(published, stream), getattr(widened, stream)) < 0.8 * library


def test_with_all_blocks_in_fp8_the_latent_is_about_as_near_as_the_librarys_cast(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: 0.98 to 1.08 of its error. Two blocks with scales 5 % off would be at 1.05 to 1.36."""
    bf16 = loaded(models.bf16, "bf16")
    context = bf16._context("a cat in the snow")
    exact = denoised(bf16, context)
    cast = denoised(cast_by_the_library(loaded(models.bf16, "bf16")), context)
    monkeypatch.setattr(fp8, "FIRST_KEPT", 0)
    monkeypatch.setattr(fp8, "LAST_KEPT", 0)
    every = loaded(models.bf16, "fp8")
    assert len(in_fp8(every)) == 28 * BLOCKS
    ours = denoised(every, context)
    for stream in ("video", "audio"):
        library = error(getattr(cast, stream), getattr(exact, stream))
        assert 0.7 * library < error(getattr(ours, stream), getattr(exact, stream)) < 1.2 * library


def denoised(pipeline: LtxPipeline, context: TextContext) -> Latents:
    """The last latents of a small clip, with attention as soft as a trained model's: the tiny
    one's is so sharp, for its pictures' sake, that rounding to bf16 alone moves them by a third.
    """
    for name, weight in pipeline._parts.transformer.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            weight.data.fill_(1)
    transformer = LibraryTransformer(pipeline._parts.transformer)
    with torch.inference_mode():
        return in_one_stage(
            transformer,
            context,
            VideoPixelShape(1, 25, 96, 64, 25),
            torch.Generator().manual_seed(7),
            lambda step: None,
        )


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative, in L2."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())
