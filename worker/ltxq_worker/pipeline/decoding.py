"""From latents to frames, in one piece or in the library's overlapping tiles."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from ltx_core.model.video_vae import (
    SpatialTilingConfig,
    TemporalTilingConfig,
    TilingConfig,
    decode_video,
)
from numpy.typing import NDArray

from ltxq_worker.pipeline import memory


@torch.inference_mode()  # entered anew for each chunk, and left while the caller has it
def decoded(
    latent: torch.Tensor,
    decoder: torch.nn.Module,
    shape: memory.Shape,
    generator: torch.Generator,
) -> Iterator[NDArray[np.uint8]]:
    """Frames in chunks [n, H, W, 3], the library's own."""
    for chunk in decode_video(latent, decoder, _tiling(shape), generator):
        yield chunk.contiguous().cpu().numpy()


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
