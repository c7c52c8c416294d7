"""Model folders of a few kilobytes in the shapes of published ones: headers and sizes are real, the
weights are zeros that take no space on the disk.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

WIDTH, LAYERS, ROWS = 64, 4, 490  # of the Gemma that these checkpoints were made for
CONFIG = {"transformer": {"_class_name": "AVTransformer3DModel", "num_layers": 2}, "vae": {}}
LTX = "model.diffusion_model."
UPSCALES = "post_upsample_res_blocks.0.conv1.weight"
BYTES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1, "F8_E5M2": 1}

Shapes = dict[str, tuple[int, ...]]


def safetensors(
    path: Path,
    tensors: Shapes,
    config: dict[str, Any] | None = None,
    version: str = "",
    *,
    dtype: str = "BF16",
    dtypes: dict[str, str] | None = None,
) -> Path:
    """A file with these tensors; `dtypes` are those of single ones."""
    metadata = {} if config is None else {"config": json.dumps(config)}
    if version:
        metadata["model_version"] = version
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, shape in tensors.items():
        kind = (dtypes or {}).get(name, dtype)
        start, end = end, end + math.prod(shape) * BYTES[kind]
        header[name] = {"dtype": kind, "shape": [*shape], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def checkpoint_tensors(
    width: int = WIDTH, layers: int = LAYERS, *, newer: bool = False, blocks: int = 2
) -> Shapes:
    """A checkpoint of LTX-2, or of LTX-2.3 (`newer`), for a Gemma of this size."""
    flat = width * (layers + 1)
    projection: Shapes = (
        {
            "text_embedding_projection.video_aggregate_embed.weight": (128, flat),
            "text_embedding_projection.audio_aggregate_embed.weight": (64, flat),
        }
        if newer
        else {"text_embedding_projection.aggregate_embed.weight": (width, flat)}
    )
    return {
        f"{LTX}patchify_proj.weight": (4, 4),
        f"{LTX}audio_patchify_proj.weight": (4, 4),
        **{f"{LTX}transformer_blocks.{n}.attn1.to_q.weight": (4, 4) for n in range(blocks)},
        f"{LTX}video_embeddings_connector.learnable_registers": (4, 4),
        f"{LTX}audio_embeddings_connector.learnable_registers": (4, 4),
        **projection,
        "vae.decoder.conv_in.conv.weight": (4,),
        "audio_vae.decoder.conv_in.conv.weight": (4,),
        "vocoder.conv_pre.weight": (4,),
    }


def upscaler_tensors(kind: str = "spatial") -> Shapes:
    """An upscaler that doubles sides ('spatial'), frames ('temporal'), or scales by a fraction."""
    conv: Shapes = {
        "spatial": {"upsampler.0.weight": (16, 4, 3, 3)},
        "temporal": {"upsampler.0.weight": (8, 4, 3, 3, 3)},
        "rational": {"upsampler.conv.weight": (16, 4, 3, 3)},
    }[kind]
    return {UPSCALES: (4, 4, 3, 3, 3), **conv}


def gemma_tensors(
    width: int = WIDTH, layers: int = LAYERS, rows: int = ROWS, *, generation: int = 3
) -> Shapes:
    """A Gemma's language model and an eye."""
    start = "language_model.model." if generation == 3 else "model."
    norm = {3: "self_attn.q_norm.weight", 2: "input_layernorm.weight"}[generation]
    return {
        f"{start}embed_tokens.weight": (rows, width),
        **{f"{start}layers.{n}.{norm}": (4,) for n in range(layers)},
        **{f"{start}layers.{n}.pre_feedforward_layernorm.weight": (4,) for n in range(layers)},
        **({"vision_tower.encoder.layers.0.layer_norm1.bias": (4,)} if generation == 3 else {}),
    }


def text_encoder(folder: Path, width: int = WIDTH, layers: int = LAYERS, rows: int = ROWS) -> Path:
    """A whole text encoder."""
    safetensors(folder / "model.safetensors", gemma_tensors(width, layers, rows))
    about = {"hidden_size": width, "num_hidden_layers": layers, "model_type": "gemma3_text"}
    write(folder / "config.json", {"model_type": "gemma3", "text_config": about})
    write(folder / "tokenizer_config.json", {})
    write(folder / "tokenizer.json", tokenizer(rows))
    return folder


def tokenizer(tokens: int) -> dict[str, Any]:
    """A tokenizer.json of so many tokens."""
    return {"model": {"vocab": {f"<{n}>": n for n in range(tokens)}}, "added_tokens": []}


def in_shards(encoder: Path) -> tuple[Path, Path]:
    """A text encoder's weights as published: in two files, with an index of both."""
    (encoder / "model.safetensors").unlink()
    names = sorted(gemma_tensors())
    places: dict[str, str] = {}
    for number, part in enumerate((names[:5], names[5:]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        safetensors(encoder / shard, {name: gemma_tensors()[name] for name in part})
        places |= dict.fromkeys(part, shard)
    write(encoder / "model.safetensors.index.json", {"weight_map": places})
    first, second = sorted(encoder.glob("model-*.safetensors"))
    return first, second


def model(folder: Path, version: str = "2.0.0", checkpoint: str = "weights.safetensors") -> Path:
    """A whole model with a text encoder of its own."""
    newer = version.startswith("2.3")
    safetensors(folder / checkpoint, checkpoint_tensors(newer=newer), CONFIG, version)
    text_encoder(folder / "gemma")
    return folder


def write(file: Path, content: Any) -> Path:
    """Write JSON, or bytes as they are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return file
