"""A model of a few megabytes with random weights: exercises every real code path on any computer.

It has the architecture of a published checkpoint, only smaller, so loaders, key maps, text encoder,
transformer, decoders and vocoder all run. Its pictures are abstract, since it is not trained.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from ltx_core.model.audio_vae import AudioDecoderConfigurator, VocoderConfigurator
from ltx_core.model.transformer import LTXModelConfigurator
from ltx_core.model.upsampler import LatentUpsamplerConfigurator
from ltx_core.model.video_vae import VideoDecoderConfigurator

from ltxq_worker.models.tiny.text import HIDDEN, LAYERS, write_text_encoder
from ltxq_worker.models.weights import fp8
from ltxq_worker.models.weights.text import build_embeddings

Base = Literal["ltx-2-19b", "ltx-2.3-22b"]

SHARPNESS = 4.0  # of attention: a prompt's few tokens must have an effect among 1,024
CHECKPOINT = "checkpoint.safetensors"
UPSAMPLER = "spatial_upsampler.safetensors"

_DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
VERSION: dict[Base, str] = {"ltx-2-19b": "2.0.0", "ltx-2.3-22b": "2.3.0"}

# Base seeds: of sixteen that were tried, those with the most varied colours.
_PALETTE: dict[Base, int] = {"ltx-2-19b": 3, "ltx-2.3-22b": 14}


def make_tiny(
    folder: Path,
    base: Base = "ltx-2-19b",
    seed: int = 0,
    *,
    blocks: int = 2,
    published_fp8: bool = False,
) -> None:
    """Write a tiny model into `folder`, completely or not at all; a seed determines every byte.

    `blocks`: of the transformer. In FP8 the first and the last five stay in bf16, so FP8 needs more
    than six. `published_fp8`: write the checkpoint in the format of the published FP8 checkpoints,
    from the same weights.

    Raises:
        FileExistsError: `folder` exists and is not empty.
        OSError: the files cannot be written.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} already exists and is not empty.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary,
        torch.random.fork_rng(devices=[]),  # modules draw initial weights, which are not used
    ):
        partial = Path(temporary) / "model"
        write_text_encoder(partial / "gemma", seed, _filled)
        _write_checkpoint(partial / CHECKPOINT, shrunk(base, blocks), base, seed, published_fp8)
        _write_upsampler(partial / UPSAMPLER, base, seed)
        partial.rename(folder)


def shrunk(base: Base, blocks: int) -> dict[str, Any]:
    """The real checkpoint's configuration with every size reduced that may be."""
    source = files("ltxq_worker.models") / f"{base}.json"
    config: dict[str, Any] = json.loads(source.read_text())
    config["random_weights"] = True
    config["transformer"] |= {
        "num_layers": blocks,
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "cross_attention_dim": 128,
        "caption_channels": HIDDEN,
        "audio_num_attention_heads": 4,
        "audio_attention_head_dim": 16,
        "audio_cross_attention_dim": 64,
        "connector_num_layers": 2,
        # Of Gemma's width, in LTX-2.3 of the transformer's widths.
        "connector_num_attention_heads": 4,
        "connector_attention_head_dim": 16 if base == "ltx-2-19b" else 32,
        "audio_connector_num_attention_heads": 4,
        "audio_connector_attention_head_dim": 16,
    }
    config["vae"]["decoder_base_channels"] = 8
    for name, settings in config["vae"]["decoder_blocks"]:
        if name == "res_x":
            settings["num_layers"] = 1
    config["audio_vae"]["model"]["params"]["ddconfig"] |= {
        "ch_mult": [1, 1, 1],
        "num_res_blocks": 1,
    }
    vocoders = config["vocoder"]
    for vocoder in (vocoders,) if base == "ltx-2-19b" else (vocoders["vocoder"], vocoders["bwe"]):
        vocoder["upsample_initial_channel"] = 64
    return config


def _write_checkpoint(
    path: Path, config: dict[str, Any], base: Base, seed: int, published_fp8: bool
) -> None:
    generator = torch.Generator().manual_seed(_PALETTE[base] + seed)
    tensors = {
        name: _filled(name, tensor, generator).to(torch.bfloat16)
        for name, tensor in sorted(named(config))
    }
    if published_fp8:
        with torch.device("meta"):
            layers = fp8.large_layers(LTXModelConfigurator.from_config(config))
        for layer in layers:
            tensors |= _as_published(f"model.diffusion_model.{layer}", tensors)
    metadata = {"config": json.dumps(config, sort_keys=True), "model_version": VERSION[base]}
    _write_safetensors(path, tensors, metadata)


def _as_published(layer: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A layer's weight in FP8 with one scale for the whole weight, and one for its inputs."""
    weight = tensors[layer + fp8.WEIGHT].float()
    scale = weight.abs().max() / fp8.LARGEST
    return {
        layer + fp8.WEIGHT: (weight / scale).to(torch.float8_e4m3fn),
        layer + fp8.SCALE: scale,
        layer + fp8.INPUT_SCALE: torch.tensor(4 / fp8.LARGEST),  # for inputs up to 4, an assumption
    }


def _write_upsampler(path: Path, base: Base, seed: int) -> None:
    """Write the upsampler, which doubles latents for the second stage.

    64 is the smallest number of channels: its norms have 32 groups, each of which needs two values
    even for a latent of one position. The published upsampler of LTX-2 has a resampler for rational
    factors; that of LTX-2.3 has none.
    """
    rational = base == "ltx-2-19b"
    config = {"mid_channels": 64, "num_blocks_per_stage": 1, "rational_resampler": rational}
    generator = torch.Generator().manual_seed(seed)
    weights = LatentUpsamplerConfigurator.from_config(config).state_dict()
    tensors = {
        name: _filled(name, tensor, generator).to(torch.bfloat16)
        for name, tensor in sorted(weights.items())
    }
    _write_safetensors(path, tensors, {"config": json.dumps(config)})


def named(
    config: dict[str, Any], hidden: int = HIDDEN, layers: int = LAYERS
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a checkpoint with its name in the published files, for a Gemma of width
    `hidden` and depth `layers`.
    """
    embeddings = build_embeddings(config, hidden, layers)
    for prefix, part in (
        ("model.diffusion_model", LTXModelConfigurator.from_config(config)),
        ("text_embedding_projection", embeddings.feature_extractor),
        ("model.diffusion_model.video_embeddings_connector", embeddings.video_connector),
        ("model.diffusion_model.audio_embeddings_connector", embeddings.audio_connector),
        ("vae.decoder", VideoDecoderConfigurator.from_config(config)),
        ("audio_vae.decoder", AudioDecoderConfigurator.from_config(config)),
        ("vocoder", VocoderConfigurator.from_config(config)),
    ):
        for name, tensor in part.state_dict().items():
            shared = name.startswith("per_channel_statistics.")  # with the VAE's encoder
            yield f"{prefix.removesuffix('.decoder') if shared else prefix}.{name}", tensor


def _filled(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random values for the weight `name`, scaled so that a layer keeps its signal's magnitude."""
    part, kind = name.partition(".")[0], name.rpartition(".")[2]
    if kind in ("filter", "kernel"):  # of resampling: not learned
        return like
    if name.endswith((".q_norm.weight", ".k_norm.weight")):
        return torch.full(like.shape, SHARPNESS)
    if kind == "std-of-means" or (kind == "weight" and "norm" in name):
        return torch.ones(like.shape)
    if kind in ("mean-of-means", "alpha", "beta"):
        return torch.zeros(like.shape)
    if part in ("vae", "vocoder") and like.ndim < 2:  # random biases would be a tint or a hum
        return torch.zeros(like.shape)
    noise = torch.randn(like.shape, generator=generator)
    if kind == "mel_basis":
        return noise.abs() / like.shape[1]
    if like.ndim < 2 or "table" in kind:
        return noise * 0.1
    if kind == "learnable_registers":
        return noise
    if part == "vae":
        return _smooth(noise, 16 if "conv_out" in name else 8)
    gain = _loudness(name) if part == "vocoder" else 1.0
    return noise * gain * math.sqrt(like.shape[0] / like.numel())


def _loudness(name: str) -> float:
    """Gain of a vocoder's weight: its many residual layers must neither fade out nor clip."""
    if ".resblocks." in name:
        return 0.25
    return 0.7 if name.startswith(("vocoder.vocoder.", "vocoder.bwe_generator.")) else 1.0


def _smooth(noise: torch.Tensor, group: int) -> torch.Tensor:
    """A blurring convolution [out, in, T, H, W], so that frames show clouds and not grain.

    Output channels are equal within a group, which depth-to-space turns into neighbouring pixels.
    """
    mixed = noise[::group, :, :1, :1, :1].repeat_interleave(group, 0)
    blur = torch.tensor([0.25, 0.5, 0.25])
    kernel = blur[:, None, None] * blur[:, None] * blur
    return mixed * kernel * 2 / math.sqrt(noise.shape[1])  # 2: for strong colours


def _write_safetensors(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    """As safetensors.torch.save_file, whose order of metadata varies between calls."""
    tensors, head = safetensors_head(tensors, metadata)
    with path.open("xb") as file:
        file.write(head)
        for tensor in tensors.values():
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())


def safetensors_head(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str]
) -> tuple[dict[str, torch.Tensor], bytes]:
    """The tensors in the order of a .safetensors file, and the bytes of its header.

    The widest types come first, so that every number is aligned to its size.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    tensors = dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": [*tensor.shape],
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format requires tensors to start at a multiple of 8
    return tensors, len(text).to_bytes(8, "little") + text
