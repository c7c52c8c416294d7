"""From noise to latents: the distilled model's Euler steps over picture and sound together.

Eight at full size; or eight at half size, and three more on what was doubled. Equal bit for bit
to ltx-pipelines' functions. Decoding is left to `ltx.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from ltxq_worker.pipeline import schedule


@dataclass(frozen=True)
class Latents:
    """A clip before decoding."""

    video: torch.Tensor  # bf16 [1, 128, F', H/32, W/32], F' = (F − 1) / 8 + 1
    audio: torch.Tensor  # bf16 [1, 8, T, 16], 25 a second


Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Noisy picture and sound, patchified [1, tokens, 128], and the noise level, a scalar on the
device, to clean picture and sound of the same shapes."""


class Transformer(Protocol):
    """What predicts clean latents."""

    def bind(self, video: LatentState, audio: LatentState, context: TextContext) -> Predict:
        """Prepare what stays the same in all steps of a stage: positions and text. The states'
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


StepDone = Callable[[int], None]
"""Told how many steps of the clip are done; what it raises ends the run."""


def in_one_stage(
    transformer: Transformer,
    context: TextContext,
    shape: VideoPixelShape,
    generator: torch.Generator,
    step_done: StepDone,
) -> Latents:
    """A clip from noise."""
    return _denoise(transformer, context, shape, schedule.FIRST_STAGE, generator, step_done)


def in_two_stages(
    transformer: Transformer,
    upsample: Callable[[torch.Tensor], torch.Tensor],
    context: TextContext,
    shape: VideoPixelShape,
    generator: torch.Generator,
    step_done: StepDone,
) -> Latents:
    """A clip of half the size from noise, and that one, doubled and noised again, in full size.

    `upsample` doubles the sides of a picture's latent. Sound is refined beside the picture.
    """
    half = shape._replace(height=shape.height // 2, width=shape.width // 2)
    small = in_one_stage(transformer, context, half, generator, step_done)
    doubled = Latents(video=upsample(small.video), audio=small.audio)
    done = schedule.steps(1)
    return _denoise(
        transformer, context, shape, schedule.SECOND_STAGE, generator,
        lambda step: step_done(done + step), doubled,
    )  # fmt: skip


def _denoise(
    transformer: Transformer,
    context: TextContext,
    shape: VideoPixelShape,
    levels: Sequence[float],
    generator: torch.Generator,
    step_done: StepDone,
    start: Latents | None = None,
) -> Latents:
    """One stage: `start`, or nothing, noised to the first of `levels` and cleaned to the last."""
    device = generator.device
    noiser, stepper = GaussianNoiser(generator), EulerDiffusionStep()
    on_cpu = torch.tensor(levels)  # for the stepper, which asks for their values
    sigmas = on_cpu.to(device)
    video_tools = VideoLatentTools(
        VideoLatentPatchifier(patch_size=1), VideoLatentShape.from_pixel_shape(shape), shape.fps
    )
    audio_shape = AudioLatentShape.from_video_pixel_shape(shape)
    if audio_shape.frames == 0:  # one frame at 50 a second or more: ltx-core rounds its sound away
        audio_shape = audio_shape._replace(frames=1)
    audio_tools = AudioLatentTools(AudioPatchifier(patch_size=1), audio_shape)
    video = video_tools.create_initial_state(device, torch.bfloat16, start and start.video)
    audio = audio_tools.create_initial_state(device, torch.bfloat16, start and start.audio)
    # One generator serves both, picture first: the order is part of what a seed means.
    video, audio = noiser(video, levels[0]), noiser(audio, levels[0])

    predict = transformer.bind(video, audio, context)
    pace = _Pace(device)
    for step in range(len(levels) - 1):
        clean_video, clean_audio = predict(video.latent, audio.latent, sigmas[step])
        video = replace(video, latent=stepper.step(video.latent, clean_video, on_cpu, step))
        audio = replace(audio, latent=stepper.step(audio.latent, clean_audio, on_cpu, step))
        pace.keep()
        step_done(step + 1)

    return Latents(
        video=video_tools.unpatchify(video).latent, audio=audio_tools.unpatchify(audio).latent
    )


class _Pace:
    """Lets the CPU be one step ahead of a GPU and no more, so that the GPU never waits, and what
    is reported, and a cancelling that is heard then, is a step late at most.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: torch.cuda.Event | None = None

    def keep(self) -> None:
        """Called when a step is queued: waits for the one before it."""
        if self._device.type != "cuda":
            return
        queued = torch.cuda.Event()
        queued.record()
        if self._before is not None:
            self._before.synchronize()
        self._before = queued


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
