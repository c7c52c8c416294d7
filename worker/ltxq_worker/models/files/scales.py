"""Reads the scales of a checkpoint that stores weights in FP8, and refuses other forms of FP8."""

from __future__ import annotations

import math

from ltxq.errors import ModelUnusable
from ltxq_worker.models.files.header import SafetensorsHeader
from ltxq_worker.models.files.identify import PARTS, PLAIN, TRANSFORMER

_FP8, _SCALE, _WEIGHT = "F8_E4M3", ".weight_scale", ".weight"
_OTHER_SCALE = (".scale_weight", "scaled_fp8", ".comfy_quant")
_LOADED = (TRANSFORMER, *PARTS)  # beginnings of the names of weights that are loaded


def fp8_scales(header: SafetensorsHeader, again: str) -> dict[str, float]:
    """The scale of each weight that a checkpoint stores in FP8; empty for a bf16 checkpoint.

    Published FP8 checkpoints have a scale for each FP8 weight. A checkpoint that was only cast to
    FP8 has no scales, and its weights would be wrong.
    """
    tensors = header.tensors
    if any(name.endswith(_OTHER_SCALE) for name in tensors):
        raise ModelUnusable(
            f"{header.path} stores FP8 weights as ComfyUI does (scale_weight); a bf16 checkpoint, "
            "or one in FP8 as Lightricks publishes it (weight_scale), is wanted.",
            hint=again,
        )
    for name, tensor in tensors.items():
        if name.startswith(_LOADED) and tensor.dtype not in PLAIN | {_FP8}:
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
