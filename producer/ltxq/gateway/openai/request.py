"""Translates a request with OpenAI's field names (`size`, `seconds`, `fps`, …) to a `VideoRequest`.

An unsupported field is an error that names it, never ignored. Where ltxq must choose (frames for
`seconds`, a margin for `size`), the answer has the choice.
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
from ltxq.job import Priority, VideoRequest
from ltxq.limits import MAX_SECONDS, nearest_frames, side_to_make
from ltxq.printable import one_line
from ltxq.reasons import nearest_name, why_not_json


class CreateVideo(BaseModel):
    """The video to make. Any other field is the error `unsupported_parameter`, for example
    `input_reference`, `lora`, `negative_prompt`, `guidance_scale` other than 1, and
    `num_inference_steps` other than 8.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"prompt": "a red fox in the snow", "size": "1280x720", "seconds": "4"}
        },
    )

    prompt: str = Field(min_length=1, max_length=5000)
    model: str | None = Field(
        default=None, description="An id of GET /v1/models; default: the gateway's default model."
    )
    size: str | None = Field(
        default=None,
        pattern=r"^\d{1,5}x\d{1,5}$",
        description="WIDTHxHEIGHT in pixels; even, 64 to 2048; default 768x512. A side that is not "
        "a multiple of 32 is made larger and then cropped.",
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
    fps: float | None = Field(default=None, description="Frames per second, 1 to 60; default 24.")
    seed: int | None = Field(default=None, description="0 to 2^53-1; default: random.")
    generate_audio: bool | None = Field(default=None, description="Make sound too; default true.")
    stages: int | None = Field(
        default=None,
        description="1 or 2. 2: make it at half size, then double and refine it; for large videos.",
    )
    priority: Priority | None = None
    timeout: int | None = Field(
        default=None, description="Seconds that it may take on the GPU; default 600."
    )
    expires_in: int | None = Field(
        default=None, description="Lifetime of the result's URLs in seconds, 60 to 604800."
    )
    metadata: dict[str, str] | None = Field(
        default=None,
        description="Up to 16 pairs of your own. In a form: as JSON, or as metadata[key].",
    )
    webhook_url: str | None = Field(
        default=None, description="Receives a signed POST when the job is final."
    )
    not_before: str | None = Field(
        default=None, description="Do not start before this time, e.g. 2026-12-24T18:00:00Z."
    )
    start_within: float | None = Field(
        default=None,
        description="Cancel the job if no worker starts it within these seconds.",
    )


_RENAMED = {"fps": "frame_rate", "generate_audio": "audio"}
# Names in this API → names in VideoRequest.
NAMES = {
    name: _RENAMED.get(name, name)
    for name in CreateVideo.model_fields
    if name not in ("size", "seconds")
}

# Unsupported fields, and the values that are allowed because they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "input_reference": (),
    "lora": ("", "[]", []),
    "guidance_scale": (1,),
    "negative_prompt": ("",),
    "num_inference_steps": (8,),
}


def request_of(fields: Mapping[str, Any]) -> VideoRequest:
    """The fields as a `VideoRequest`.

    Raises:
        UnsupportedParameter: a field is not supported.
        InvalidRequest: lists each wrong field by the name that the caller sent.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    _refuse_unsupported(given)
    chosen = {ours: given[theirs] for theirs, ours in NAMES.items() if theirs in given}
    if isinstance(metadata := chosen.get("metadata"), str):
        try:
            chosen["metadata"] = json.loads(metadata)
        except (ValueError, RecursionError) as exc:
            raise InvalidRequest.of(("metadata", f"is not JSON: {why_not_json(exc)}")) from None
    _choose_frames(given, chosen)
    _choose_size(given, chosen)
    try:
        return VideoRequest.parse(chosen)
    except InvalidRequest as exc:
        raise in_callers_words(exc, given) from None


def in_callers_words(error: InvalidRequest, fields: Mapping[str, Any]) -> InvalidRequest:
    """The error about the fields that the caller sent, which are not those of `VideoRequest`."""
    sent_as = {ours: theirs for theirs, ours in NAMES.items()}
    sides = ("width", "height")
    sent_as |= {f"crop_{side}": side for side in sides}
    if fields.get("size") is not None:
        sent_as |= dict.fromkeys((*sides, *(f"crop_{side}" for side in sides)), "size")
    if fields.get("seconds") is not None:
        sent_as["num_frames"] = "seconds"
    problems = ((sent_as.get(field, field), why) for field, why in error.problems)
    return InvalidRequest.of(*problems, hint=error.hint)


def _refuse_unsupported(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in CreateVideo.model_fields:
            continue
        if name in NEUTRAL:
            neutral = NEUTRAL[name]
            if value in neutral or _number(value) in neutral:
                continue
            only = f" other than {neutral[0]}" if neutral and neutral[0] else ""
            reason = f"{name}{only} is not supported yet."
        else:
            near = nearest_name(name, CreateVideo.model_fields)
            name = one_line(name[:60]) or "''"
            reason = f"{name} is not a parameter of this API{near}."
        raise UnsupportedParameter(name, reason)


def _choose_frames(given: Mapping[str, Any], chosen: dict[str, Any]) -> None:
    """`seconds` as the nearest 8k+1 frames at the frame rate."""
    if "seconds" not in given:
        return
    if "num_frames" in given:
        raise InvalidRequest.of(("seconds", "give seconds or num_frames, not both"))
    seconds = _number(given["seconds"])
    if seconds is None or not 0 < seconds <= MAX_SECONDS:
        raise InvalidRequest.of(("seconds", f"must be more than 0 and at most {MAX_SECONDS:g}"))
    rate = _number(given.get("fps", 24))
    if rate is None or not 1 <= rate <= 60:
        return  # VideoRequest.parse reports it
    frames = seconds * rate
    near = nearest_frames(round(frames), rate)
    chosen["num_frames"] = min(near, key=lambda count: (abs(count - frames), count))


def _choose_size(given: Mapping[str, Any], chosen: dict[str, Any]) -> None:
    """Round each side up to a multiple of 32 (64 for two stages), and crop to the given size."""
    if "size" in given:
        if "width" in given or "height" in given:
            raise InvalidRequest.of(("size", "give size or width and height, not both"))
        match = re.fullmatch(r"\s*(\d{1,5})\s*[xX×]\s*(\d{1,5})\s*", str(given["size"]))
        if match is None:
            raise InvalidRequest.of(("size", "must be WIDTHxHEIGHT in pixels, as 1280x720"))
        chosen["width"], chosen["height"] = int(match[1]), int(match[2])
    stages = 2 if _number(given.get("stages")) == 2 else 1
    for side in ("width", "height"):
        pixels = _number(chosen.get(side))
        # An MP4 has no odd sides: VideoRequest.parse reports one.
        if pixels is None or not 0 < pixels < 2**16 or pixels % 2:
            continue
        made = side_to_make(int(pixels), stages)
        if made != pixels:
            chosen[f"crop_{side}"], chosen[side] = int(pixels), made


def _number(value: Any) -> float | None:
    """A finite number, given as number or text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
