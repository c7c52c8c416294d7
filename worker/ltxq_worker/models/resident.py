"""A checkpoint's parts on the device: built by ltx-core's configurators, filled strictly.

ltx-core's own builder leaves a missing weight uninitialised and only logs it; here every weight
of a part must be in the file, and every weight in the file must have a place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from ltx_core.loader.sd_ops import SDOps
from ltx_core.model.audio_vae import (
    AUDIO_VAE_DECODER_COMFY_KEYS_FILTER,
    VOCODER_COMFY_KEYS_FILTER,
    AudioDecoder,
    AudioDecoderConfigurator,
    VocoderConfigurator,
)
from ltx_core.model.transformer import LTXV_MODEL_COMFY_RENAMING_MAP, LTXModelConfigurator, X0Model
from ltx_core.model.video_vae import (
    VAE_DECODER_COMFY_KEYS_FILTER,
    VideoDecoder,
    VideoDecoderConfigurator,
)
from ltx_core.quantization import QuantizationPolicy
from ltx_core.text_encoders.gemma import EMBEDDINGS_PROCESSOR_KEY_OPS
from safetensors import SafetensorError, safe_open

from ltxq.errors import ModelUnusable
from ltxq_worker.models.folder import ModelFolder
from ltxq_worker.models.text import TextEncoder, build_embeddings, load_gemma, load_tokenizer

Quantization = Literal["none", "fp8"]
LoadReport = Callable[[str, float], None]  # what is being loaded, share of all that is done, 0..1

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Resident:
    """What stays on the device between jobs."""

    text: TextEncoder
    transformer: X0Model
    video_decoder: VideoDecoder
    audio_decoder: AudioDecoder
    vocoder: torch.nn.Module


def load(
    folder: ModelFolder, device: torch.device, quantization: Quantization, report: LoadReport
) -> Resident:
    """Every part a text-to-video job needs, in bf16, or with the transformer's layers in fp8.

    Raises:
        ModelUnusable: the checkpoint or the text encoder does not hold what it says.
        torch.OutOfMemoryError: the device cannot hold them.
    """
    config, fp8 = folder.config, QuantizationPolicy.fp8_cast()
    transformer_keys = LTXV_MODEL_COMFY_RENAMING_MAP
    if quantization == "fp8":
        assert fp8.sd_ops is not None  # what fp8_cast is
        transformer_keys = replace(
            transformer_keys, mapping=(*transformer_keys.mapping, *fp8.sd_ops.mapping)
        )

    def part(
        build: Callable[[dict[str, Any]], torch.nn.Module], keys: SDOps, what: str, done: float
    ) -> torch.nn.Module:
        report(what, done)
        return _load_part(folder.checkpoint, config, build, keys, device, what)

    report("text encoder", 0.0)
    gemma = load_gemma(folder.text_encoder, device)
    hidden_size, layers = gemma.config.hidden_size, gemma.config.num_hidden_layers
    embeddings = part(
        lambda c: build_embeddings(c, hidden_size, layers),
        EMBEDDINGS_PROCESSOR_KEY_OPS,
        "text connectors",
        0.35,
    )
    transformer = part(LTXModelConfigurator.from_config, transformer_keys, "transformer", 0.4)
    if quantization == "fp8":
        for operation in fp8.module_ops:
            transformer = operation.mutator(transformer)
    resident = Resident(
        text=TextEncoder(load_tokenizer(folder.text_encoder), gemma, embeddings),
        transformer=X0Model(transformer).eval(),
        video_decoder=part(
            VideoDecoderConfigurator.from_config,
            VAE_DECODER_COMFY_KEYS_FILTER,
            "video decoder",
            0.95,
        ),
        audio_decoder=part(
            AudioDecoderConfigurator.from_config,
            AUDIO_VAE_DECODER_COMFY_KEYS_FILTER,
            "audio decoder",
            0.98,
        ),
        vocoder=part(VocoderConfigurator.from_config, VOCODER_COMFY_KEYS_FILTER, "vocoder", 0.99),
    )
    report("ready", 1.0)
    return resident


def _load_part(
    checkpoint: Path,
    config: dict[str, Any],
    build: Callable[[dict[str, Any]], torch.nn.Module],
    keys: SDOps,
    device: torch.device,
    what: str,
) -> torch.nn.Module:
    try:
        with torch.device("meta"):
            module = build(config)
    except (KeyError, TypeError, ValueError, NotImplementedError) as exc:
        raise ModelUnusable(
            f"{checkpoint} asks for a {what} that this ltx-core cannot build: {exc!r}",
            hint="Use an LTX-2 or LTX-2.3 checkpoint.",
        ) from exc
    weights = _read(checkpoint, keys, device)
    expected = module.state_dict()
    missing = sorted(expected.keys() - weights.keys())
    foreign = sorted(weights.keys() - expected.keys())
    misshapen = sorted(
        key for key in expected.keys() & weights.keys() if expected[key].shape != weights[key].shape
    )
    for problem, names in (
        ("lacks", missing),
        ("has unknown", foreign),
        ("has misshapen", misshapen),
    ):
        if names:
            raise ModelUnusable(
                f"{checkpoint} {problem} weights of the {what}: {', '.join(names[:3])} "
                f"({len(names)} in all).",
                hint="Download the checkpoint again.",
            )
    module.load_state_dict(weights, strict=True, assign=True)
    return module.to(device).eval()  # what is not in a file, such as a filter, moves here


def _read(checkpoint: Path, keys: SDOps, device: torch.device) -> dict[str, torch.Tensor]:
    """The tensors `keys` selects, under their module's names, one at a time onto the device."""
    weights: dict[str, torch.Tensor] = {}
    try:
        with safe_open(checkpoint, framework="pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no dict)
                key = keys.apply_to_key(name)
                if key is None or _elsewhere(key):
                    continue
                tensor = file.get_tensor(name)
                for new_key, value in keys.apply_to_key_value(key, tensor):
                    weights[new_key] = value if value.dtype == FP8 else value.to(torch.bfloat16)
    except (OSError, SafetensorError) as exc:
        raise ModelUnusable(
            f"{checkpoint} cannot be read: {exc}", hint="Download it again."
        ) from exc
    return weights


def _elsewhere(key: str) -> bool:
    """A key that belongs to another part, or to none.

    The text connectors lie among the transformer's keys. The published VAEs carry statistics
    beside the two the decoders use, as diffusers' conversion of these files shows.
    """
    return key.startswith(("video_embeddings_connector.", "audio_embeddings_connector.")) or (
        key.startswith("per_channel_statistics.")
        and not key.endswith((".mean-of-means", ".std-of-means"))
    )
