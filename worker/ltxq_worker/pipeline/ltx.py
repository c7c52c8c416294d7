"""The real pipeline: a prompt to frames and sound, with LTX-2 loaded once and kept.

Puts text, denoising and decoding together, and turns what the device cannot do into ltxq's
errors. Writing an MP4 is left to `encode.py`.
"""

from __future__ import annotations

import gc
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ltx_core.model.audio_vae import decode_audio
from ltx_core.model.upsampler import upsample_video
from ltx_core.model.video_vae import (
    SpatialTilingConfig,
    TemporalTilingConfig,
    TilingConfig,
    decode_video,
)
from ltx_core.types import VideoPixelShape
from numpy.typing import NDArray

from ltxq.errors import ConfigurationError, InvalidRequest, OutOfMemory
from ltxq.job import Stage, VideoRequest
from ltxq_worker.models import resident
from ltxq_worker.models.catalog import CATALOG
from ltxq_worker.models.folder import ModelFolder
from ltxq_worker.models.resident import LoadReport, Quantization, Resident
from ltxq_worker.models.text import TextContext
from ltxq_worker.pipeline import Clip, DeviceBroken, Report, Sound, memory, schedule
from ltxq_worker.pipeline.denoise import (
    LibraryTransformer,
    Transformer,
    in_one_stage,
    in_two_stages,
)
from ltxq_worker.pipeline.optimize import Optimizations
from ltxq_worker.pipeline.transformer import FastTransformer

PROMPTS_KEPT = 16  # contexts of the last prompts, about 15 MB each on the 19B model
KEPT_FREE = 1_500_000_000  # bytes of a card for CUDA itself and the allocator's gaps


class LtxPipeline:
    """LTX-2 on one device. Satisfies `Pipeline`; one generation at a time."""

    def __init__(
        self,
        *,
        model: str,
        folder: ModelFolder,
        parts: Resident,
        device: torch.device,
        optimizations: Optimizations,
    ) -> None:
        """Use `load`."""
        self.model = model
        self.versions = {
            **{name: version(name) for name in ("ltx-core", "torch", "transformers")},
            "checkpoint": folder.version,
        }
        self._config: dict[str, Any] = folder.config
        self._parts = parts
        self.optimizations = optimizations
        self._transformer = _transformer(parts, optimizations)
        self._device = device
        self._contexts: OrderedDict[str, TextContext] = OrderedDict()

    @classmethod
    def load(
        cls,
        folder: ModelFolder | Path,
        *,
        model: str,
        device: str | None = None,
        quantization: Quantization | None = None,
        optimize: str = "auto",
        report: LoadReport | None = None,
    ) -> LtxPipeline:
        """Load a model and keep it.

        Args:
            folder: Where it is.
            model: What requests call it.
            device: 'cuda', 'cuda:1' or 'cpu'; None: a GPU if there is one.
            quantization: 'fp8' keeps the transformer's large layers in 8 bits: 22 GB for 38 in
                bf16. None: fp8 on a GPU; bf16, the library's exact arithmetic, on a CPU.
            optimize: What `LTXQ_OPTIMIZE` may be; 'none': the library's frames, bit for bit.
            report: Told what is being loaded and the share of all that is done, 0..1.

        Raises:
            ModelUnusable: the folder does not hold a model that can be run.
            OutOfMemory: the device cannot hold it.
            ConfigurationError: there is no such device, or no such optimization.
        """
        if not isinstance(folder, ModelFolder):
            folder = ModelFolder.open(folder)
        if not {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"} & os.environ.keys():
            # Clips of many sizes would fragment the card; read when CUDA starts, below.
            os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        where = _device(device)
        optimizations = Optimizations.parse(optimize, where.type)
        quantization = quantization or ("fp8" if where.type == "cuda" else "bf16")
        try:
            parts = resident.load(folder, where, quantization, report or _say_nothing)
        except (RuntimeError, MemoryError) as exc:
            if not _is_out_of_memory(exc):
                raise
        else:
            return cls(
                model=model, folder=folder, parts=parts, device=where, optimizations=optimizations
            )
        _free(where)
        raise OutOfMemory(
            f"{where} has {_total(where) / 1e9:.0f} GB of memory, which do not hold {folder.name}.",
            hint="Set LTXQ_QUANTIZATION=fp8, end what else runs there, or use a larger card.",
        )

    def generate(self, request: VideoRequest, report: Report) -> Clip:
        """Make a clip; `Pipeline.generate` says how. What `report` raises ends it at once."""
        if request.seed is None:
            raise InvalidRequest("The request has no seed.", hint="Draw one before generating.")
        if request.stages == 2 and self._parts.upsampler is None:
            raise _no_upsampler(self.model)
        shape = memory.Shape(request.height, request.width, request.num_frames, request.stages)
        self._refuse_what_cannot_fit(shape)
        try:
            return self._generate(request, shape, request.seed, report)
        except (RuntimeError, MemoryError) as exc:
            _raise_unless_out_of_memory(exc)
        # Here the error and the tensors its traceback held are gone.
        raise self._out_of_memory(shape)

    def warm_up(self, requests: Iterable[VideoRequest]) -> None:
        """Make these clips and drop them: the first of a size is slow."""
        for request in requests:
            for _ in self.generate(request, _report_nothing).frames:
                pass

    @torch.inference_mode()
    def _generate(
        self, request: VideoRequest, shape: memory.Shape, seed: int, report: Report
    ) -> Clip:
        report("encode_text", 0, 1)
        context = self._context(request.prompt)
        report("encode_text", 1, 1)
        steps = schedule.steps(request.stages)
        report("denoise", 0, steps)

        def step_done(step: int) -> None:
            report("denoise", step, steps)

        generator = torch.Generator(self._device).manual_seed(seed)
        size = VideoPixelShape(
            1, request.num_frames, request.height, request.width, request.frame_rate
        )
        if request.stages == 1:
            latents = in_one_stage(self._transformer, context, size, generator, step_done)
        else:
            latents = in_two_stages(
                self._transformer, self._upsample, context, size, generator, step_done
            )
        sound = self._sound(latents.audio) if request.audio else None
        return Clip(frames=self._frames(latents.video, shape, generator, report), sound=sound)

    def _context(self, prompt: str) -> TextContext:
        context = self._contexts.pop(prompt, None) or self._parts.text.encode(
            prompt, padded=not self.optimizations.text
        )
        self._contexts[prompt] = context  # the last used last
        if len(self._contexts) > PROMPTS_KEPT:
            self._contexts.popitem(last=False)
        return context

    def _upsample(self, latent: torch.Tensor) -> torch.Tensor:
        # The library hands over the encoder, for its statistics: the decoder has the same ones.
        return upsample_video(latent, self._parts.video_decoder, self._parts.upsampler)

    def _sound(self, latent: torch.Tensor) -> Sound:
        audio = decode_audio(latent, self._parts.audio_decoder, self._parts.vocoder)
        return Sound(samples=audio.waveform.cpu().numpy(), sample_rate=audio.sampling_rate)

    def _frames(
        self,
        latent: torch.Tensor,
        shape: memory.Shape,
        generator: torch.Generator,
        report: Report,
    ) -> Iterator[NDArray[np.uint8]]:
        done = 0
        report("decode", done, shape.num_frames)
        try:
            for chunk in _decode(latent, self._parts.video_decoder, _tiling(shape), generator):
                yield chunk
                done += len(chunk)
                report("decode", done, shape.num_frames)
            return
        except (RuntimeError, MemoryError) as exc:
            _raise_unless_out_of_memory(exc)
        raise self._out_of_memory(shape)

    def _refuse_what_cannot_fit(self, shape: memory.Shape) -> None:
        if self._device.type == "cuda":
            weights = torch.cuda.memory_allocated(self._device)
            budget = _total(self._device) - weights - KEPT_FREE
        else:
            budget = memory.available_ram()
        if memory.bytes_needed(self._config, shape) > budget:
            raise self._too_large(shape, budget)

    def _out_of_memory(self, shape: memory.Shape) -> OutOfMemory:
        """The error after the device ran out, which is free again. What was tried is too large."""
        _free(self._device)
        tried = memory.bytes_needed(self._config, shape) - 1
        return self._too_large(shape, min(tried, _left(self._device)))

    def _too_large(self, shape: memory.Shape, budget: int) -> OutOfMemory:
        fits = memory.largest_that_fits(self._config, shape, budget)
        return OutOfMemory(
            f"A clip of {shape} needs about "
            f"{memory.bytes_needed(self._config, shape) / 1e9:.1f} GB of memory beside the model; "
            f"{self._device} has {max(0, budget) / 1e9:.1f} GB for it.",
            hint=f"The largest that fits: {fits}."
            if fits
            else "No clip fits: set LTXQ_QUANTIZATION=fp8, or end what else runs there.",
        )


@torch.inference_mode()  # entered anew for each chunk, and left while the caller has it
def _decode(
    latent: torch.Tensor,
    decoder: torch.nn.Module,
    tiling: TilingConfig | None,
    generator: torch.Generator,
) -> Iterator[NDArray[np.uint8]]:
    for chunk in decode_video(latent, decoder, tiling, generator):
        yield chunk.contiguous().cpu().numpy()


def _no_upsampler(model: str) -> InvalidRequest:
    """The error for two stages where the model's folder has none."""
    reason = f"must be 1: the worker's {model} has no spatial upscaler, which two stages need"
    where = "the x2 spatial upscaler that is published with its checkpoint"
    if model in CATALOG:
        _, file = (weights := CATALOG[model].weights).files
        where = f"{file} from {weights.page}/tree/main"
    return InvalidRequest(
        f"stages: {reason}.",
        hint=f"Put {where} into the model's folder and start the worker again.",
        problems=(("stages", reason),),
    )


def _transformer(parts: Resident, optimizations: Optimizations) -> Transformer:
    if not optimizations.lean:
        return LibraryTransformer(parts.transformer)
    return FastTransformer(parts.transformer)


def _tiling(shape: memory.Shape) -> TilingConfig | None:
    """None: the clip is decoded in one piece, which is faster and blends nothing."""
    in_time, in_space = memory.tiles_in_time(shape), memory.tiles_in_space(shape)
    if not in_time and not in_space:
        return None
    return TilingConfig(
        # Also for tiles in space alone, which ltx-core cannot decode; all frames are one run then.
        temporal_config=TemporalTilingConfig(memory.TILE_FRAMES, memory.TILE_FRAMES_OVERLAP),
        spatial_config=SpatialTilingConfig(memory.TILE_SIDE, memory.TILE_SIDE_OVERLAP)
        if in_space
        else None,
    )


def _device(name: str | None) -> torch.device:
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"There is no {device} here: {torch.cuda.device_count()} GPUs are seen.",
            hint="Look at nvidia-smi: the driver must be 580 or newer. Or run on the CPU.",
        )
    return device


# How CUDA's libraries begin what they say; the first is torch's for CUDA itself.
_BROKEN = ("CUDA error", "CUDA driver error", "CUBLAS_STATUS_", "cuDNN error", "CUFFT_")
# Where memory ran out beside torch's allocator; on a CPU torch has no type for it.
_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator")


def _is_out_of_memory(exc: BaseException) -> bool:
    return isinstance(exc, torch.OutOfMemoryError | MemoryError) or any(
        sign in str(exc) for sign in _OUT_OF_MEMORY
    )


def _raise_unless_out_of_memory(exc: BaseException) -> None:
    """Called in an `except`.

    Raises:
        DeviceBroken: after an error of CUDA's own no further call succeeds in this process.
    """
    if _is_out_of_memory(exc):
        return
    if isinstance(exc, torch.AcceleratorError) or any(sign in str(exc) for sign in _BROKEN):
        raise DeviceBroken(str(exc).splitlines()[0]) from exc
    raise exc


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _left(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] - KEPT_FREE
    return memory.available_ram()


def _total(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory.available_ram()


def _say_nothing(what: str, share: float) -> None:
    """A LoadReport for those who do not ask."""


def _report_nothing(stage: Stage, step: int, steps: int) -> None:
    """A Report for clips nobody waits for."""
