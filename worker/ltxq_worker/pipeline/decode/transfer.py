"""From frames on the device to arrays the encoder reads, without the device waiting for it.

On a GPU each part is copied into page-locked memory by a stream of its own, while the part before
it is being taken and the GPU goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ltxq_worker.pipeline import Sound
from ltxq_worker.pipeline.decode.yuv import to_yuv420

FRAMES_AT_ONCE = 8  # 4.7 MB of 768×512; in between, in float32, 100 MB

Frames = NDArray[np.uint8]
Fetch = Callable[[], NDArray[Any]]  # waits until it is all there
Send = Callable[[torch.Tensor], Fetch]


def as_rgb(chunks: Iterator[torch.Tensor]) -> Iterator[Frames]:
    """Chunks of frames as they are, uint8 [n, H, W, 3]."""
    for chunk in chunks:
        yield chunk.contiguous().cpu().numpy()


@torch.inference_mode()
def as_yuv420(
    chunks: Iterator[torch.Tensor], crop: tuple[slice, slice], send: Send
) -> Iterator[Frames]:
    """Chunks of frames, uint8 [n, H, W, 3] on the device, cropped to rows and columns, as
    `to_yuv420` makes them. A part is sent before the one before it is waited for.
    """
    fetch: Fetch | None = None
    for chunk in chunks:
        for part in chunk[:, crop[0], crop[1]].split(FRAMES_AT_ONCE):
            fetch_next = send(to_yuv420(part))
            if fetch is not None:
                yield fetch()
            fetch = fetch_next
    if fetch is not None:
        yield fetch()


class AsyncCopies:
    """A `Send` for CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def __call__(self, part: torch.Tensor) -> Fetch:
        """Queue the copy. The memory goes back to torch's own stock when the array is dropped."""
        here = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(part.device))
        with torch.cuda.stream(self._stream):
            here.copy_(part, non_blocking=True)
            arrived = torch.cuda.Event(blocking=True)  # a waiting thread leaves its core to x264
            arrived.record()
        part.record_stream(self._stream)

        def fetch() -> NDArray[Any]:
            arrived.synchronize()
            return here.numpy()

        return fetch


class ComingSound(Sound):
    """A sound whose samples are waited for when they are first looked at: by the encoder's thread,
    while the one that drives the device goes on.
    """

    _fetch: Callable[[], NDArray[np.float32]]

    def __init__(self, fetch: Callable[[], NDArray[np.float32]], sample_rate: int) -> None:
        object.__setattr__(self, "sample_rate", sample_rate)
        object.__setattr__(self, "_fetch", functools.cache(fetch))

    @property
    def samples(self) -> NDArray[np.float32]:
        """[2, S], −1..1."""
        return self._fetch()


def handed_over(part: torch.Tensor) -> Fetch:
    """A `Send` for a CPU, where there is nothing to copy."""
    return lambda: part.numpy()
