"""Builds a full-size model with random weights directly on the device, without files.

The name of a weight seeds its values, so that all arms have the same weights in their own formats
and need not keep a common copy. The same code builds the tiny model.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from ltx_core.model.audio_vae import AudioDecoderConfigurator, VocoderConfigurator
from ltx_core.model.transformer import LTXModelConfigurator, X0Model
from ltx_core.model.upsampler import LatentUpsamplerConfigurator
from ltx_core.model.video_vae import VideoDecoderConfigurator
from ltx_core.quantization import QuantizationPolicy
from transformers import AutoModel, Gemma3TextConfig

from ltxq_worker.models.files.folder import ModelFolder
from ltxq_worker.models.tiny import model as tiny
from ltxq_worker.models.tiny import text as tiny_text
from ltxq_worker.models.weights import fp8
from ltxq_worker.models.weights.text import TextEncoder, build_embeddings

Base = Literal["ltx-2-19b", "ltx-2.3-22b"]
Kind = Literal["bf16", "fp8_cast", "fp8"]

# The published sizes of Gemma 3 12B; transformers' default is a smaller model.
GEMMA_12B = {
    "vocab_size": 262_208,
    "hidden_size": 3840,
    "intermediate_size": 15_360,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 1024,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
GEMMA_TINY = GEMMA_12B | {
    "vocab_size": 1024,
    "hidden_size": tiny_text.HIDDEN,
    "intermediate_size": 2 * tiny_text.HIDDEN,
    "num_hidden_layers": tiny_text.LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
}
# The sizes of the published upscalers: half a billion weights, 1 GB.
UPSAMPLER = {"mid_channels": 1024, "num_blocks_per_stage": 4}
BLOCKS_TINY = 7  # of the transformer: one of them may be in FP8
UPSAMPLER_TINY = {"mid_channels": 64, "num_blocks_per_stage": 1}


@dataclass(frozen=True)
class Sizes:
    """The configurations to build a model from."""

    base: Base
    tiny: bool
    config: dict[str, Any]  # as in a checkpoint's header
    gemma: dict[str, Any]
    upsampler: dict[str, Any]

    @classmethod
    def of(cls, base: Base, *, tiny_one: bool) -> Sizes:
        """The published checkpoint's sizes, or the tiny model's."""
        rational = {"rational_resampler": base == "ltx-2-19b"}
        if tiny_one:
            config = tiny.shrunk(base, BLOCKS_TINY)
            return cls(base, True, config, GEMMA_TINY, UPSAMPLER_TINY | rational)
        config = json.loads((files("ltxq_worker.models") / f"{base}.json").read_text())
        return cls(base, False, config, GEMMA_12B, UPSAMPLER | rational)

    @property
    def context_widths(self) -> tuple[int, int]:
        """The widths of a prompt's contexts, for picture and for sound."""
        one = self.config["transformer"]
        if not one.get("caption_proj_before_connector", False):
            return one["caption_channels"], one["caption_channels"]
        return (
            one["num_attention_heads"] * one["attention_head_dim"],
            one["audio_num_attention_heads"] * one["audio_attention_head_dim"],
        )

    @property
    def blocks(self) -> int:
        """The number of transformer blocks."""
        return self.config["transformer"]["num_layers"]

    def with_blocks(self, count: int) -> Sizes:
        """The same with a transformer of `count` blocks."""
        transformer = self.config["transformer"] | {"num_layers": count}
        return replace(self, config=self.config | {"transformer": transformer})

    @property
    def folder(self) -> ModelFolder:
        """A `ModelFolder` with this configuration and without files."""
        nowhere = Path("random-weights")
        return ModelFolder(
            path=nowhere,
            name=self.base,
            checkpoint=nowhere,
            upscaler=nowhere,
            upscaler_config=self.upsampler,
            text_encoder=nowhere,
            config=self.config,
            version="random weights",
            fp8_scales={},
            tiny=self.tiny,
        )


@dataclass(frozen=True)
class Shared:
    """The modules that all arms share: everything but the transformer."""

    text: TextEncoder
    gemma: torch.nn.Module  # `text`'s
    embeddings: torch.nn.Module  # `text`'s: feature extractor and connectors
    video_decoder: torch.nn.Module
    audio_decoder: torch.nn.Module
    vocoder: torch.nn.Module
    upsampler: torch.nn.Module

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """All modules with weights."""
        return (
            self.gemma,
            self.embeddings,
            self.video_decoder,
            self.audio_decoder,
            self.vocoder,
            self.upsampler,
        )


def build_shared(sizes: Sizes, device: torch.device) -> Shared:
    """Gemma, connectors, decoders and upsampler in bf16."""
    gemma = build_gemma(sizes, device)
    with torch.device(device):  # small enough to be built there, then filled with random values
        embeddings = build_embeddings(
            sizes.config, sizes.gemma["hidden_size"], sizes.gemma["num_hidden_layers"]
        )
        video_decoder = VideoDecoderConfigurator.from_config(sizes.config)
        audio_decoder = AudioDecoderConfigurator.from_config(sizes.config)
        vocoder = VocoderConfigurator.from_config(sizes.config)
        upsampler = LatentUpsamplerConfigurator.from_config(sizes.upsampler)
    embeddings = _drawn("text", embeddings)
    return Shared(
        text=TextEncoder(tiny_text.make_tokenizer(), gemma, embeddings),
        gemma=gemma,
        embeddings=embeddings,
        video_decoder=_drawn("vae", video_decoder),
        audio_decoder=_drawn("audio_vae", audio_decoder),
        vocoder=_drawn("vocoder", vocoder),
        upsampler=_drawn("upsampler", upsampler),
    )


def build_gemma(sizes: Sizes, device: torch.device) -> torch.nn.Module:
    """The language model of Gemma 3 by transformers, as `load_gemma` returns it."""
    with torch.device(device):
        gemma = AutoModel.from_config(Gemma3TextConfig(**sizes.gemma), dtype=torch.bfloat16)
    return _drawn("gemma", gemma)


def build_transformer(sizes: Sizes, device: torch.device, kind: Kind) -> X0Model:
    """The transformer in the format `kind`. Weights are drawn and converted one by one, so that an
    8-bit model is never in memory as a whole in 16 bits.
    """
    with torch.device("meta"):
        model = LTXModelConfigurator.from_config(sizes.config)
    names = model.state_dict()
    layers = set(fp8.large_layers(model)) if kind == "fp8" else set()
    fp8.use_fp8(model, layers)
    cast = QuantizationPolicy.fp8_cast()
    weights: dict[str, torch.Tensor] = {}
    for name, like in names.items():
        value = draw(f"transformer.{name}", torch.empty_like(like, device=device))
        value = value.to(torch.bfloat16)
        if kind == "fp8_cast":
            weights |= dict(cast.sd_ops.apply_to_key_value(name, value))
        elif name.removesuffix(fp8.WEIGHT) in layers:
            weights |= dict(fp8.state(name, value, None))
        else:
            weights[name] = value
    model.load_state_dict(weights, strict=True, assign=True)
    if kind == "fp8_cast":
        for operation in cast.module_ops:
            model = operation.mutator(model)
    return X0Model(model).eval()


def _drawn(part: str, module: torch.nn.Module) -> torch.nn.Module:
    """`module` in bf16 with random weights, statistics and tables."""
    module = module.to(torch.bfloat16).eval().requires_grad_(False)
    for name, tensor in _learned(module):
        tensor.copy_(draw(f"{part}.{name}", tensor))
    return module


def _learned(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a module that a checkpoint contains, except filters, which are computed."""
    for name, tensor in module.state_dict().items():
        if name.rpartition(".")[2] not in ("filter", "kernel", "forward_basis", "inverse_basis"):
            yield name, tensor


def draw(name: str, like: torch.Tensor) -> torch.Tensor:
    """Random values for the weight `name`, never all zeros. A linear layer's are scaled by
    1/sqrt(fan-in), so that it keeps its signal's magnitude. On the meta device: `like`.
    """
    if like.device.type == "meta":
        return like
    generator = torch.Generator(like.device).manual_seed(zlib.crc32(name.encode()))
    noise = torch.empty(like.shape, dtype=torch.bfloat16, device=like.device)
    noise.normal_(generator=generator)
    part, kind = name.partition(".")[0], name.rpartition(".")[2]
    if kind == "mel_basis":
        return noise.abs() / like.shape[1]
    if kind == "learnable_registers":
        return noise
    if ("norm" in name and kind == "weight" and part != "gemma") or kind == "std-of-means":
        return 1 + noise * 0.1
    if like.ndim < 2 or "table" in kind:  # biases, tables, means; Gemma's norms, which add 1
        return noise * 0.1
    if part == "vae" and like.ndim == 5:
        return _smooth(noise, 16 if "conv_out" in name else 8)
    return noise * math.sqrt(like.shape[0] / like.numel())


def _smooth(noise: torch.Tensor, group: int) -> torch.Tensor:
    """A blurring convolution [out, in, T, H, W], so that frames show clouds: encoding grain would
    take several times as long as encoding a real film.
    """
    mixed = noise[::group, :, :1, :1, :1].repeat_interleave(group, 0)
    blur = torch.tensor([0.25, 0.5, 0.25], device=noise.device, dtype=noise.dtype)
    kernel = blur[:, None, None] * blur[:, None] * blur
    return mixed * kernel * (2 / math.sqrt(noise.shape[1]))
