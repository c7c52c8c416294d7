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

from ltxq_worker.models.weights.text import TextContext
from ltxq_worker.pipeline import schedule


@dataclass(frozen=True)
class Latents:
    """A clip before decoding."""

    video: torch.Tensor  # bf16 [1, 128, F', H/32, W/32], F' = (F − 1) / 8 + 1
    audio: torch.Tensor  # bf16 [1, 8, T, 16], 25 a second


Step = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
"""Noisy picture and sound, patchified [1, tokens, 128], and the step's number from 0, to what is
less noisy by that step; new tensors of the same shapes."""


class Transformer(Protocol):
    """What takes a step's noise away."""

    def bind(
        self,
        video: LatentState,
        audio: LatentState,
        context: TextContext,
        levels: Sequence[float],
    ) -> Step:
        """Prepare what stays the same in all steps of a stage: positions, text, noise levels. The
        states' masks are all ones: every token is as noisy as the noise level says. The `Step` is
        of use until the next `bind`.
        """


class LibraryTransformer:
    """ltx-core's own way, step for step: the exact one."""

    def __init__(self, model: X0Model) -> None:
        self._model = model

    def bind(
        self,
        video: LatentState,
        audio: LatentState,
        context: TextContext,
        levels: Sequence[float],
    ) -> Step:
        """As `Transformer.bind`; nothing is kept between steps."""
        stepper = EulerDiffusionStep()
        on_cpu = torch.tensor(levels)  # for the stepper, which asks for their values
        sigmas = on_cpu.to(video.latent.device)

        def step(
            noisy_video: torch.Tensor, noisy_audio: torch.Tensor, index: int
        ) -> tuple[torch.Tensor, torch.Tensor]:
            clean_video, clean_audio = self._model(
                video=_modality(video, noisy_video, context.video, sigmas[index]),
                audio=_modality(audio, noisy_audio, context.audio, sigmas[index]),
                perturbations=None,
            )
            return (
                stepper.step(noisy_video, clean_video, on_cpu, index),
                stepper.step(noisy_audio, clean_audio, on_cpu, index),
            )

        return step


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
    noiser = GaussianNoiser(generator)
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

    step = transformer.bind(video, audio, context, levels)
    pace = _Pace(device)
    picture, sound = video.latent, audio.latent
    for index in range(len(levels) - 1):
        picture, sound = step(picture, sound, index)
        pace.keep()
        step_done(index + 1)

    return Latents(
        video=video_tools.unpatchify(replace(video, latent=picture)).latent,
        audio=audio_tools.unpatchify(replace(audio, latent=sound)).latent,
    )


class _Pace:
    """Keeps the CPU one step ahead of a GPU: the next step is queued while one runs, and progress
    and cancelling are one step late at most.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: torch.cuda.Event | None = None

    def keep(self) -> None:
        """Called when a step is queued: waits for the one before it."""
        if self._device.type != "cuda":
            return
        queued = torch.cuda.Event(blocking=True)  # the encoder has use for a core
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
