"""Loads the parts of a model that stay on the device between jobs, in their number formats.

`checkpoint.py` reads the parts of a checkpoint, `text.py` reads Gemma.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from ltx_core.loader.sd_ops import SDOps
from ltx_core.model.audio_vae import (
    AUDIO_VAE_DECODER_COMFY_KEYS_FILTER,
    VOCODER_COMFY_KEYS_FILTER,
    AudioDecoderConfigurator,
    VocoderConfigurator,
)
from ltx_core.model.transformer import LTXV_MODEL_COMFY_RENAMING_MAP, LTXModelConfigurator, X0Model
from ltx_core.model.upsampler import LatentUpsamplerConfigurator
from ltx_core.model.video_vae import VAE_DECODER_COMFY_KEYS_FILTER, VideoDecoderConfigurator
from ltx_core.text_encoders.gemma import EMBEDDINGS_PROCESSOR_KEY_OPS

from ltxq.errors import ConfigurationError
from ltxq_worker.models.files.folder import ModelFolder
from ltxq_worker.models.weights import fp8
from ltxq_worker.models.weights.checkpoint import Checkpoint, LoadReport, Part
from ltxq_worker.models.weights.text import (
    TextEncoder,
    build_embeddings,
    gemma_size,
    load_gemma,
    load_tokenizer,
)

Quantization = Literal["bf16", "fp8"]

_FP8_CARDS = (8, 9)  # the first compute capability with FP8 arithmetic: Ada; Hopper has 9.0


@dataclass(frozen=True)
class Resident:
    """The modules that stay on the device between jobs."""

    text: TextEncoder
    transformer: X0Model
    video_decoder: torch.nn.Module
    audio_decoder: torch.nn.Module
    vocoder: torch.nn.Module
    upsampler: torch.nn.Module | None  # for two stages, if the folder has one


def load(
    folder: ModelFolder, device: torch.device, quantization: Quantization, report: LoadReport
) -> Resident:
    """Load every part that a text-to-video job needs, in bf16, or with the transformer's large
    layers in FP8. The checkpoint may be bf16 or published FP8.

    Raises:
        ConfigurationError: the device has no FP8 arithmetic.
        ModelUnusable: the checkpoint or the text encoder does not match its configuration.
        torch.OutOfMemoryError: the parts do not fit on the device.
    """
    if quantization == "fp8" and device.type == "cuda":
        _require_fp8(device)
    # Shares of progress follow the bytes of the 22B model: Gemma 24 GB, connectors 6, transformer
    # 38.
    tokenizer = load_tokenizer(folder.text_encoder)
    file = Checkpoint(
        folder.checkpoint, folder.config, device, report, done=0.35, fp8_scales=folder.fp8_scales
    )
    parts = _plan(file, gemma_size(folder.text_encoder), quantization)
    upsampler = _plan_upsampler(folder, device, report, done=0.996)
    gemma = load_gemma(
        folder.text_encoder, device, lambda share: report("text encoder", 0.35 * share)
    )
    embeddings, transformer, video_decoder, audio_decoder, vocoder = map(file.load, parts)
    resident = Resident(
        text=TextEncoder(tokenizer, gemma, embeddings),
        transformer=X0Model(transformer).eval(),
        video_decoder=video_decoder,
        audio_decoder=audio_decoder,
        vocoder=vocoder,
        upsampler=upsampler[0].load(upsampler[1]) if upsampler else None,
    )
    report("model", 1.0)
    return resident


def _plan(file: Checkpoint, gemma: tuple[int, int], quantization: Quantization) -> tuple[Part, ...]:
    """The checkpoint's parts, in the order in which they are loaded, for a Gemma of this size."""
    renamed = LTXV_MODEL_COMFY_RENAMING_MAP

    def transformer(config: dict[str, Any]) -> torch.nn.Module:
        model = LTXModelConfigurator.from_config(config)
        if quantization == "fp8":
            fp8.use_fp8(model, file.fp8_layers(renamed) or fp8.large_layers(model))
        return model

    return (
        file.plan(
            "text connectors",
            lambda config: build_embeddings(config, *gemma),
            EMBEDDINGS_PROCESSOR_KEY_OPS,
            until=0.43,
        ),
        file.plan("transformer", transformer, renamed, until=0.97),
        file.plan(
            "video decoder",
            VideoDecoderConfigurator.from_config,
            VAE_DECODER_COMFY_KEYS_FILTER,
            until=0.99,
        ),
        file.plan(
            "audio decoder",
            AudioDecoderConfigurator.from_config,
            AUDIO_VAE_DECODER_COMFY_KEYS_FILTER,
            until=0.995,
        ),
        file.plan(
            "vocoder", VocoderConfigurator.from_config, VOCODER_COMFY_KEYS_FILTER, until=0.996
        ),
    )


def _require_fp8(device: torch.device) -> None:
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < _FP8_CARDS:
        raise ConfigurationError(
            f"{torch.cuda.get_device_name(device)} has no FP8 arithmetic.",
            hint="Set LTXQ_QUANTIZATION=bf16, or use a card with FP8, such as an H100 or H200.",
        )


def _plan_upsampler(
    folder: ModelFolder, device: torch.device, report: LoadReport, done: float
) -> tuple[Checkpoint, Part] | None:
    if folder.upscaler is None:
        return None
    file = Checkpoint(
        folder.upscaler, folder.upscaler_config, device, report, done=done, fp8_scales={}
    )
    every = SDOps("upsampler").with_matching()
    return file, file.plan("upsampler", LatentUpsamplerConfigurator.from_config, every, until=1.0)
