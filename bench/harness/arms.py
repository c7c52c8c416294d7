"""The arms, the implementations that are compared: the library's pipelines, and ltxq's.

All arms have the same weights and encode a prompt through ltxq's Gemma (ltx-core 1.0.0's own does
not work with transformers 5). The library's arm leaves out measures for small cards: it keeps its
models loaded, and does not empty caches between stages.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from ltx_core.components.diffusion_steps import EulerDiffusionStep
from ltx_core.components.noisers import GaussianNoiser
from ltx_core.model.audio_vae import decode_audio
from ltx_core.model.transformer import X0Model
from ltx_core.model.upsampler import upsample_video
from ltx_core.model.video_vae import TilingConfig, decode_video, get_video_chunks_number
from ltx_core.types import LatentState, VideoPixelShape
from ltx_pipelines.utils.constants import DISTILLED_SIGMA_VALUES, STAGE_2_DISTILLED_SIGMA_VALUES
from ltx_pipelines.utils.helpers import denoise_audio_video, simple_denoising_func
from ltx_pipelines.utils.media_io import encode_video
from ltx_pipelines.utils.samplers import euler_denoising_loop
from ltx_pipelines.utils.types import PipelineComponents

from bench.harness.timeline import Timeline, wait_for
from bench.harness.weights import Kind, Shared, Sizes
from ltxq.job import Stage, VideoRequest
from ltxq_worker.encode.clip import encode
from ltxq_worker.models.weights.resident import Resident
from ltxq_worker.models.weights.text import TextContext
from ltxq_worker.pipeline.denoise import Latents, Transformer, in_one_stage, in_two_stages
from ltxq_worker.pipeline.fast.options import Optimizations
from ltxq_worker.pipeline.ltx import LtxPipeline


@dataclass(frozen=True)
class Made:
    """The measurements of making one clip."""

    spans: dict[str, float]  # seconds by stage, on the device's own timeline
    seconds: float  # prompt to MP4 on disk, by the clock
    encode: float  # seconds from the last frame in the host's memory to the MP4, by the clock
    mp4_bytes: int
    pieces: int  # number of decoded chunks


class Arm(Protocol):
    """One way of making clips."""

    name: str
    weights: Kind  # of the transformer

    @property
    def optimizations(self) -> str:
        """The optimizations that are on, as in LTXQ_OPTIMIZE; '' for the library's arms."""

    def make(self, request: VideoRequest, folder: Path) -> Made:
        """Make and time a clip; writes its MP4 to `folder`."""

    def latents(self, request: VideoRequest) -> Latents:
        """The clip before decoding, untimed."""


class LibraryArm:
    """ltx-core's modules with ltx-pipelines' loop, default tiling and encoder; not compiled."""

    optimizations = ""

    def __init__(self, name: str, weights: Kind, shared: Shared, model: X0Model) -> None:
        self.name, self.weights = name, weights
        self._shared, self._model = shared, model
        self._device = next(shared.video_decoder.parameters()).device
        self._timeline = Timeline(self._device)

    @torch.inference_mode()
    def make(self, request: VideoRequest, folder: Path) -> Made:
        """As `Arm.make`."""
        tiling, mp4, line = TilingConfig.default(), folder / "clip.mp4", self._timeline
        began = time.perf_counter()
        line.start()
        with watched(self._shared, None, line):
            generator = torch.Generator(self._device).manual_seed(request.seed or 0)
            made = self._denoised(request, generator)
            sound = decode_audio(made.audio, self._shared.audio_decoder, self._shared.vocoder)
            line.mark("audio")
            chunks = decode_video(made.video, self._shared.video_decoder, tiling, generator)
            decoded: list[float] = []
            encode_video(
                video=_copied(chunks, line, decoded),
                fps=int(request.frame_rate),
                audio=sound,
                output_path=str(mp4),
                video_chunks_number=get_video_chunks_number(request.num_frames, tiling),
            )
        ended = time.perf_counter()
        size = mp4.stat().st_size
        return Made(line.spans(), ended - began, ended - decoded[-1], size, len(decoded))

    @torch.inference_mode()
    def latents(self, request: VideoRequest) -> Latents:
        """As `Arm.latents`."""
        generator = torch.Generator(self._device).manual_seed(request.seed or 0)
        return self._denoised(request, generator)

    def _denoised(self, request: VideoRequest, generator: torch.Generator) -> Latents:
        context = self._shared.text.encode(request.prompt)
        self._timeline.mark("connectors")
        noiser = GaussianNoiser(generator)
        size = VideoPixelShape(
            1, request.num_frames, request.height, request.width, request.frame_rate
        )
        if request.stages == 1:
            return self._stage(size, DISTILLED_SIGMA_VALUES, noiser, context, 0, None)
        half = size._replace(height=size.height // 2, width=size.width // 2)
        small = self._stage(half, DISTILLED_SIGMA_VALUES, noiser, context, 0, None)
        shared = self._shared
        doubled = upsample_video(small.video, shared.video_decoder, shared.upsampler)
        self._timeline.mark("upsample")
        done, start = len(DISTILLED_SIGMA_VALUES) - 1, Latents(doubled, small.audio)
        return self._stage(size, STAGE_2_DISTILLED_SIGMA_VALUES, noiser, context, done, start)

    def _stage(
        self,
        size: VideoPixelShape,
        levels: list[float],
        noiser: GaussianNoiser,
        context: TextContext,
        done: int,
        start: Latents | None,
    ) -> Latents:
        step = simple_denoising_func(context.video, context.audio, self._model)

        def timed(
            video: LatentState, audio: LatentState, sigmas: torch.Tensor, index: int
        ) -> tuple[torch.Tensor, torch.Tensor]:
            clean = step(video, audio, sigmas, index)
            self._timeline.mark(f"step {done + index + 1}")
            return clean

        video, audio = denoise_audio_video(
            output_shape=size,
            conditionings=[],
            noiser=noiser,
            sigmas=torch.tensor(levels).to(self._device),
            stepper=EulerDiffusionStep(),
            denoising_loop_fn=lambda sigmas, video, audio, stepper: euler_denoising_loop(
                sigmas, video, audio, stepper, timed
            ),
            components=PipelineComponents(torch.bfloat16, self._device),
            dtype=torch.bfloat16,
            device=self._device,
            noise_scale=levels[0],
            initial_video_latent=start and start.video,
            initial_audio_latent=start and start.audio,
        )
        self._timeline.mark(f"step {done + len(levels) - 1}")
        return Latents(video.latent, audio.latent)


class LtxqArm:
    """ltxq's pipeline and encoder, as a worker runs them."""

    def __init__(
        self,
        name: str,
        weights: Kind,
        sizes: Sizes,
        shared: Shared,
        model: X0Model,
        optimizations: Optimizations,
    ) -> None:
        self.name, self.weights = name, weights
        self._sizes, self._shared = sizes, shared
        self._device = next(shared.video_decoder.parameters()).device
        self._timeline = Timeline(self._device)
        self._optimizations = optimizations
        # A copy of the decoder: the optimization `decode` changes the memory order of its weights.
        self._decoder = copy.deepcopy(shared.video_decoder)
        self.pipeline = self._around(model, optimizations)

    @property
    def optimizations(self) -> str:
        """As `Arm.optimizations`."""
        return str(self.pipeline.optimizations)

    def _around(self, model: X0Model, optimizations: Optimizations) -> LtxPipeline:
        return LtxPipeline(
            folder=self._sizes.folder,
            parts=Resident(
                text=self._shared.text,
                transformer=model,
                video_decoder=self._decoder,
                audio_decoder=self._shared.audio_decoder,
                vocoder=self._shared.vocoder,
                upsampler=self._shared.upsampler,
            ),
            device=self._device,
            optimizations=optimizations,
        )

    def make(self, request: VideoRequest, folder: Path) -> Made:
        """As `Arm.make`."""
        line = self._timeline
        began = time.perf_counter()
        decoded: list[float] = []

        def report(stage: Stage, step: int, _steps: int) -> None:
            if stage == "encode":  # first reported when the GPU is free
                decoded.append(time.perf_counter())
            elif stage == "denoise" and step:
                line.mark(f"step {step}")
            elif stage == "decode":
                line.mark("copy" if step else "audio")
            elif step:
                line.mark("connectors")

        line.start()
        # The decoder that runs, which may be a channels-last copy of the one given.
        with watched(self._shared, self.pipeline._decoding._decoder, line):
            encoded = encode(self.pipeline.generate(request, report), request, folder, report)
        ended = time.perf_counter()
        pieces = line.count("decode")
        return Made(line.spans(), ended - began, ended - decoded[0], encoded.size, pieces)

    @torch.inference_mode()
    def latents(self, request: VideoRequest) -> Latents:
        """As `Arm.latents`."""
        pipeline = self.pipeline
        size = VideoPixelShape(
            1, request.num_frames, request.height, request.width, request.frame_rate
        )
        generator = torch.Generator(self._device).manual_seed(request.seed or 0)
        context = pipeline._context(request.prompt)
        if request.stages == 1:
            return in_one_stage(pipeline._fast.transformer, context, size, generator, _ignore)
        return in_two_stages(
            pipeline._fast.transformer, pipeline._upsample, context, size, generator, _ignore
        )

    def over(self, model: X0Model) -> Transformer:
        """This arm's transformer over `model`, uncompiled: compiling a new size takes a minute."""
        plain = replace(self._optimizations, compile=False, graphs=False)
        return self._around(model, plain)._fast.transformer


@contextmanager
def watched(shared: Shared, decoder: torch.nn.Module | None, line: Timeline) -> Iterator[None]:
    """Marks on `line` when Gemma, upsampler and vocoder end, and after each run of `decoder`."""
    parts = {"text": shared.gemma, "upsample": shared.upsampler, "audio": shared.vocoder}
    with ExitStack() as hooks:
        for name, part in parts.items():
            hook = part.register_forward_hook(lambda *_, name=name: line.mark(name))
            hooks.callback(hook.remove)
        if decoder is not None:  # hooks do not run, since tiled decoding calls `forward` directly
            decode = decoder.forward

            def timed(*args: Any, **kwargs: Any) -> Any:
                decoded = decode(*args, **kwargs)
                line.mark("decode")
                return decoded

            decoder.forward = timed  # type: ignore[method-assign]
            hooks.callback(delattr, decoder, "forward")
        yield
        wait_for(next(shared.vocoder.parameters()).device)


def _copied(
    chunks: Iterator[torch.Tensor], line: Timeline, decoded: list[float]
) -> Iterator[torch.Tensor]:
    """The chunks in the host's memory; appends the time of each to `decoded`."""
    for chunk in chunks:
        line.mark("decode")
        frames = chunk.cpu()
        line.mark("copy")
        decoded.append(time.perf_counter())
        yield frames


def _ignore(step: int) -> None:
    """A StepDone that does nothing."""
