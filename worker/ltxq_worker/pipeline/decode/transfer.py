"""Copies frames from the device to arrays for the encoder, without stalling the device.

On a GPU a separate stream copies each part into page-locked memory, while the caller takes the part
before it and the GPU continues.
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

FRAMES_AT_ONCE = 8  # 4.7 MB at 768×512; 100 MB of float32 while they are converted

Frames = NDArray[np.uint8]
Fetch = Callable[[], NDArray[Any]]  # waits until the copy is complete
Send = Callable[[torch.Tensor], Fetch]  # starts a copy to the host


@torch.inference_mode()
def as_yuv420(
    chunks: Iterator[torch.Tensor], crop: tuple[slice, slice], send: Send
) -> Iterator[Frames]:
    """Crop chunks, uint8 [n, H, W, 3] on the device, to rows and columns, convert them with
    `to_yuv420` and copy them to the host. Each copy starts before waiting for the one before it.
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
        """Queue the copy. Dropping the array returns its memory to torch's pinned-memory cache."""
        here = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(part.device))
        with torch.cuda.stream(self._stream):
            here.copy_(part, non_blocking=True)
            arrived = torch.cuda.Event(blocking=True)  # no busy-wait: x264 needs the core
            arrived.record()
        part.record_stream(self._stream)

        def fetch() -> NDArray[Any]:
            arrived.synchronize()
            return here.numpy()

        return fetch


class PendingSound(Sound):
    """A sound whose copy to the host may be incomplete. Reading `samples` waits for it, so the
    encoder's thread waits and not the thread that drives the device. Raises what `fetch` raises.
    """

    _fetch: Callable[[], NDArray[np.float32]]

    def __init__(self, fetch: Callable[[], NDArray[np.float32]], sample_rate: int) -> None:
        object.__setattr__(self, "sample_rate", sample_rate)
        object.__setattr__(self, "_fetch", functools.cache(fetch))

    @property
    def samples(self) -> NDArray[np.float32]:
        """[2, S], −1..1."""
        return self._fetch()


def send_on_cpu(part: torch.Tensor) -> Fetch:
    """A `Send` for a CPU, where nothing is copied."""
    return lambda: part.numpy()


def send_when_fetched(part: torch.Tensor) -> Fetch:
    """A `Send` that copies, and waits for it, when the array is fetched."""
    return lambda: part.cpu().numpy()
