"""Writes a model's folder of full or reduced size with random weights, to measure how fast it is
loaded. Its pictures are meaningless.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ltx_core.model.transformer import LTXModelConfigurator
from ltx_core.model.upsampler import LatentUpsamplerConfigurator
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from bench.harness.weights import Sizes
from ltxq_worker.models.tiny import model as tiny
from ltxq_worker.models.tiny import text as tiny_text
from ltxq_worker.models.weights import fp8

CHUNK = 16_000_000  # random numbers that are drawn; files repeat them, to be written faster


def divided(sizes: Sizes, by: int) -> Sizes:
    """Sizes of the same layers, each `by` times narrower: as many tensors with about `by`² times
    fewer bytes. `by` is a power of two up to 16.
    """
    config = json.loads(json.dumps(sizes.config))
    widths = ("caption_channels", "cross_attention_dim", "audio_cross_attention_dim")
    for name, value in config["transformer"].items():
        if name in widths or name.endswith("attention_head_dim"):
            config["transformer"][name] = value // by
    config["vae"]["decoder_base_channels"] //= by
    vocoder = config["vocoder"]
    for part in (vocoder.get("vocoder", vocoder), vocoder.get("bwe", vocoder)):
        part["upsample_initial_channel"] = max(64, part["upsample_initial_channel"] // by)
    narrower = ("vocab_size", "hidden_size", "intermediate_size", "head_dim")
    gemma = sizes.gemma | {name: sizes.gemma[name] // by for name in narrower}
    channels = max(64, sizes.upsampler["mid_channels"] // by)
    upsampler = sizes.upsampler | {"mid_channels": channels}
    return replace(sizes, config=config, gemma=gemma, upsampler=upsampler)


def write_model(folder: Path, sizes: Sizes, *, published_fp8: bool) -> None:
    """Write checkpoint, upsampler and Gemma into a new `folder`."""
    folder.mkdir(parents=True)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in _checkpoint(sizes)}
    if published_fp8:
        with torch.device("meta"):
            layers = fp8.large_layers(LTXModelConfigurator.from_config(sizes.config))
        for layer in (f"model.diffusion_model.{name}" for name in layers):
            tensors[layer + fp8.WEIGHT] = tensors[layer + fp8.WEIGHT].to(torch.float8_e4m3fn)
            for scale in (fp8.SCALE, fp8.INPUT_SCALE):
                tensors[layer + scale] = torch.empty((), device="meta")
    version = tiny.VERSION[sizes.base]
    _write(folder / "checkpoint.safetensors", tensors, sizes.config, version)
    with torch.device("meta"):
        upsampler = LatentUpsamplerConfigurator.from_config(sizes.upsampler)
    weights = {name: w.to(torch.bfloat16) for name, w in upsampler.state_dict().items()}
    _write(folder / "upsampler.safetensors", weights, sizes.upsampler)
    _write_gemma(folder / "gemma", sizes)


def _checkpoint(sizes: Sizes) -> Iterable[tuple[str, torch.Tensor]]:
    with torch.device("meta"):
        return [
            *tiny.named(sizes.config, sizes.gemma["hidden_size"], sizes.gemma["num_hidden_layers"])
        ]


def _write_gemma(folder: Path, sizes: Sizes) -> None:
    vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 1}
    config = Gemma3Config(text_config=sizes.gemma, vision_config=vision)
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(config)
    weights = {
        name: weight.to(torch.bfloat16)
        for name, weight in sorted(model.state_dict().items())
        if name != "lm_head.weight"  # tied to the embeddings
    }
    folder.mkdir()
    config.save_pretrained(folder)
    tiny_text.make_tokenizer().save_pretrained(folder)
    _fill_vocabulary(folder / "tokenizer.json", sizes.gemma["vocab_size"])
    _write(folder / "model.safetensors", weights)


def _fill_vocabulary(file: Path, rows: int) -> None:
    """Give a tokenizer as many tokens as Gemma has embeddings: another model's is refused. No merge
    makes them.
    """
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    used = {*vocabulary.values(), *(token["id"] for token in content["added_tokens"])}
    vocabulary |= {f"<unused{number}>": number for number in range(rows) if number not in used}
    file.write_text(json.dumps(content))


def _write(
    path: Path,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any] | None = None,
    version: str = "",
) -> None:
    """Write a .safetensors file with random values for tensors on the meta device."""
    metadata = {"config": json.dumps(config)} if config else {}
    if version:
        metadata["model_version"] = version
    tensors, head = tiny.safetensors_head(tensors, metadata)
    drawn = torch.randn(CHUNK, generator=torch.Generator().manual_seed(0)) * 0.02
    contents = {
        dtype: memoryview((drawn.abs() + 0.001).to(dtype).view(torch.uint8).numpy())
        for dtype in {tensor.dtype for tensor in tensors.values()}
    }
    with path.open("xb") as file:
        file.write(head)
        for tensor in tensors.values():
            left, content = tensor.nbytes, contents[tensor.dtype]
            while left:
                left -= file.write(content[:left])
