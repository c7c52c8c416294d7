"""From a prompt to frames and sound. Knows no queue, no Redis, no storage.

`ltx.py` is the real pipeline; `instant.py` makes real pictures without a model, for chaos tests
and overhead benchmarks. torch is imported by `ltx.py` alone, so that an instant worker starts
without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

INSTANT = "instant"
"""The model name of the test pipeline, which needs no files."""

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ltxq.job import Stage, VideoRequest


class Report(Protocol):
    """Told of every step. May raise, to stop the job: the pipeline lets it through."""

    def __call__(self, stage: Stage, step: int, steps: int) -> None:
        """`step` of `steps` of `stage` are done; 0 when it starts."""


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A clip's sound."""

    samples: NDArray[np.float32]  # [2, S], −1..1
    sample_rate: int  # Hz


@dataclass(frozen=True, kw_only=True)
class ClipStream:
    """What a pipeline made. Taking from `frames` does the decoding, on the GPU."""

    # Chunks, n ≥ 1, in order. rgb24: [n, H, W, 3], before cropping. yuv420p: [n, 3H/2, W], cropped:
    # a frame's planes one after the other, BT.709 in limited range.
    frames: Iterator[NDArray[np.uint8]]
    sound: Sound | None
    pixels: Literal["rgb24", "yuv420p"] = "rgb24"
    # Seconds by stage on the device's own clock; filled when the frames are exhausted.
    timings: dict[Stage, float] = field(default_factory=dict)


def crop_offset(request: VideoRequest) -> tuple[int, int]:
    """Columns and rows of a frame that are cut off left and above."""
    width, height = request.output_size
    return (request.width - width) // 2, (request.height - height) // 2


class DeviceBroken(Exception):
    """The GPU refuses all further work from this process: only a new one can use it again."""


class Pipeline(Protocol):
    """A model, loaded and warm."""

    model: str  # as VideoRequest.model names it
    versions: dict[str, str]  # what made the clip, for the sidecar: {"ltx-core": "1.0.0", …}

    def generate(self, request: VideoRequest, report: Report) -> ClipStream:
        """Make a clip; one at a time. `request.seed` is set.

        Raises:
            InvalidRequest: the prompt has more than 1,024 tokens.
            OutOfMemory: the card cannot hold it; the message names the largest size that fits.
            DeviceBroken: also from taking frames.
        """
