"""From noise to latents: the distilled model's Euler steps over picture and sound together.

One stage: eight steps at full size. Two stages: eight steps at half size, then three steps on the
upsampled latents. The latents are bit-identical to those of ltx-pipelines. `ltx.py` decodes them.
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
    audio: torch.Tensor  # bf16 [1, 8, T, 16], T counts 25 per second


Step = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
"""A denoising step. Arguments: noisy picture and sound, patchified [1, tokens, 128], and the step's
index from 0. Returns new, less noisy tensors of the same shapes."""


class Transformer(Protocol):
    """A model that can prepare and run denoising steps."""

    def bind(
        self,
        video: LatentState,
        audio: LatentState,
        context: TextContext,
        levels: Sequence[float],
    ) -> Step:
        """Prepare the inputs that are constant over a stage: positions, text, noise levels.

        The states' denoise masks must be all ones: every token has the same noise level. The
        returned `Step` is valid until the next `bind`.
        """


class LibraryTransformer:
    """ltx-core's unmodified transformer and Euler step: the exact reference."""

    def __init__(self, model: X0Model) -> None:
        self._model = model

    def bind(
        self,
        video: LatentState,
        audio: LatentState,
        context: TextContext,
        levels: Sequence[float],
    ) -> Step:
        """As `Transformer.bind`; nothing is cached between steps."""
        stepper = EulerDiffusionStep()
        on_cpu = torch.tensor(levels)  # the stepper reads their values, which would block a GPU
        sigmas = on_cpu.to(video.latent.device)

        def step(
            noisy_video: torch.Tensor, noisy_audio: torch.Tensor, index: int
        ) -> tuple[torch.Tensor, torch.Tensor]:
            clean_video, clean_audio = self._model(
                video=modality(video, noisy_video, context.video, sigmas[index]),
                audio=modality(audio, noisy_audio, context.audio, sigmas[index]),
                perturbations=None,
            )
            return (
                stepper.step(noisy_video, clean_video, on_cpu, index),
                stepper.step(noisy_audio, clean_audio, on_cpu, index),
            )

        return step


StepDone = Callable[[int], None]
"""Callback: the number of the clip's steps that are done. An error it raises ends the run."""


def in_one_stage(
    transformer: Transformer,
    context: TextContext,
    shape: VideoPixelShape,
    generator: torch.Generator,
    step_done: StepDone,
    levels: Sequence[float] = schedule.FIRST_STAGE,
    start: Latents | None = None,
) -> Latents:
    """Denoise a clip: add noise of the first of `levels` to `start`, and denoise it to the last.

    `start` None: from pure noise.
    """
    device = generator.device
    noiser = GaussianNoiser(generator)
    video_tools = VideoLatentTools(
        VideoLatentPatchifier(patch_size=1), VideoLatentShape.from_pixel_shape(shape), shape.fps
    )
    audio_shape = AudioLatentShape.from_video_pixel_shape(shape)
    if audio_shape.frames == 0:  # ltx-core rounds so for one frame at 50 per second or more
        audio_shape = audio_shape._replace(frames=1)
    audio_tools = AudioLatentTools(AudioPatchifier(patch_size=1), audio_shape)
    video = video_tools.create_initial_state(device, torch.bfloat16, start and start.video)
    audio = audio_tools.create_initial_state(device, torch.bfloat16, start and start.audio)
    # The picture draws first from the shared generator: another order changes every seed's clip.
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


def in_two_stages(
    transformer: Transformer,
    upsample: Callable[[torch.Tensor], torch.Tensor],
    context: TextContext,
    shape: VideoPixelShape,
    generator: torch.Generator,
    step_done: StepDone,
    stage_done: Callable[[Latents], None] = lambda _: None,
) -> Latents:
    """Denoise a clip at half size; then upsample it, add noise and denoise it at full size.

    `upsample` doubles height and width of a picture latent. The second stage refines sound too.
    `stage_done` receives the latents of the first stage.
    """
    half = shape._replace(height=shape.height // 2, width=shape.width // 2)
    small = in_one_stage(transformer, context, half, generator, step_done)
    stage_done(small)
    doubled = Latents(video=upsample(small.video), audio=small.audio)
    done = schedule.steps(1)
    return in_one_stage(
        transformer, context, shape, generator,
        lambda step: step_done(done + step), schedule.SECOND_STAGE, doubled,
    )  # fmt: skip


class _Pace:
    """Keeps the CPU one step ahead of the GPU: the next step is queued while one runs. Progress
    and cancellation are at most one step late.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: torch.cuda.Event | None = None

    def keep(self) -> None:
        """Call after queueing a step: waits until the step before it is done."""
        if self._device.type != "cuda":
            return
        queued = torch.cuda.Event(blocking=True)  # no busy-wait: the encoder needs the core
        queued.record()
        if self._before is not None:
            self._before.synchronize()
        self._before = queued


def modality(
    state: LatentState, latent: torch.Tensor, context: torch.Tensor, sigma: torch.Tensor
) -> Modality:
    """A stream's input to the library's transformer at the noise level `sigma`."""
    return Modality(
        latent=latent,
        sigma=sigma,
        timesteps=state.denoise_mask * sigma,
        positions=state.positions,
        context=context,
    )
