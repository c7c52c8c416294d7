"""Turns a prompt into frames and sound. Has no part in queueing or storage.

`ltx.py` is the real pipeline; `instant.py` makes real pictures without a model, for chaos tests
and overhead benchmarks. Only `ltx.py` imports torch, so that an instant worker starts without it.
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
    """Callback for progress. It may raise to stop the job; the pipeline passes the error on."""

    def __call__(self, stage: Stage, step: int, steps: int) -> None:
        """`step` of `steps` of `stage` are done; 0 when it starts."""


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A clip's audio track."""

    samples: NDArray[np.float32]  # [2, S], −1..1
    sample_rate: int  # Hz


@dataclass(frozen=True, kw_only=True)
class ClipStream:
    """A pipeline's output. Iterating `frames` runs the decoder on the GPU."""

    # Chunks in order, n ≥ 1 frames each. rgb24: [n, H, W, 3], not cropped. yuv420p: [n, 3H/2, W],
    # cropped: the planes Y, U, V of each frame, BT.709, limited range; a chroma sample lies in the
    # middle of its four pixels.
    frames: Iterator[NDArray[np.uint8]]
    sound: Sound | None
    pixels: Literal["rgb24", "yuv420p"] = "rgb24"
    # Seconds by stage, by the device's clock; filled when `frames` is exhausted.
    timings: dict[Stage, float] = field(default_factory=dict)


def crop_offset(request: VideoRequest) -> tuple[int, int]:
    """The columns cropped at the left and the rows cropped at the top of a frame."""
    width, height = request.output_size
    return (request.width - width) // 2, (request.height - height) // 2


class DeviceBroken(Exception):
    """The GPU refuses all further work from this process; a new process can use it again."""


class Pipeline(Protocol):
    """A model, loaded and warm."""

    model: str  # as VideoRequest.model names it
    versions: dict[str, str]  # package and checkpoint versions, for the sidecar

    def generate(self, request: VideoRequest, report: Report) -> ClipStream:
        """Make a clip; one at a time. `request.seed` must be set.

        Raises:
            InvalidRequest: the prompt has more than 1,024 tokens.
            OutOfMemory: the clip does not fit on the card; the hint names the largest size that
                does.
            DeviceBroken: iterating over the frames may raise it too.
        """
