"""The real pipeline: turns a prompt into frames and sound, with LTX-2 loaded once and kept.

Combines text encoding, denoising and decoding, and translates the device's errors into ltxq's.
`encode/` writes the MP4.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from ltx_core.model.audio_vae import decode_audio
from ltx_core.model.upsampler import upsample_video
from ltx_core.model.video_vae import TilingConfig
from ltx_core.types import VideoPixelShape
from numpy.typing import NDArray

from ltxq.errors import InvalidRequest, OutOfMemory
from ltxq.job import Stage, VideoRequest
from ltxq_worker.models.files.folder import ModelFolder, no_upscaler
from ltxq_worker.models.weights import resident
from ltxq_worker.models.weights.checkpoint import LoadReport
from ltxq_worker.models.weights.resident import Quantization, Resident
from ltxq_worker.pipeline import ClipStream, Report, memory, schedule
from ltxq_worker.pipeline.clock import StageClock
from ltxq_worker.pipeline.decode.frames import Decoding, tiles
from ltxq_worker.pipeline.denoise import Latents, in_one_stage, in_two_stages
from ltxq_worker.pipeline.device import (
    KEPT_FREE,
    find_device,
    free_memory,
    memory_left,
    raise_unless_out_of_memory,
    total_memory,
)
from ltxq_worker.pipeline.fast.options import Optimizations
from ltxq_worker.pipeline.fast.path import FastPath
from ltxq_worker.pipeline.finite import FiniteCheck, NotFinite

PROMPTS_KEPT = 16  # cached contexts of the last prompts, about 15 MB each on the 19B model


def _ignore(*_: object, **__: object) -> None:
    """A report that does nothing."""


class LtxPipeline:
    """LTX-2 on one device. Satisfies `Pipeline`; one generation at a time."""

    def __init__(
        self,
        *,
        folder: ModelFolder,
        parts: Resident,
        device: torch.device,
        optimizations: Optimizations,
    ) -> None:
        """Use `load`."""
        self.model = folder.name
        self.versions = {
            **{name: version(name) for name in ("ltx-core", "torch", "transformers")},
            "checkpoint": folder.version,
        }
        self._config = folder.config
        self._parts = parts
        self._fast = FastPath(parts.transformer, optimizations, device)
        self._decoding = Decoding(parts.video_decoder, optimizations, device)
        self._device = device
        # The contexts of the last prompts.
        self._context = functools.lru_cache(PROMPTS_KEPT)(
            lambda prompt: parts.text.encode(prompt, padded=not optimizations.text)
        )

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: str | None = None,
        quantization: Quantization | None = None,
        optimize: str = "auto",
        rgb: bool = False,
        report: LoadReport = _ignore,
    ) -> LtxPipeline:
        """Load a model and keep it.

        Args:
            path: The model's folder; requests name the model by the folder's name.
            device: 'cuda', 'cuda:1' or 'cpu'; None: a GPU if there is one.
            quantization: 'fp8' keeps the transformer's large layers in 8 bits: 22 GB instead of 38
                in bf16. None: fp8 on a GPU; bf16, the library's exact arithmetic, on a CPU.
            optimize: A value of `LTXQ_OPTIMIZE`; 'none': the library's frames, bit for bit.
            rgb: Frames leave the device as RGB, whatever `optimize` says.
            report: Called with the part being loaded and the share done of the whole, 0..1.

        Raises:
            ModelUnusable: the folder holds no usable model.
            OutOfMemory: the model does not fit on the device.
            DeviceBroken: the GPU refuses all work.
            ConfigurationError: there is no such device, or no such optimization.
        """
        folder = ModelFolder.open(path)
        if not {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"} & os.environ.keys():
            # Clips of many sizes would fragment memory. torch reads this when CUDA starts, below.
            os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        where = find_device(device)
        optimizations = Optimizations.parse(optimize, where.type)
        if rgb:
            optimizations = replace(optimizations, frames=False)
        quantization = quantization or ("fp8" if where.type == "cuda" else "bf16")
        try:
            parts = resident.load(folder, where, quantization, report)
        except (RuntimeError, MemoryError) as exc:
            raise_unless_out_of_memory(exc)
        else:
            return cls(folder=folder, parts=parts, device=where, optimizations=optimizations)
        free_memory(where)
        raise OutOfMemory(
            f"{folder.name} does not fit into the {total_memory(where) / 1e9:.0f} GB of memory "
            f"of {where}.",
            hint="Set LTXQ_QUANTIZATION=fp8, stop other programs on it, or use a larger card.",
        )

    @property
    def optimizations(self) -> Optimizations:
        """The optimizations in use. The pipeline turns an optimization off when it fails."""
        return replace(self._fast.optimizations, decode=self._decoding.on)

    def generate(self, request: VideoRequest, report: Report) -> ClipStream:
        """As `Pipeline.generate`. An error that `report` raises ends the clip at once."""
        if request.seed is None:
            raise InvalidRequest("The request has no seed.", hint="Choose one before generating.")
        if request.stages == 2 and self._parts.upsampler is None:
            raise no_upscaler(self.model)
        shape = memory.Shape(request.height, request.width, request.num_frames, request.stages)
        self._require_memory(shape)
        again = True
        while again:
            try:
                return self._generate(request, shape, request.seed, report)
            except (RuntimeError, MemoryError) as exc:
                again = self._fast.steps_down(exc)
                if not again:
                    raise_unless_out_of_memory(exc)
        # Outside the `except`, the error and the tensors that its traceback held are freed.
        raise self._out_of_memory(shape)

    def warm_up(self, requests: Iterable[VideoRequest]) -> None:
        """Make these clips and drop them, since the first clip of a size is slow.

        Raises:
            NotFinite: a part of the model is broken, so that jobs would fail too.
        """
        for request in requests:
            for _ in self.generate(request, _ignore).frames:
                pass

    @torch.inference_mode()
    def _generate(
        self, request: VideoRequest, shape: memory.Shape, seed: int, report: Report
    ) -> ClipStream:
        clock = StageClock(self._device)
        finite = self._decoding.finite_check()
        clock.begin("encode_text")
        report("encode_text", 0, 1)
        context = self._context(request.prompt)
        finite.note("text encoder or its connectors", context.video, context.audio)
        report("encode_text", 1, 1)
        steps = schedule.steps(request.stages)
        clock.begin("denoise")
        report("denoise", 0, steps)

        def step_done(step: int) -> None:
            report("denoise", step, steps)

        transformer = self._fast.transformer
        generator = torch.Generator(self._device).manual_seed(seed)
        size = VideoPixelShape(
            1, request.num_frames, request.height, request.width, request.frame_rate
        )
        if request.stages == 1:
            latents = in_one_stage(transformer, context, size, generator, step_done)
        else:

            def first_stage_done(small: Latents) -> None:
                finite.note("transformer in stage 1", small.video, small.audio)

            def upsample(latent: torch.Tensor) -> torch.Tensor:
                doubled = self._upsample(latent)
                finite.note("upsampler", doubled)
                return doubled

            latents = in_two_stages(
                transformer, upsample, context, size, generator, step_done, first_stage_done
            )
        finite.note(f"transformer in stage {request.stages}", latents.video, latents.audio)
        clock.begin("decode")
        timings: dict[Stage, float] = {}
        sound = None
        if request.audio:
            decoder, vocoder = self._parts.audio_decoder, self._parts.vocoder
            with finite.watching("audio decoder", decoder), finite.watching("vocoder", vocoder):
                audio = decode_audio(latents.audio, decoder, vocoder)
            require = functools.partial(self._require_finite, finite.up_to_here())
            sound = self._decoding.sound(audio, require)
        chunks = self._frames(latents.video, shape, request, generator, finite, clock)
        return ClipStream(
            frames=self._reported(chunks, request.num_frames, report, clock, timings),
            sound=sound,
            pixels=self._decoding.pixels,
            timings=timings,
        )

    def _upsample(self, latent: torch.Tensor) -> torch.Tensor:
        # The library passes the video encoder, for its statistics; the decoder has the same ones.
        return upsample_video(latent, self._parts.video_decoder, self._parts.upsampler)

    def _reported(
        self,
        chunks: Iterator[NDArray[np.uint8]],
        num_frames: int,
        report: Report,
        clock: StageClock,
        timings: dict[Stage, float],
    ) -> Iterator[NDArray[np.uint8]]:
        done = 0
        report("decode", done, num_frames)
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            report("decode", done, num_frames)
        timings.update(clock.seconds())

    def _frames(
        self,
        latent: torch.Tensor,
        shape: memory.Shape,
        request: VideoRequest,
        generator: torch.Generator,
        finite: FiniteCheck,
        clock: StageClock,
    ) -> Iterator[NDArray[np.uint8]]:
        tilings = self._tilings(shape)
        while tilings:
            tiling, begun = tilings[0], False
            try:
                for chunk in self._decoding.frames(
                    latent, tiling, request, generator, finite, clock.end
                ):
                    begun = True
                    yield chunk
                self._require_finite(finite.up_to_here())
                return
            except (RuntimeError, MemoryError) as exc:
                if not begun and self._decoding.steps_down(exc):
                    tilings = self._tilings(shape)
                else:
                    raise_unless_out_of_memory(exc)
                    tilings = [] if begun else tilings[1:]
            if tilings:
                free_memory(self._device)
        raise self._out_of_memory(shape)

    def _require_finite(self, check: Callable[[], None]) -> None:
        """Call a check of `FiniteCheck`, which may raise NotFinite."""
        try:
            check()
        except NotFinite:
            self._context.cache_clear()  # the text's contexts may be what is broken
            raise

    def _tilings(self, shape: memory.Shape) -> list[TilingConfig | None]:
        """The tilings to decode a clip with, in order: the next one is for when memory runs out."""
        small = tiles(shape)
        if small is None or not self.optimizations.decode:
            return [small]
        whole = memory.bytes_needed(self._config, shape, in_one_piece=True)
        return [None, small] if whole <= self._budget() - self._fast.bytes_kept else [small]

    def _require_memory(self, shape: memory.Shape) -> None:
        """Raise OutOfMemory if a clip is too large, after freeing the CUDA graphs if need be."""
        needed = memory.bytes_needed(self._config, shape)
        if needed > self._budget() - self._fast.bytes_kept:
            self._fast.forget()
        if needed > (budget := self._budget()):
            raise self._too_large(shape, budget)

    def _budget(self) -> int:
        """Bytes available to a clip once the graphs of other sizes are freed."""
        if self._device.type != "cuda":
            return memory.available_ram()
        weights = torch.cuda.memory_allocated(self._device)
        return total_memory(self._device) - weights - KEPT_FREE

    def _out_of_memory(self, shape: memory.Shape) -> OutOfMemory:
        """Free the device's memory after it ran out, and make the error. Clips as large as this
        one count as too large.
        """
        self._fast.forget()
        free_memory(self._device)
        tried = memory.bytes_needed(self._config, shape) - 1
        return self._too_large(shape, min(tried, memory_left(self._device)))

    def _too_large(self, shape: memory.Shape, budget: int) -> OutOfMemory:
        fits = memory.largest_that_fits(self._config, shape, budget)
        return OutOfMemory(
            f"A clip of {shape} needs about "
            f"{memory.bytes_needed(self._config, shape) / 1e9:.1f} GB of memory beside the model; "
            f"{self._device} has {max(0, budget) / 1e9:.1f} GB for it.",
            hint=f"The largest that fits: {fits}."
            if fits
            else "No clip fits. Set LTXQ_QUANTIZATION=fp8, or stop other programs on the device.",
        )
