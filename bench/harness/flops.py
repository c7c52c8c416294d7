"""Counts the FLOPs of a clip on the library's modules without running them, and measures the
device's FLOP/s: together a lower bound of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.model.transformer import Modality
from ltx_core.tools import AudioLatentTools, LatentTools, VideoLatentTools
from ltx_core.types import AudioLatentShape, VideoLatentShape, VideoPixelShape
from torch.utils.flop_counter import FlopCounterMode

from bench.harness.timeline import Timeline
from bench.harness.weights import Sizes, build_transformer
from ltxq.job import VideoRequest
from ltxq_worker.models.weights import fp8
from ltxq_worker.models.weights.text import MAX_TOKENS
from ltxq_worker.pipeline import schedule

META = torch.device("meta")
WIDE_BLOCKS = fp8.FIRST_KEPT + fp8.LAST_KEPT  # that stay in bf16
_ONE_BLOCK = f".transformer_blocks.{fp8.FIRST_KEPT}"


@dataclass(frozen=True)
class Arithmetic:
    """FLOPs of all denoising steps of a clip."""

    total: float
    in_8_bits: float  # the part of the layers that are in FP8 if quantized


def denoising(sizes: Sizes, request: VideoRequest) -> Arithmetic:
    """The FLOPs of the matrix products in all denoising steps, attention included."""
    first, second = len(schedule.FIRST_STAGE) - 1, len(schedule.SECOND_STAGE) - 1
    size = pixel_shape(request)
    if request.stages == 1:
        stages = [(size, first)]
    else:
        half = size._replace(height=size.height // 2, width=size.width // 2)
        stages = [(half, first), (size, second)]
    counted = [(steps, _step(sizes, shape)) for shape, steps in stages]
    return Arithmetic(
        total=sum(steps * step.total for steps, step in counted),
        in_8_bits=sum(steps * step.in_8_bits for steps, step in counted),
    )


def pixel_shape(request: VideoRequest) -> VideoPixelShape:
    """A request's size as ltx-core's type."""
    return VideoPixelShape(1, request.num_frames, request.height, request.width, request.frame_rate)


def _step(sizes: Sizes, shape: VideoPixelShape) -> Arithmetic:
    """The FLOPs of one step, from a transformer with one FP8 block; all FP8 blocks are alike."""
    blocks = sizes.blocks
    model = build_transformer(sizes.with_blocks(WIDE_BLOCKS + 1), META, "bf16")
    latents = VideoLatentTools(
        VideoLatentPatchifier(patch_size=1), VideoLatentShape.from_pixel_shape(shape), shape.fps
    )
    sound = AudioLatentTools(
        AudioPatchifier(patch_size=1), AudioLatentShape.from_video_pixel_shape(shape)
    )
    wide, narrow = sizes.context_widths
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(video=_modality(latents, wide), audio=_modality(sound, narrow), perturbations=None)
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    (block,) = (flops for name, flops in by_module.items() if name.endswith(_ONE_BLOCK))
    linear = sum(
        by_module[f"{type(model).__name__}.velocity_model.{name}"]
        for name in fp8.large_layers(model.velocity_model)
    )
    return Arithmetic(
        total=by_module["Global"] + (blocks - WIDE_BLOCKS - 1) * block,
        in_8_bits=(blocks - WIDE_BLOCKS) * linear,
    )


def _modality(tools: LatentTools, text_width: int) -> Modality:
    state = tools.create_initial_state(META, torch.bfloat16)
    sigma = torch.ones((), device=META)
    return Modality(
        latent=state.latent,
        sigma=sigma,
        timesteps=state.denoise_mask * sigma,
        positions=state.positions,
        context=torch.empty(1, MAX_TOKENS, text_width, dtype=torch.bfloat16, device=META),
    )


def rates(device: torch.device) -> dict[str, float]:
    """FLOP/s of large matrix products on the device, by format; FP8 if the device supports it."""
    side = 8192 if device.type == "cuda" else 256
    bf16 = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    measured = {"bf16": _rate(device, side, lambda: bf16 @ bf16)}
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        fp8, ones = bf16.to(torch.float8_e4m3fn), torch.ones(side, 1, device=device)
        measured["fp8"] = _rate(
            device,
            side,
            lambda: torch._scaled_mm(
                fp8, fp8.T, ones, ones.T, out_dtype=torch.bfloat16, use_fast_accum=True
            ),
        )
    return measured


def _rate(device: torch.device, side: int, product: Callable[[], object]) -> float:
    """The best FLOP/s of 20 runs, since a card lowers its clock when it gets warm."""
    line, seconds = Timeline(device), []
    for _ in range(20):
        line.start()
        product()
        line.mark("product")
        seconds.append(line.spans()["product"])
    return 2 * side**3 / min(seconds)


def floor(arithmetic: Arithmetic, rates: dict[str, float], *, fp8: bool) -> float:
    """The seconds that the arithmetic alone takes at these rates, a lower bound."""
    fast = arithmetic.in_8_bits if fp8 and "fp8" in rates else 0
    return (arithmetic.total - fast) / rates["bf16"] + (fast / rates["fp8"] if fast else 0)
