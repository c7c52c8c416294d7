"""A request in the field's own words (`size`, `seconds`, `fps`, …) as a `VideoRequest`.

What ltxq cannot do is refused by name, never ignored; what it must choose (frames for `seconds`,
a margin for `size`) the answer tells.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ltxq.errors import InvalidRequest
from ltxq.gateway.openai.errors import UnsupportedParameter
from ltxq.job import FRAME_STEP, MAX_SECONDS, SIDE_STEP, Priority, VideoRequest, nearest
from ltxq.printable import one_line

# The field's names for fields of VideoRequest.
NAMES = {
    "prompt": "prompt",
    "model": "model",
    "width": "width",
    "height": "height",
    "num_frames": "num_frames",
    "fps": "frame_rate",
    "seed": "seed",
    "generate_audio": "audio",
    "stages": "stages",
    "priority": "priority",
    "timeout": "timeout",
    "expires_in": "expires_in",
    "metadata": "metadata",
    "webhook_url": "webhook_url",
    "not_before": "not_before",
    "start_within": "start_within",
}
_THEIRS = {ours: theirs for theirs, ours in NAMES.items()}


class CreateVideo(BaseModel):
    """What a clip is to be. What is not here is refused by name with `unsupported_parameter`:
    `input_reference`, `lora`, `negative_prompt`, `guidance_scale` other than 1 and
    `num_inference_steps` other than 8 among them.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"prompt": "a red fox in the snow", "size": "1280x720", "seconds": "4"}
        },
    )

    prompt: str = Field(min_length=1, max_length=5000)
    model: str | None = Field(default=None, description="One of GET /v1/models.")
    size: str | None = Field(
        default=None,
        pattern=r"^\d{1,5}x\d{1,5}$",
        description="'WIDTHxHEIGHT' in pixels, even, 64 to 2048; 768x512 without it. A side that "
        "is no multiple of 32 is made larger, and cropped.",
    )
    width: int | None = Field(default=None, description="Instead of size.")
    height: int | None = Field(default=None, description="Instead of size.")
    seconds: str | None = Field(
        default=None,
        description="More than 0, at most 20, as text. Rounded to 8k+1 frames at fps; the "
        "answer's seconds are what is made.",
    )
    num_frames: int | None = Field(
        default=None, description="8k+1, instead of seconds; without both: 33."
    )
    fps: float | None = Field(default=None, description="1 to 60; 24 without it.")
    seed: int | None = Field(default=None, description="0 to 2^53-1; 42 without it.")
    generate_audio: bool | None = Field(default=None, description="Sound too; without it: yes.")
    stages: int | None = Field(
        default=None, description="2: made at half size, doubled and refined, for large clips."
    )
    priority: Priority | None = None
    timeout: int | None = Field(default=None, description="Seconds on the GPU; 600 without it.")
    expires_in: int | None = Field(
        default=None, description="Seconds a URL of the result lives, 60 to 604800."
    )
    metadata: dict[str, str] | None = Field(
        default=None,
        description="Up to 16 pairs of your own; in a form as JSON, or as metadata[key].",
    )
    webhook_url: str | None = Field(
        default=None, description="Told of the outcome by a signed POST."
    )
    not_before: str | None = Field(
        default=None, description="The video waits until then, as 2026-12-24T18:00:00Z."
    )
    start_within: float | None = Field(
        default=None,
        description="Seconds within which a worker must have taken it; otherwise it is cancelled.",
    )


# Known by name, not supported; but this one value of it says what happens anyway.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "input_reference": (),
    "lora": ("", "[]", []),
    "guidance_scale": (1,),
    "negative_prompt": ("",),
    "num_inference_steps": (8,),
}


def request_of(fields: Mapping[str, Any]) -> VideoRequest:
    """The request.

    Raises:
        UnsupportedParameter: a field is not supported.
        InvalidRequest: with each field that is wrong, by the name it was sent under.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    _refuse_unsupported(given)
    chosen = {ours: given[theirs] for theirs, ours in NAMES.items() if theirs in given}
    if isinstance(chosen.get("metadata"), str):
        chosen["metadata"] = _json("metadata", chosen["metadata"])
    said: dict[str, str] = {}  # by which field of the caller's one of ours was chosen
    _choose_frames(given, chosen, said)
    _choose_size(given, chosen, said)
    try:
        return VideoRequest.parse(chosen)
    except InvalidRequest as exc:
        problems = tuple((said.get(f) or _THEIRS.get(f, f), why) for f, why in exc.problems)
        raise invalid(*problems) from None


def invalid(*problems: tuple[str, str]) -> InvalidRequest:
    """What is wrong with which fields."""
    return InvalidRequest("; ".join(f"{f}: {why}" for f, why in problems), problems=problems)


def _refuse_unsupported(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in NAMES or name in ("size", "seconds"):
            continue
        if name in NEUTRAL:
            neutral = NEUTRAL[name]
            if value in neutral or _number(value) in neutral:
                continue
            only = f" other than {neutral[0]}" if neutral and neutral[0] else ""
            reason = f"{name}{only} is not supported yet."
        else:
            shown = one_line(str(name)[:60])
            name, reason = shown, f"{shown} is no parameter here."
        raise UnsupportedParameter(
            reason, hint="Leave it out.", problems=((name, "not supported"),)
        )


def _choose_frames(given: Mapping[str, Any], chosen: dict[str, Any], said: dict[str, str]) -> None:
    """Of `seconds`: the nearest 8k+1 frames at the frame rate."""
    if "seconds" not in given:
        return
    if "num_frames" in given:
        raise invalid(("seconds", "give seconds or num_frames, not both"))
    seconds = _number(given["seconds"])
    if seconds is None or not 0 < seconds <= MAX_SECONDS:
        raise invalid(("seconds", f"must be more than 0 and at most {MAX_SECONDS:g}"))
    rate = _number(given.get("fps", 24))
    if rate is None or not 1 <= rate <= 60:
        return  # refused with the reason where the whole request is checked
    most = (math.floor(MAX_SECONDS * rate) - 1) // FRAME_STEP * FRAME_STEP + 1
    frames = seconds * rate
    near = nearest(round(frames), step=FRAME_STEP, offset=1, low=1, high=most)
    chosen["num_frames"] = min(near, key=lambda count: (abs(count - frames), count))
    said["num_frames"] = "seconds"


def _choose_size(given: Mapping[str, Any], chosen: dict[str, Any], said: dict[str, str]) -> None:
    """A side that is no multiple of 32 (64 for two stages) is made larger and cropped."""
    if "size" in given:
        if "width" in given or "height" in given:
            raise invalid(("size", "give size or width and height, not both"))
        match = re.fullmatch(r"\s*(\d{1,5})\s*[xX×]\s*(\d{1,5})\s*", str(given["size"]))
        if match is None:
            raise invalid(("size", "must be WIDTHxHEIGHT in pixels, as 1280x720"))
        chosen["width"], chosen["height"] = int(match[1]), int(match[2])
        said.update(dict.fromkeys(("width", "height", "crop_width", "crop_height"), "size"))
    step = SIDE_STEP * (2 if _number(given.get("stages")) == 2 else 1)
    for side in ("width", "height"):
        said.setdefault(f"crop_{side}", side)
        pixels = _number(chosen.get(side))
        # An odd side cannot be an MP4's: it is refused as what it is.
        if pixels is not None and 0 < pixels < 2**16 and pixels % 2 == 0 and pixels % step:
            chosen[f"crop_{side}"] = int(pixels)
            chosen[side] = math.ceil(pixels / step) * step


def _number(value: Any) -> float | None:
    """A finite number, or the text of one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise invalid((name, "must be JSON")) from None
