"""Which clips can be made: the limits of every model, and those of one.

Sides are `k·step` pixels and frame counts `8k+1`, as the video VAE of LTX-2 needs.
"""

from __future__ import annotations

import math
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field

SIDE_STEP = 32  # pixels: the video VAE's stride in space; twice that for two stages
MIN_SIDE, MAX_SIDE = 64, 2048  # pixels
FRAME_STEP = 8  # frames: the video VAE's stride in time; the first frame stands alone
MAX_SECONDS = 20.0

Count = Annotated[int, Field(ge=1, le=2**20)]


class Clip(Protocol):
    """What limits are about in a request."""

    @property
    def stages(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def duration(self) -> float: ...


class ModelLimits(BaseModel):
    """The clips that one model can make. Its workers record them in the ledger."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    side_step: Count = Field(
        default=SIDE_STEP, description="Sides are multiples of this many pixels for each stage."
    )
    min_side: Count = Field(default=MIN_SIDE, description="Pixels.")
    max_side: Count = Field(default=MAX_SIDE, description="Pixels.")
    frame_step: Count = Field(
        default=FRAME_STEP, description="A clip has a multiple of this many frames, and one more."
    )
    max_seconds: float = Field(default=MAX_SECONDS, gt=0, le=3600)
    stages: tuple[int, ...] = Field(
        default=(1, 2), min_length=1, max_length=8, description="Values that `stages` may have."
    )
    num_inference_steps: Count = Field(description="Denoising steps of the first stage.")
    guidance: bool = Field(default=False, description="Whether the model takes guidance.")

    def problems(self, clip: Clip) -> tuple[tuple[str, str], ...]:
        """(field, reason) for each field of a valid request that this model cannot make."""
        found = []
        if clip.stages not in self.stages:
            found.append(
                ("stages", f"must be {either(self.stages)} for this model, not {clip.stages}")
            )
        for field, side in (("width", clip.width), ("height", clip.height)):
            step = self.side_step * clip.stages
            if side % step or not self.min_side <= side <= self.max_side:
                near = nearest(side, step=step, low=self.min_side, high=self.max_side)
                found.append((field, f"must be {either(near)} for this model, not {side}"))
        if clip.duration > self.max_seconds:
            reason = f"{clip.duration:.1f} s are more than this model's {self.max_seconds:g} s"
            found.append(("num_frames", reason))
        return tuple(found)


class ServedModel(BaseModel):
    """A model that has workers, or had one within a week."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ready_workers: int = Field(description="Workers that are ready for jobs now.")
    limits: ModelLimits | None = Field(
        default=None, description="The clips it can make; null until a worker has reported."
    )


def nearest(value: int, *, step: int, low: int, high: int, offset: int = 0) -> tuple[int, ...]:
    """The one or two allowed values (`offset + k·step` in `low..high`) closest to `value`."""
    below = (value - offset) // step * step + offset
    return tuple(sorted({min(max(v, low), high) for v in (below, below + step)}))


def side_to_make(side: int, stages: int) -> int:
    """The smallest side in pixels that can be made and cropped to `side`."""
    step = SIDE_STEP * stages
    return -(-side // step) * step


def most_frames(rate: float) -> int:
    """The frames of the longest clip at a frame rate."""
    return (math.floor(MAX_SECONDS * rate) - 1) // FRAME_STEP * FRAME_STEP + 1


def nearest_frames(frames: int, rate: float) -> tuple[int, ...]:
    """The one or two allowed numbers of frames closest to `frames`, at a frame rate."""
    return nearest(frames, step=FRAME_STEP, offset=1, low=1, high=most_frames(rate))


def either(values: tuple[int, ...]) -> str:
    """'64', or '64 or 96'."""
    return " or ".join(str(value) for value in values)
