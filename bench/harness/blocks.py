"""Compares the arms' first blocks with the library's in float32. This shows the rounding error of
a few blocks, before eight steps through all blocks amplify it.
"""

from __future__ import annotations

import copy

import torch
from ltx_core.components.noisers import GaussianNoiser
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.model.transformer import X0Model
from ltx_core.tools import AudioLatentTools, VideoLatentTools
from ltx_core.types import AudioLatentShape, LatentState, VideoLatentShape, VideoPixelShape

from bench.harness.weights import Sizes
from ltxq_worker.models.weights.text import TextContext
from ltxq_worker.pipeline.denoise import Latents, LibraryTransformer, Transformer

BLOCKS = 4  # the first, which stays in bf16, and three that may be in FP8
SIGMA = 0.725  # a noise level from the middle of the schedule
SHAPE = VideoPixelShape(batch=1, frames=9, height=256, width=256, fps=24.0)


def first_blocks(model: X0Model) -> X0Model:
    """A copy of `model` with only its first blocks, whose weights it shares."""
    few = copy.copy(model)
    few._modules = dict(model._modules)
    velocity = copy.copy(model.velocity_model)
    velocity._modules = dict(model.velocity_model._modules)
    velocity.transformer_blocks = torch.nn.ModuleList(velocity.transformer_blocks[:BLOCKS])
    few.velocity_model = velocity
    return few


@torch.inference_mode()
def in_float32(model: X0Model, sizes: Sizes) -> Latents:
    """The prediction of the first blocks of a bf16 `model`, by the library in float32."""
    unrounded = copy.deepcopy(first_blocks(model)).float()
    return _predicted(LibraryTransformer(unrounded), sizes, model, torch.float32)


@torch.inference_mode()
def in_arm(transformer: Transformer, sizes: Sizes, model: X0Model) -> Latents:
    """The prediction of `transformer`, an arm's transformer over the first blocks of `model`."""
    return _predicted(transformer, sizes, model, torch.bfloat16)


def _predicted(
    transformer: Transformer, sizes: Sizes, model: X0Model, dtype: torch.dtype
) -> Latents:
    device = model.velocity_model.proj_out.weight.device
    generator = torch.Generator(device).manual_seed(0)
    video, audio = _noise(generator)
    widths = sizes.context_widths
    texts = [
        torch.randn(1, 1024, width, device=device, generator=generator).bfloat16()
        for width in widths
    ]
    step = transformer.bind(
        _as(video, dtype),
        _as(audio, dtype),
        TextContext(*(text.to(dtype) for text in texts)),
        (SIGMA, 0.0),
    )
    clean = step(video.latent.to(dtype), audio.latent.to(dtype), 0)
    return Latents(*(part.float().cpu() for part in clean))


def _noise(generator: torch.Generator) -> tuple[LatentState, LatentState]:
    tools = (
        VideoLatentTools(
            VideoLatentPatchifier(patch_size=1), VideoLatentShape.from_pixel_shape(SHAPE), SHAPE.fps
        ),
        AudioLatentTools(
            AudioPatchifier(patch_size=1), AudioLatentShape.from_video_pixel_shape(SHAPE)
        ),
    )
    noiser = GaussianNoiser(generator)
    video, audio = (
        noiser(tool.create_initial_state(generator.device, torch.bfloat16)) for tool in tools
    )
    return video, audio


def _as(state: LatentState, dtype: torch.dtype) -> LatentState:
    return LatentState(
        latent=state.latent.to(dtype),
        denoise_mask=state.denoise_mask,
        positions=state.positions,
        clean_latent=state.clean_latent.to(dtype),
    )
