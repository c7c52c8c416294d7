"""From latents to what the encoder takes, in one piece or in the library's overlapping tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from ltx_core.model.video_vae import (
    SpatialTilingConfig,
    TemporalTilingConfig,
    TilingConfig,
    decode_video,
)
from ltx_core.types import Audio

from ltxq.job import VideoRequest
from ltxq_worker.pipeline import Sound, crop_offset, memory
from ltxq_worker.pipeline.decode.decoder import channels_first, channels_last
from ltxq_worker.pipeline.decode.transfer import (
    AsyncCopies,
    ComingSound,
    Frames,
    Send,
    as_rgb,
    as_yuv420,
    handed_over,
)
from ltxq_worker.pipeline.device import is_refused_by_cudnn
from ltxq_worker.pipeline.fast.options import Optimizations, said_by, step_down


class Decoding:
    """A video decoder and the way its frames take to the encoder, as `LTXQ_OPTIMIZE` wants them."""

    def __init__(
        self, decoder: torch.nn.Module, optimizations: Optimizations, device: torch.device
    ) -> None:
        self.on = optimizations.decode  # until it steps down
        self._library = decoder
        self._decoder = channels_last(decoder) if self.on else decoder
        self._send: Send | None = None
        if optimizations.frames:
            self._send = AsyncCopies(device) if device.type == "cuda" else handed_over
        self.pixels: Literal["rgb24", "yuv420p"] = "yuv420p" if self._send else "rgb24"

    def frames(
        self,
        latent: torch.Tensor,
        tiling: TilingConfig | None,
        request: VideoRequest,
        generator: torch.Generator,
        all_queued: Callable[[], None],
    ) -> Iterator[Frames]:
        """A clip's frames in chunks, as `ClipStream` has them.

        Args:
            all_queued: called once all of the device's work is queued.
        """
        chunks = _then(_decoded(latent, self._decoder, tiling, generator), all_queued)
        if self._send is None:
            return as_rgb(chunks)
        left, top = crop_offset(request)
        width, height = request.output_size
        crop = slice(top, top + height), slice(left, left + width)
        return as_yuv420(chunks, crop, self._send)

    def steps_down(self, exc: BaseException) -> bool:
        """Whether the clip that raised `exc` may be decoded again: as the library does it, from
        now on, since cuDNN cannot do it with channels last.
        """
        if not self.on or not is_refused_by_cudnn(exc):
            return False
        self.on, self._decoder = False, channels_first(self._library)
        step_down("decode", said_by(exc), "Take decode out of LTXQ_OPTIMIZE, and report this line.")
        return True

    def sound(self, audio: Audio) -> Sound:
        """A clip's sound, which may still be made when this returns."""
        if self._send is None:
            return Sound(samples=audio.waveform.cpu().numpy(), sample_rate=audio.sampling_rate)
        return ComingSound(self._send(audio.waveform), audio.sampling_rate)


@torch.inference_mode()  # entered anew for each chunk, and left while the caller has it
def _decoded(
    latent: torch.Tensor,
    decoder: torch.nn.Module,
    tiling: TilingConfig | None,
    generator: torch.Generator,
) -> Iterator[torch.Tensor]:
    """Frames in chunks, uint8 [n, H, W, 3] on the device."""
    yield from decode_video(latent, decoder, tiling, generator)


def _then(chunks: Iterator[torch.Tensor], done: Callable[[], None]) -> Iterator[torch.Tensor]:
    yield from chunks
    done()


def tiles(shape: memory.Shape) -> TilingConfig | None:
    """How a clip is decoded in little memory. None: in one piece, which blends nothing and goes
    over no pixel twice.
    """
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
