"""Decodes latents to the encoder's frames, in one piece or in the library's overlapping tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from ltx_core.model.video_vae import (
    SpatialTilingConfig,
    TemporalTilingConfig,
    TilingConfig,
    decode_video,
)
from ltx_core.types import Audio
from numpy.typing import NDArray

from ltxq.job import VideoRequest
from ltxq_worker.pipeline import Sound, crop_offset, memory
from ltxq_worker.pipeline.decode.decoder import channels_first, channels_last
from ltxq_worker.pipeline.decode.transfer import (
    AsyncCopies,
    Frames,
    PendingSound,
    Send,
    as_yuv420,
    send_on_cpu,
    send_when_fetched,
)
from ltxq_worker.pipeline.device import is_refused_by_cudnn
from ltxq_worker.pipeline.fast.options import Optimizations, describe_error, step_down
from ltxq_worker.pipeline.finite import FiniteCheck

FRAMES_CHECKED = 64  # at once: 0.8 billion numbers of 2048×2048


class Decoding:
    """A video decoder and the transfer of its frames to the host, as `LTXQ_OPTIMIZE` sets them."""

    def __init__(
        self, decoder: torch.nn.Module, optimizations: Optimizations, device: torch.device
    ) -> None:
        self.on = optimizations.decode  # until `steps_down` switches it off
        self._library = decoder
        self._decoder = channels_last(decoder) if self.on else decoder
        self._send: Send | None = None
        if optimizations.frames:
            self._send = AsyncCopies(device) if device.type == "cuda" else send_on_cpu
        self.pixels: Literal["rgb24", "yuv420p"] = "yuv420p" if self._send else "rgb24"

    def frames(
        self,
        latent: torch.Tensor,
        tiling: TilingConfig | None,
        request: VideoRequest,
        generator: torch.Generator,
        finite: FiniteCheck,
        all_queued: Callable[[], None],
    ) -> Iterator[Frames]:
        """A clip's frames in chunks, as in `ClipStream.frames`. Calls `all_queued` once all of the
        decoder's work is queued on the device.
        """
        chunks = _decoded(latent, self._decoder, tiling, generator, finite, all_queued)
        if self._send is None:
            return (chunk.contiguous().cpu().numpy() for chunk in chunks)
        left, top = crop_offset(request)
        width, height = request.output_size
        crop = slice(top, top + height), slice(left, left + width)
        return as_yuv420(chunks, crop, self._send)

    def finite_check(self) -> FiniteCheck:
        """The check of a clip, whose results travel as the frames do."""
        return FiniteCheck(self._send or send_when_fetched)

    def steps_down(self, exc: BaseException) -> bool:
        """If cuDNN refused the channels-last layout, use the library's decoder from now on.

        Returns whether to decode the clip that raised `exc` again.
        """
        if not self.on or not is_refused_by_cudnn(exc):
            return False
        self.on, self._decoder = False, channels_first(self._library)
        step_down(
            "decode",
            describe_error(exc),
            "Take decode out of LTXQ_OPTIMIZE, and report this line.",
        )
        return True

    def sound(self, audio: Audio, check: Callable[[], None]) -> Sound:
        """A clip's sound. With `frames` on, its samples may still be on their way to the host.

        Args:
            check: called before the samples are used; may raise.
        """
        arrive = (self._send or send_when_fetched)(audio.waveform)

        def fetch() -> NDArray[np.float32]:
            samples = arrive()
            check()
            return samples

        if self._send is None:
            return Sound(samples=fetch(), sample_rate=audio.sampling_rate)
        return PendingSound(fetch, audio.sampling_rate)


@torch.inference_mode()  # on a generator: applies while it runs, not to the caller between chunks
def _decoded(
    latent: torch.Tensor,
    decoder: torch.nn.Module,
    tiling: TilingConfig | None,
    generator: torch.Generator,
    finite: FiniteCheck,
    all_queued: Callable[[], None],
) -> Iterator[torch.Tensor]:
    """Frames in chunks, uint8 [n, H, W, 3] on the device."""
    yield from decode_video(latent, _Checked(decoder, finite), tiling, generator)
    all_queued()


class _Checked:
    """A decoder for `decode_video`, whose frames are checked before they become uint8.

    Not a forward hook of the module: the library's tiled decoding calls no hooks.
    """

    def __init__(self, decoder: torch.nn.Module, finite: FiniteCheck) -> None:
        self._decoder: Any = decoder
        self._finite = finite

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        return self._note(self._decoder(*args, **options))

    def tiled_decode(self, *args: Any, **options: Any) -> Iterator[torch.Tensor]:
        return map(self._note, self._decoder.tiled_decode(*args, **options))

    def _note(self, frames: torch.Tensor) -> torch.Tensor:
        # In parts, whose numbers an index of 32 bits can count.
        self._finite.note("video decoder", *frames.split(FRAMES_CHECKED, dim=2))
        return frames


def tiles(shape: memory.Shape) -> TilingConfig | None:
    """The tiling that decodes a clip in little memory. None: a small clip needs no tiles; in one
    piece, nothing is blended and no pixel is decoded twice.
    """
    in_time, in_space = memory.tiles_in_time(shape), memory.tiles_in_space(shape)
    if not in_time and not in_space:
        return None
    return TilingConfig(
        # Always set: ltx-core cannot decode tiles in space alone. A short clip is a single run.
        temporal_config=TemporalTilingConfig(memory.TILE_FRAMES, memory.TILE_FRAMES_OVERLAP),
        spatial_config=SpatialTilingConfig(memory.TILE_SIDE, memory.TILE_SIDE_OVERLAP)
        if in_space
        else None,
    )
