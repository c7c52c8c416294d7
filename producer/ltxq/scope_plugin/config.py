"""What Scope shows of the pipeline, and the defaults it starts with."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from scope.core.pipelines.base_schema import BasePipelineConfig, ModeDefaults, ui_field_config

from ltxq.job import MAX_SIDE, MIN_SIDE
from ltxq.scope_plugin.playback_request import DEFAULTS, MOST_PREFETCH


def _shown(order: int, label: str | None = None, **how: Any) -> dict[str, Any]:
    shown: dict[str, Any] = ui_field_config(order=order, label=label, **how)
    return shown


class Ltx2QueueConfig(BasePipelineConfig):  # type: ignore[misc]  # Scope has no types here
    """Fields of the same names as those of the plugin this one follows, with its defaults."""

    pipeline_id = "ltx2-queue"
    pipeline_name = "LTX-2 (queue)"
    pipeline_description = (
        "Text to video with sound by LTX-2, made by the workers of an ltxq queue. "
        "Needs LTXQ_URL in the environment Scope starts in; no GPU here."
    )
    produces_audio = True
    default_temporal_interpolation_steps = 0
    modes: ClassVar[dict[str, Any]] = {"text": ModeDefaults(default=True)}
    min_dimension = MIN_SIDE

    height: int = Field(
        default=DEFAULTS["height"],
        ge=MIN_SIDE,
        le=MAX_SIDE,
        description="Height in pixels",
        json_schema_extra=_shown(1, component="resolution", is_load_param=True),
    )
    width: int = Field(
        default=DEFAULTS["width"],
        ge=MIN_SIDE,
        le=MAX_SIDE,
        description="Width in pixels",
        json_schema_extra=_shown(1, component="resolution", is_load_param=True),
    )
    base_seed: int = Field(
        default=DEFAULTS["base_seed"],
        ge=0,
        description="The same seed makes the same clip, which is then played again and again",
        json_schema_extra=_shown(2, "Seed"),
    )
    randomize_seed: bool = Field(
        default=DEFAULTS["randomize_seed"],
        description="Another clip each time",
        json_schema_extra=_shown(3, "Random seed"),
    )
    num_frames: int = Field(
        default=DEFAULTS["num_frames"],
        ge=1,
        le=1201,
        description="Frames of a clip: 1, 9, 17, 25, 33, … (else the nearest), at most 20 seconds",
        json_schema_extra=_shown(4, "Frames"),
    )
    frame_rate: float = Field(
        default=DEFAULTS["frame_rate"],
        ge=1,
        le=60,
        description="Frames per second",
        json_schema_extra=_shown(5, "Frame rate"),
    )
    stages: int = Field(
        default=DEFAULTS["stages"],
        ge=1,
        le=2,
        description="2: made at half size, doubled and refined, for large clips",
        json_schema_extra=_shown(6, "Stages"),
    )
    prefetch: int = Field(
        default=DEFAULTS["prefetch"],
        ge=0,
        le=MOST_PREFETCH,
        description="With a random seed: clips that are made ahead of the one that plays",
        json_schema_extra=_shown(7, "Clips ahead"),
    )
