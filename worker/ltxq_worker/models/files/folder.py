"""A model's folder on disk: finds its files, reads its configuration, checks that it is complete.

Reads headers only, without torch, so that the supervisor and the CLI can check a folder cheaply.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltxq.errors import ModelUnusable
from ltxq_worker.models.catalog import CATALOG, SHARED_TEXT_ENCODER
from ltxq_worker.models.files.header import SafetensorsHeader

NEWEST = (2, 3)  # LTX-2.5 needs ltx-core 1.2, which is not released as a package

_TRANSFORMER = "model.diffusion_model."  # prefix of its weights' names
_FP8, _SCALE, _WEIGHT = "F8_E4M3", ".weight_scale", ".weight"
_READABLE = {"BF16", "F16", "F32", _FP8}


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A folder that holds one usable model."""

    path: Path
    name: str  # the folder's name, by which requests name the model
    checkpoint: Path
    upscaler: Path | None  # doubles height and width of latents; needed for two stages only
    upscaler_config: dict[str, Any]  # from the upscaler's header; empty without an upscaler
    text_encoder: Path
    config: dict[str, Any]  # from the checkpoint's header: transformer, vae, audio_vae, vocoder
    version: str  # the checkpoint's model_version; '' for an LTX-2 file that has none
    fp8_scales: dict[str, float]  # dequantization scales by weight name; published FP8 only
    tiny: bool  # random weights; user interfaces explain why its pictures are abstract

    @classmethod
    def open(cls, path: Path) -> ModelFolder:
        """Read a model's folder and check that all files exist and are complete.

        Raises:
            ModelUnusable: a file is missing, cut short, foreign or too new; the hint says what to
                do.
        """
        path = Path(path).expanduser().absolute()
        again = "`ltxq model list` lists the models; `ltxq model tiny DIR` makes a small one."
        if path.name in CATALOG:
            again = f"Get it with `ltxq model download {path.name}`."
        if not path.is_dir():
            raise ModelUnusable(f"There is no model folder {path}.", hint=again)
        weights = sorted(path.glob("[!.]*.safetensors"))
        headers = {file: SafetensorsHeader.read(file, again) for file in weights}
        configs = {file: _config(header) for file, header in headers.items()}
        checkpoint, config = _only_checkpoint(path, configs, again)
        version = headers[checkpoint].metadata.get("model_version", "")
        _check_kind(checkpoint, config, version)
        upscaler = _upscaler(headers, configs)
        return cls(
            path=path,
            name=path.name,
            checkpoint=checkpoint,
            upscaler=upscaler,
            upscaler_config=configs[upscaler] if upscaler else {},
            text_encoder=_text_encoder(path, again),
            config=config,
            version=version,
            fp8_scales=_fp8_scales(headers[checkpoint], again),
            tiny=bool(config.get("random_weights", False)),
        )


def _config(header: SafetensorsHeader) -> dict[str, Any]:
    """The configuration in a file's header; empty if there is none or it cannot be read."""
    try:
        config = json.loads(header.metadata.get("config", "{}"))
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _upscaler(
    headers: dict[Path, SafetensorsHeader], configs: dict[Path, dict[str, Any]]
) -> Path | None:
    """The upscaler that doubles height and width; of several, the last by name, which is newest.

    Upscalers that add frames or scale by another factor are published beside it.
    """
    for file, config in sorted(configs.items(), reverse=True):
        if "post_upsample_res_blocks.0.conv1.weight" in headers[file].tensors and (
            config.get("spatial_upsample", True) is True
            and config.get("temporal_upsample", False) is False
            and config.get("spatial_scale", 2.0) == 2.0
        ):
            return file
    return None


def _only_checkpoint(
    path: Path, configs: dict[Path, dict[str, Any]], again: str
) -> tuple[Path, dict[str, Any]]:
    """The one file whose `config` describes a transformer, and that configuration."""
    found = [
        (file, config)
        for file, config in configs.items()
        if isinstance(config.get("transformer"), dict)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise ModelUnusable(
            f"{path} has {len(found)} checkpoints: {', '.join(file.name for file, _ in found)}.",
            hint="Keep only one in the folder.",
        )
    if configs:
        names = ", ".join(file.name for file in configs)
        raise ModelUnusable(
            f"{path} has no LTX-2 checkpoint: {names} has no configuration of one.", hint=again
        )
    raise ModelUnusable(f"{path} has no checkpoint (*.safetensors).", hint=again)


def _check_kind(checkpoint: Path, config: dict[str, Any], version: str) -> None:
    hint = "Use an LTX-2 or LTX-2.3 checkpoint: `ltxq model list` lists them."
    number = re.match(r"(\d{1,9})\d*\.(\d{1,9})", version)  # int() refuses thousands of digits
    if number and (int(number[1]), int(number[2])) > NEWEST:
        raise ModelUnusable(
            f"{checkpoint} is LTX {version}, newer than this ltxq can run (LTX-2 and LTX-2.3).",
            hint=hint,
        )
    kind = config["transformer"].get("_class_name", "AVTransformer3DModel")
    if kind != "AVTransformer3DModel" or (number and int(number[1]) < 2):
        raise ModelUnusable(
            f"{checkpoint} is not an LTX-2 audio-video model, but {kind} {version}.", hint=hint
        )


def _fp8_scales(header: SafetensorsHeader, again: str) -> dict[str, float]:
    """The scale of each weight that a checkpoint stores in FP8; empty for a bf16 checkpoint.

    Published FP8 checkpoints have a scale for each FP8 weight. A checkpoint that was only cast to
    FP8 has no scales, and its weights would be wrong.
    """
    tensors = header.tensors
    for name, tensor in tensors.items():
        if name.startswith(_TRANSFORMER) and tensor.dtype not in _READABLE:
            raise ModelUnusable(
                f"{header.path} stores {name} as {tensor.dtype}, which ltxq cannot load.",
                hint="Use the bf16 checkpoint, or the one published in FP8 with scales.",
            )
    weights = {name for name, tensor in tensors.items() if tensor.dtype == _FP8}
    scales = {
        name.removesuffix(_SCALE) + _WEIGHT: name for name in tensors if name.endswith(_SCALE)
    }
    _refuse_fp8(header, "has no scale for the FP8 weights", weights - scales.keys(), again)
    _refuse_fp8(header, "has scales without FP8 weights:", scales.keys() - weights, again)
    shapes = {(tensors[scale].dtype, tensors[scale].numel): name for name, scale in scales.items()}
    shapes.pop(("F32", 1), None)
    _refuse_fp8(header, "has scales that are not one F32, of", set(shapes.values()), again)
    values = dict(zip(scales, header.floats([*scales.values()], again), strict=True))
    wrong = {name for name, value in values.items() if not 0 < value < math.inf}
    _refuse_fp8(header, "has scales that are not positive numbers, of", wrong, again)
    return values


def _refuse_fp8(header: SafetensorsHeader, problem: str, names: set[str], again: str) -> None:
    if names:
        raise ModelUnusable(
            f"{header.path} {problem} {', '.join(sorted(names)[:3])} ({len(names)} in all).",
            hint=f"The file is damaged, or of a kind that ltxq cannot load. {again}",
        )


def _text_encoder(path: Path, again: str) -> Path:
    """The model's own gemma/ folder, or else the shared text encoder's. Its files are checked."""
    own, shared = path / "gemma", path.parent / SHARED_TEXT_ENCODER
    folder = own if own.is_dir() else shared
    if not folder.is_dir():
        raise ModelUnusable(
            f"{path} has no text encoder: neither {own} nor {shared} exists.", hint=again
        )
    _require(folder, ("config.json",), again)
    _require(folder, ("tokenizer.json", "tokenizer.model"), again)
    index = folder / "model.safetensors.index.json"
    shards: Iterable[str] = ["model.safetensors"]
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            if any(Path(shard).name != shard for shard in shards):
                raise ValueError("a shard is in another folder than the index")
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as exc:
            raise ModelUnusable(f"{index} is damaged.", hint=again) from exc
    for shard in shards:
        _require(folder, (shard,), again)
        SafetensorsHeader.read(folder / shard, again)
    return folder


def _require(folder: Path, names: tuple[str, ...], again: str) -> None:
    try:
        there = any((folder / name).is_file() for name in names)
    except OSError:  # the name is too long for a file
        there = False
    if not there:
        raise ModelUnusable(f"{folder} has no {' or '.join(names)[:200]}.", hint=again)
