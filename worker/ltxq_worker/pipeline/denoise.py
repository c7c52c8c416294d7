"""From noise to latents: the distilled model's eight Euler steps over picture and sound together.

Equal bit for bit to ltx-pipelines' functions for one stage. Decoding is left to `ltx.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from ltx_core.components.diffusion_steps import EulerDiffusionStep
from ltx_core.components.noisers import GaussianNoiser
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.model.transformer import Modality, X0Model
from ltx_core.tools import AudioLatentTools, VideoLatentTools
from ltx_core.types import AudioLatentShape, LatentState, VideoLatentShape, VideoPixelShape

from ltxq_worker.models.text import TextContext

# The noise levels the distilled checkpoints were trained for, as ltx-pipelines 1.0.0 has them.
SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
STEPS = len(SIGMAS) - 1


@dataclass(frozen=True)
class Latents:
    """A denoised clip before decoding."""

    video: torch.Tensor  # bf16 [1, 128, F', H/32, W/32], F' = (F − 1) / 8 + 1
    audio: torch.Tensor  # bf16 [1, 8, T, 16], 25 a second


Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Noisy picture and sound, patchified [1, tokens, 128], and the noise level, a scalar on the
device, to clean picture and sound of the same shapes."""


class Transformer(Protocol):
    """What predicts clean latents."""

    def bind(self, video: LatentState, audio: LatentState, context: TextContext) -> Predict:
        """Prepare what stays the same in all steps of a clip: positions and text. The states'
        masks are all ones: every token is as noisy as the noise level says.
        """


class LibraryTransformer:
    """ltx-core's own way, step for step: the exact one."""

    def __init__(self, model: X0Model) -> None:
        self._model = model

    def bind(self, video: LatentState, audio: LatentState, context: TextContext) -> Predict:
        """As `Transformer.bind`; nothing is kept between steps."""

        def predict(
            noisy_video: torch.Tensor, noisy_audio: torch.Tensor, sigma: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            clean: tuple[torch.Tensor, torch.Tensor] = self._model(
                video=_modality(video, noisy_video, context.video, sigma),
                audio=_modality(audio, noisy_audio, context.audio, sigma),
                perturbations=None,
            )
            return clean

        return predict


def denoise(
    transformer: Transformer,
    context: TextContext,
    shape: VideoPixelShape,
    generator: torch.Generator,
    step_done: Callable[[int], None],
) -> Latents:
    """Run the schedule. `step_done` is told after each step; what it raises ends the run."""
    device = generator.device
    noiser, stepper = GaussianNoiser(generator), EulerDiffusionStep()
    sigmas = torch.tensor(SIGMAS, device=device)
    video_tools = VideoLatentTools(
        VideoLatentPatchifier(patch_size=1), VideoLatentShape.from_pixel_shape(shape), shape.fps
    )
    audio_shape = AudioLatentShape.from_video_pixel_shape(shape)
    if audio_shape.frames == 0:  # one frame at 50 a second or more: ltx-core rounds its sound away
        audio_shape = audio_shape._replace(frames=1)
    audio_tools = AudioLatentTools(AudioPatchifier(patch_size=1), audio_shape)
    # One generator serves both, picture first: the order is part of what a seed means.
    video = noiser(video_tools.create_initial_state(device, torch.bfloat16), 1.0)
    audio = noiser(audio_tools.create_initial_state(device, torch.bfloat16), 1.0)

    predict = transformer.bind(video, audio, context)
    for step in range(STEPS):
        clean_video, clean_audio = predict(video.latent, audio.latent, sigmas[step])
        video = replace(video, latent=stepper.step(video.latent, clean_video, sigmas, step))
        audio = replace(audio, latent=stepper.step(audio.latent, clean_audio, sigmas, step))
        step_done(step + 1)

    return Latents(
        video=video_tools.unpatchify(video).latent, audio=audio_tools.unpatchify(audio).latent
    )


def _modality(
    state: LatentState, latent: torch.Tensor, context: torch.Tensor, sigma: torch.Tensor
) -> Modality:
    return Modality(
        latent=latent,
        sigma=sigma,
        timesteps=state.denoise_mask * sigma,
        positions=state.positions,
        context=context,
    )
