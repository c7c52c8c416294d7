"""The base class of pipelines' settings: common settings, and class variables that Scope reads."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


def ui_field_config(
    *,
    order: int | None = None,
    component: str | None = None,
    modes: list[str] | None = None,
    is_load_param: bool = False,
    label: str | None = None,
    category: str | None = None,
) -> dict[str, Any]:
    given = {"order": order, "component": component, "modes": modes, "label": label}
    shown = {name: value for name, value in given.items() if value is not None}
    return {
        "ui": {"category": category or "configuration", "is_load_param": is_load_param, **shown}
    }


class ModeDefaults(BaseModel):
    model_config = ConfigDict(extra="forbid")
    default: bool = False


class BasePipelineConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    pipeline_id: ClassVar[str] = "base"
    pipeline_name: ClassVar[str] = "Base"
    pipeline_description: ClassVar[str] = ""
    estimated_vram_gb: ClassVar[float | None] = None
    requires_models: ClassVar[bool] = False
    artifacts: ClassVar[list[Any]] = []
    supports_prompts: ClassVar[bool] = True
    produces_video: ClassVar[bool] = True
    produces_audio: ClassVar[bool] = False
    min_dimension: ClassVar[int] = 1
    inputs: ClassVar[list[str]] = ["video"]
    outputs: ClassVar[list[str]] = ["video"]
    modes: ClassVar[dict[str, ModeDefaults]] = {"text": ModeDefaults(default=True)}
    default_temporal_interpolation_steps: ClassVar[int | None] = 0

    height: int = Field(default=512, ge=1)
    width: int = Field(default=512, ge=1)
    manage_cache: bool = True
    base_seed: int = Field(default=42, ge=0)
    denoising_steps: list[int] | None = None
    input_size: int | None = 1
    vace_context_scale: float = 1.0
