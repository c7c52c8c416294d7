"""Says what a model's file is, by its first bytes and its safetensors header.

`header.py` reads headers, `folder.py` and `encoder.py` compare with what a model needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ltxq.errors import ModelUnusable
from ltxq_worker.models.files.header import SafetensorsHeader, StoredTensor
from ltxq_worker.models.files.magic import format_of, is_another_programs, obstacle

TRANSFORMER = "model.diffusion_model."  # prefix of the transformer's weights in a checkpoint
UPSAMPLER = "post_upsample_res_blocks.0.conv1.weight"  # a weight of every upscaler

# Endings of files that hold weights, of ltxq's kind and of others.
WEIGHTS = {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt"}

# A checkpoint's parts, by a prefix of their weights' names.
PARTS = {
    f"{TRANSFORMER}transformer_blocks.": "transformer",
    "text_embedding_projection.": "text projection",
    f"{TRANSFORMER}video_embeddings_connector.": "text connectors",
    "vae.decoder.": "video decoder",
    "audio_vae.decoder.": "audio decoder",
    "vocoder.": "vocoder",
}

PLAIN = {"BF16", "F16", "F32"}  # numbers that need no scale

MAX_JSON = 200_000_000  # bytes that are read of one; Gemma's tokenizer.json has 33 million

Tensors = Mapping[str, StoredTensor]

_ADAPTER = re.compile(r"[._](lora_|lora\.|lokr_|loha_|hada_w|dora_)|^lora_unet_|\.lora[AB]\.")
_QUANTIZED = re.compile(r"\.(quant_state\.|absmax$|qweight$|qzeros$|SCB$|weight_packed$)")
_LAYER = re.compile(r"(?<!vision_model\.encoder\.)\blayers\.(\d{1,6})\.")
_VISION = re.compile(r"vision|audio_tower|multi_modal|embed_vision")

# Gemma's sizes, by the width of their hidden states and the number of layers.
GEMMAS = {
    (640, 18): "Gemma 3 270M",
    (1152, 26): "Gemma 3 1B",
    (2560, 34): "Gemma 3 4B",
    (3840, 48): "Gemma 3 12B",
    (5376, 62): "Gemma 3 27B",
    (2304, 26): "Gemma 2 2B",
    (3584, 42): "Gemma 2 9B",
    (4608, 46): "Gemma 2 27B",
}

# Other models, by a piece of a tensor's name.
_FOREIGN: tuple[tuple[str, str], ...] = (
    ("double_blocks.", "a transformer of the FLUX or HunyuanVideo family"),
    ("joint_blocks.", "a Stable Diffusion 3 transformer"),
    ("blocks.0.cross_attn.", "a Wan transformer"),
    ("input_blocks.", "a Stable Diffusion UNet"),
    ("encoder.block.0.layer.", "a T5 text encoder"),
    ("text_model.encoder.", "a CLIP text encoder"),
)


def describe(path: Path) -> str:
    """What `path` is, as the end of a sentence: "a GGUF file, …", "not there"."""
    if problem := obstacle(path):
        return problem
    try:
        header = SafetensorsHeader.read(path, "")
    except ModelUnusable as exc:
        problem = exc.message.removeprefix(f"{path} is ").partition(";")[0].removesuffix(".")
        return problem if problem != exc.message.removesuffix(".") else format_of(path)
    return kind_of(header.tensors, config_of(header))


def is_a_work(path: Path) -> bool:
    """Whether a file may be somebody's work: whole by its kind. What a broken download leaves is
    not, such as a file that is cut short, a server's page, or a pointer.
    """
    if obstacle(path) or not (size := path.stat().st_size):
        return False
    if path.suffix == ".json" and size <= MAX_JSON:
        try:
            return bool(json.loads(path.read_bytes()))
        except (ValueError, RecursionError):
            return False
    if path.suffix != ".safetensors":
        return True
    try:
        SafetensorsHeader.read(path, "")
    except ModelUnusable:
        return is_another_programs(path)
    return True


def config_of(header: SafetensorsHeader) -> dict[str, Any]:
    """The configuration in a file's header; empty if there is none or it cannot be read."""
    try:
        config = json.loads(header.metadata.get("config", "{}"))
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def kind_of(tensors: Tensors, config: dict[str, Any]) -> str:
    """What a safetensors file is, by its tensors' names and shapes."""
    if not tensors:
        return "a safetensors file without weights"
    if is_adapter(tensors):
        return "an adapter (LoRA), which changes a checkpoint and replaces none"
    if UPSAMPLER in tensors:
        return f"a {upscaler_kind(tensors, config)} upscaler"
    if any("transformer_blocks." in name for name in tensors):
        return _transformer_kind(tensors, config)
    if any(name.endswith("embed_tokens.weight") for name in tensors):
        return f"a text encoder, {language_model(tensors)}"
    for piece, kind in _FOREIGN:
        if any(piece in name for name in tensors):
            return kind
    prefixes = {name.partition(".")[0] for name in tensors}
    for only, kind in (
        ({"audio_vae"}, "an audio VAE alone"),
        ({"vocoder"}, "a vocoder alone"),
        ({"vae"}, "a video VAE alone"),
        ({"audio_vae", "vocoder"}, "an audio VAE and vocoder alone"),
        ({"encoder", "decoder", "per_channel_statistics"}, "a VAE alone"),
        ({"text_embedding_projection"}, "a text projection alone"),
    ):
        if prefixes <= only:
            return kind
    return f"a model that ltxq does not know, with weights such as {min(tensors)[:80]}"


def is_adapter(tensors: Iterable[str]) -> bool:
    """Whether the weights are an adapter's, which are added to those of a checkpoint."""
    return any(_ADAPTER.search(name) for name in tensors)


def is_quantized(tensors: Iterable[str]) -> bool:
    """Whether the weights are packed by bitsandbytes, GPTQ, AWQ or the like."""
    return any(_QUANTIZED.search(name) for name in tensors)


def missing_parts(tensors: Iterable[str]) -> list[str]:
    """The parts that a checkpoint lacks altogether."""
    names = list(tensors)
    return [part for start, part in PARTS.items() if not any(n.startswith(start) for n in names)]


def _transformer_kind(tensors: Tensors, config: dict[str, Any]) -> str:
    if any("single_transformer_blocks." in name for name in tensors):
        return "a transformer of the FLUX or HunyuanVideo family"
    if not any("patchify_proj." in name or "proj_in." in name for name in tensors):
        return "a transformer that is not LTX-2's, or a part of one"
    if not any("audio_" in name for name in tensors if "vae." not in name):
        return "an LTX-Video (0.9) model, the older family without sound"
    if is_quantized(tensors):
        return "an LTX-2 transformer with packed weights, which ltxq cannot load"
    if not any(name.startswith(TRANSFORMER) for name in tensors):
        return "an LTX-2 transformer alone, as diffusers or ComfyUI store it"
    if missing := missing_parts(tensors):
        return f"a part of an LTX-2 checkpoint, without {', '.join(missing)}"
    if isinstance(config.get("transformer"), dict):
        return "an LTX-2 checkpoint"
    return "an LTX-2 checkpoint without the configuration that published ones have"


def upscaler_kind(tensors: Tensors, config: dict[str, Any]) -> str:
    """'spatial x2' for the one that ltxq uses; or 'temporal', 'spatial x1.5', …

    Weights and configuration must agree: the loader builds by the one and fills with the other.
    """
    conv = tensors.get("upsampler.0.weight")
    if conv is not None and len(conv.shape) == 5:
        grows = conv.shape[0] // max(conv.shape[1], 1)
        return "temporal" if grows == 2 else "spatial and temporal"
    temporal, spatial = config.get("temporal_upsample", False), config.get("spatial_upsample", True)
    if temporal is not False:
        return "spatial and temporal" if spatial is True else "temporal"
    scale = config.get("spatial_scale", 2.0)
    return "spatial x2" if spatial is True and scale == 2.0 else f"spatial x{str(scale)[:20]}"


def language_model(tensors: Tensors) -> str:
    """A language model's name, or its family with layers and width."""
    family = _language_family(tensors)
    if (size := language_size(tensors)) is None:
        return family
    packed = ", in packed weights" if is_quantized(tensors) else ""
    name = GEMMAS.get(size, "")
    name = name if name.startswith(family) else family
    return f"{name} of {size[1]} layers and width {size[0]:,}{packed}"


def _language_family(tensors: Iterable[str]) -> str:
    names = list(tensors)
    if not any("pre_feedforward_layernorm" in name for name in names):
        return "not a Gemma 3"
    if any("layer_scalar" in name or "per_layer_" in name for name in names):
        return "Gemma 4 or Gemma 3n"
    return "Gemma 3" if any("self_attn.q_norm" in name for name in names) else "Gemma 2"


def sees_pictures(tensors: Iterable[str]) -> bool:
    """Whether the weights have a vision tower, as transformers' Gemma 3 for pictures needs."""
    return any(_VISION.search(name) for name in tensors)


def is_gemma_3(tensors: Iterable[str]) -> bool:
    """Whether a language model has Gemma 3's layers."""
    return _language_family(tensors) == "Gemma 3"


def language_size(tensors: Tensors) -> tuple[int, int] | None:
    """A language model's width and number of layers; None if it has no embeddings."""
    width = next(
        (t.shape[-1] for n, t in tensors.items() if n.endswith("embed_tokens.weight") and t.shape),
        None,
    )
    layers = {
        int(found[1])
        for name in tensors
        if not _VISION.search(name) and (found := _LAYER.search(name))
    }
    return None if width is None else (width, len(layers))
