"""The real pipeline: a prompt to frames and sound, with LTX-2 loaded once and kept.

Puts text, denoising and decoding together, and turns what the device cannot do into ltxq's
errors. Writing an MP4 is left to `encode.py`.
"""

from __future__ import annotations

import gc
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from ltx_core.model.audio_vae import decode_audio
from ltx_core.model.video_vae import decode_video, get_video_chunks_number
from ltx_core.types import VideoPixelShape
from numpy.typing import NDArray

from ltxq.job import VideoRequest
from ltxq_worker.models import resident
from ltxq_worker.models.folder import ModelFolder
from ltxq_worker.models.resident import LoadReport, Quantization, Resident
from ltxq_worker.models.text import TextContext
from ltxq_worker.pipeline import Clip, Report, Sound
from ltxq_worker.pipeline.denoise import STEPS, denoise

PROMPTS_KEPT = 16  # contexts of the last prompts, about 15 MB each on the 19B model


class LtxPipeline:
    """LTX-2 on one device. Satisfies `Pipeline`."""

    def __init__(
        self, *, model: str, versions: dict[str, str], parts: Resident, device: torch.device
    ) -> None:
        self.model = model
        self.versions = versions
        self._parts = parts
        self._device = device
        self._contexts: OrderedDict[str, TextContext] = OrderedDict()

    @classmethod
    def load(
        cls,
        folder: ModelFolder | Path,
        *,
        model: str,
        device: str | None = None,
        quantization: Quantization = "none",
        report: LoadReport | None = None,
    ) -> LtxPipeline:
        if not isinstance(folder, ModelFolder):
            folder = ModelFolder.open(folder)
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        parts = resident.load(folder, where, quantization, report or (lambda what, share: None))
        versions = {name: version(name) for name in ("ltx-core", "torch", "transformers")}
        return cls(
            model=model,
            versions={**versions, "checkpoint": folder.version},
            parts=parts,
            device=where,
        )

    def generate(self, request: VideoRequest, report: Report) -> Clip:
        assert request.seed is not None  # drawn at submission
        report("encode_text", 0, 1)
        context = self._context(request.prompt)
        report("encode_text", 1, 1)
        report("denoise", 0, STEPS)
        with torch.inference_mode():
            generator = torch.Generator(self._device).manual_seed(request.seed)
            latents = denoise(
                self._parts.transformer,
                context,
                VideoPixelShape(
                    1, request.num_frames, request.height, request.width, request.frame_rate
                ),
                generator,
                lambda step: report("denoise", step, STEPS),
            )
            sound = None
            if request.audio:
                audio = decode_audio(latents.audio, self._parts.audio_decoder, self._parts.vocoder)
                sound = Sound(samples=audio.waveform.cpu().numpy(), sample_rate=audio.sampling_rate)
        return Clip(frames=self._frames(latents.video, generator, report), sound=sound)

    def warm_up(self, shapes: Iterable[tuple[int, int, int]]) -> None:
        for height, width, num_frames in shapes:
            request = VideoRequest(
                prompt="warm-up", height=height, width=width, num_frames=num_frames
            )
            for _ in self.generate(request, lambda stage, step, steps: None).frames:
                pass

    def _context(self, prompt: str) -> TextContext:
        if prompt in self._contexts:
            self._contexts.move_to_end(prompt)
        else:
            self._contexts[prompt] = self._parts.text.encode(prompt)
            if len(self._contexts) > PROMPTS_KEPT:
                self._contexts.popitem(last=False)
        return self._contexts[prompt]

    @torch.inference_mode()
    def _frames(
        self, latent: torch.Tensor, generator: torch.Generator, report: Report
    ) -> Iterator[NDArray[np.uint8]]:
        report("decode", 0, 1)
        for chunk in decode_video(latent, self._parts.video_decoder, None, generator):
            yield chunk.cpu().numpy()
        report("decode", 1, 1)
