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
    AudioDecoderConfigurator,
    VocoderConfigurator,
)
from ltx_core.model.transformer import LTXV_MODEL_COMFY_RENAMING_MAP, LTXModelConfigurator, X0Model
from ltx_core.model.upsampler import LatentUpsamplerConfigurator
from ltx_core.model.video_vae import VAE_DECODER_COMFY_KEYS_FILTER, VideoDecoderConfigurator
from ltx_core.quantization import QuantizationPolicy
from ltx_core.text_encoders.gemma import EMBEDDINGS_PROCESSOR_KEY_OPS
from safetensors import SafetensorError, safe_open

from ltxq.errors import ModelUnusable
from ltxq_worker.models.folder import ModelFolder
from ltxq_worker.models.text import TextEncoder, build_embeddings, load_gemma, load_tokenizer

Quantization = Literal["bf16", "fp8"]
LoadReport = Callable[[str, float], None]  # what is being loaded, share of all that is done, 0..1
Build = Callable[[dict[str, Any]], torch.nn.Module]


@dataclass(frozen=True)
class Resident:
    """What stays on the device between jobs."""

    text: TextEncoder
    transformer: X0Model
    video_decoder: torch.nn.Module
    audio_decoder: torch.nn.Module
    vocoder: torch.nn.Module
    upsampler: torch.nn.Module | None  # for two stages, where the folder has one


def load(
    folder: ModelFolder, device: torch.device, quantization: Quantization, report: LoadReport
) -> Resident:
    """Every part a text-to-video job needs, in bf16, or with the transformer's layers in fp8.

    Raises:
        ModelUnusable: the checkpoint or the text encoder does not hold what it says.
        torch.OutOfMemoryError: the device cannot hold them.
    """
    report("text encoder", 0.0)
    tokenizer = load_tokenizer(folder.text_encoder)
    gemma = load_gemma(folder.text_encoder, device)
    # The shares are the parts' bytes in the 22B model: Gemma 24 GB, connectors 6, transformer 38.
    file = _Checkpoint(folder.checkpoint, folder.config, device, report, done=0.35)
    embeddings = file.part(
        "text connectors",
        lambda config: build_embeddings(
            config, gemma.config.hidden_size, gemma.config.num_hidden_layers
        ),
        EMBEDDINGS_PROCESSOR_KEY_OPS,
        until=0.43,
    )
    resident = Resident(
        text=TextEncoder(tokenizer, gemma, embeddings),
        transformer=_transformer(file, quantization, until=0.97),
        video_decoder=file.part(
            "video decoder",
            VideoDecoderConfigurator.from_config,
            VAE_DECODER_COMFY_KEYS_FILTER,
            until=0.99,
        ),
        audio_decoder=file.part(
            "audio decoder",
            AudioDecoderConfigurator.from_config,
            AUDIO_VAE_DECODER_COMFY_KEYS_FILTER,
            until=0.995,
        ),
        vocoder=file.part(
            "vocoder", VocoderConfigurator.from_config, VOCODER_COMFY_KEYS_FILTER, until=0.996
        ),
        upsampler=_upsampler(folder, device, report, done=0.996),
    )
    report("model", 1.0)
    return resident


def _transformer(file: _Checkpoint, quantization: Quantization, until: float) -> X0Model:
    """The transformer, predicting clean latents. fp8: each layer upcast as it runs."""
    keys = LTXV_MODEL_COMFY_RENAMING_MAP
    if quantization == "bf16":
        velocity = file.part("transformer", LTXModelConfigurator.from_config, keys, until)
        return X0Model(velocity).eval()
    policy = QuantizationPolicy.fp8_cast()
    downcast = policy.sd_ops.mapping if policy.sd_ops else ()
    keys = replace(keys, name="transformer_fp8", mapping=(*keys.mapping, *downcast))
    velocity = file.part("transformer", LTXModelConfigurator.from_config, keys, until)
    for operation in policy.module_ops:
        velocity = operation.mutator(velocity)
    return X0Model(velocity).eval()


def _upsampler(
    folder: ModelFolder, device: torch.device, report: LoadReport, done: float
) -> torch.nn.Module | None:
    if folder.upscaler is None:
        return None
    file = _Checkpoint(folder.upscaler, folder.upscaler_config, device, report, done)
    every = SDOps("upsampler").with_matching()
    return file.part("upsampler", LatentUpsamplerConfigurator.from_config, every, until=1.0)


class _Checkpoint:
    """One checkpoint file being read onto a device, part by part, told to `report`."""

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        device: torch.device,
        report: LoadReport,
        done: float,
    ) -> None:
        self._path = path
        self._config = config
        self._device = device
        self._report = report
        self._done = done

    def part(self, what: str, build: Build, keys: SDOps, until: float) -> torch.nn.Module:
        """One part, filled with the weights `keys` selects, in bf16 unless `keys` made them fp8.

        Raises:
            ModelUnusable: it cannot be built or read, or file and part disagree on a weight.
        """
        try:
            with torch.device("meta"):
                module = build(self._config)
        except (KeyError, TypeError, ValueError, NotImplementedError) as exc:
            raise ModelUnusable(
                f"{self._path} describes a {what} that this ltx-core cannot build: {exc!r}.",
                hint="Use an LTX-2 or LTX-2.3 checkpoint.",
            ) from exc
        weights = self._read(what, keys, until)
        self._check(what, module.state_dict(), weights)
        module.load_state_dict(weights, strict=True, assign=True)
        self._done = until
        return module.to(self._device).eval()  # filters that are in no file move here

    def _read(self, what: str, keys: SDOps, until: float) -> dict[str, torch.Tensor]:
        """The tensors `keys` selects under their names in the part, one at a time."""
        weights: dict[str, torch.Tensor] = {}
        try:
            with safe_open(self._path, framework="pt", device=str(self._device)) as file:
                names = [(name, keys.apply_to_key(name)) for name in file.keys()]  # noqa: SIM118
                mine = [(name, key) for name, key in names if key and not _elsewhere(key)]
                for count, (name, key) in enumerate(mine):
                    share = count / len(mine)
                    self._report(what, self._done + share * (until - self._done))
                    for its_key, value in keys.apply_to_key_value(key, file.get_tensor(name)):
                        fp8 = value.dtype == torch.float8_e4m3fn
                        weights[its_key] = value if fp8 else value.to(torch.bfloat16)
        except (OSError, SafetensorError) as exc:
            raise ModelUnusable(
                f"{self._path} cannot be read: {exc}.", hint="Download it again."
            ) from exc
        return weights

    def _check(
        self, what: str, expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]
    ) -> None:
        both = expected.keys() & found.keys()
        for problem, names in (
            ("lacks", expected.keys() - found.keys()),
            ("has unknown", found.keys() - expected.keys()),
            ("has misshapen", {key for key in both if expected[key].shape != found[key].shape}),
        ):
            if names:
                raise ModelUnusable(
                    f"{self._path} {problem} weights of the {what}: "
                    f"{', '.join(sorted(names)[:3])} ({len(names)} in all).",
                    hint="Download the checkpoint again.",
                )


def _elsewhere(key: str) -> bool:
    """A key that belongs to another part, or to none.

    The text connectors lie among the transformer's keys. The published VAEs carry statistics
    beside the two the decoders use, as diffusers' conversion of these files shows.
    """
    return key.startswith(("video_embeddings_connector.", "audio_embeddings_connector.")) or (
        key.startswith("per_channel_statistics.")
        and not key.endswith((".mean-of-means", ".std-of-means"))
    )
