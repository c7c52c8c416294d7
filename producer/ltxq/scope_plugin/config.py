"""The pipeline's settings: Scope shows them in its UI and starts with their defaults."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from scope.core.pipelines.base_schema import BasePipelineConfig, ModeDefaults, ui_field_config

from ltxq.limits import MAX_SIDE, MIN_SIDE
from ltxq.scope_plugin.playback_request import DEFAULTS, MAX_PREFETCH


class Ltx2QueueConfig(BasePipelineConfig):  # type: ignore[misc]  # Scope has no types here
    """Settings. Those of the in-process LTX-2 plugin keep their names and defaults."""

    pipeline_id = "ltx2-queue"
    pipeline_name = "LTX-2 (queue)"
    pipeline_description = (
        "Plays LTX-2 clips with sound, generated from text by the workers of an ltxq queue. "
        "Set LTXQ_URL in the environment that starts Scope. This machine needs no GPU."
    )
    produces_audio = True
    default_temporal_interpolation_steps = 0
    modes: ClassVar[dict[str, Any]] = {"text": ModeDefaults(default=True)}
    min_dimension = MIN_SIDE

    height: int = Field(
        default=DEFAULTS["height"],
        ge=MIN_SIDE,
        le=MAX_SIDE,
        description="Height in pixels.",
        json_schema_extra=ui_field_config(order=1, component="resolution", is_load_param=True),
    )
    width: int = Field(
        default=DEFAULTS["width"],
        ge=MIN_SIDE,
        le=MAX_SIDE,
        description="Width in pixels.",
        json_schema_extra=ui_field_config(order=1, component="resolution", is_load_param=True),
    )
    base_seed: int = Field(
        default=DEFAULTS["base_seed"],
        ge=0,
        description="Seed of the clip. With Random seed off, this one clip plays in a loop.",
        json_schema_extra=ui_field_config(order=2, label="Seed"),
    )
    randomize_seed: bool = Field(
        default=DEFAULTS["randomize_seed"],
        description="Generate every clip with a new seed, instead of one clip in a loop.",
        json_schema_extra=ui_field_config(order=3, label="Random seed"),
    )
    num_frames: int = Field(
        default=DEFAULTS["num_frames"],
        ge=1,
        le=1201,
        description="Frames per clip: 1, 9, 17, 25, 33, … (8k+1), at most 20 seconds. "
        "Another number is changed to the nearest of these.",
        json_schema_extra=ui_field_config(order=4, label="Frames"),
    )
    frame_rate: float = Field(
        default=DEFAULTS["frame_rate"],
        ge=1,
        le=60,
        description="Frames per second.",
        json_schema_extra=ui_field_config(order=5, label="Frame rate"),
    )
    stages: int = Field(
        default=DEFAULTS["stages"],
        ge=1,
        le=2,
        description="1: generate at full size. "
        "2: generate at half size, upscale and refine; for large clips.",
        json_schema_extra=ui_field_config(order=6, label="Stages"),
    )
    prefetch: int = Field(
        default=DEFAULTS["prefetch"],
        ge=0,
        le=MAX_PREFETCH,
        description="Number of clips to generate in advance. Used with Random seed.",
        json_schema_extra=ui_field_config(order=7, label="Clips ahead"),
    )
