"""What the person at Scope wants: parameters of the load and of each call, made one request.

Scope hands on whatever a client sent, unchecked, so nothing here trusts a value: what cannot be
made is brought to the nearest that can, and the log says so once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticUndefined

from ltxq.job import (
    FRAME_STEP,
    MAX_SECONDS,
    MAX_SEED,
    MAX_SIDE,
    MIN_SIDE,
    SIDE_STEP,
    VideoRequest,
    nearest,
)

log = logging.getLogger("ltxq.scope")

DEFAULTS: dict[str, Any] = {
    "height": 512,
    "width": 768,
    "base_seed": 42,
    "num_frames": 33,
    "frame_rate": 24.0,
    "randomize_seed": False,
    "stages": 1,
    "prefetch": 1,
}
MOST_PREFETCH = 4
IMAGES = ("images", "first_frame_image", "last_frame_image", "vace_ref_images")


@dataclass(frozen=True)
class PlaybackRequest:
    """What is to be heard and seen next."""

    request: VideoRequest  # seed None: another clip each time
    prefetch: int  # clips made ahead of the one that plays


class PlaybackRequests:
    """The wish of each call, by the pipeline's load parameters and what a client sent since.

    Args:
        loaded: what the constructor got: defaults of the schema and load parameters, unknown and
            undefined ones among them.
    """

    def __init__(self, loaded: Mapping[str, Any]) -> None:
        self._loaded = dict(DEFAULTS)
        self._loaded |= {
            name: value
            for name, value in loaded.items()
            if name in DEFAULTS and value is not None and value is not PydanticUndefined
        }
        self._told: dict[str, Any] = {}  # what the log has said, by field
        self._last: tuple[Any, PlaybackRequest | None] = (None, None)
        self.start_session()

    def start_session(self) -> None:
        """Forget what the last session's client sent."""
        self._transition: Any = None
        self._target: str | None = None  # its prompt; it outlives the transition
        self._replaced: Any = None  # the `prompts` it takes the place of

    def read(self, sent: Mapping[str, Any]) -> PlaybackRequest | None:
        """The wish of one call; None: there is no prompt. The same object while nothing changes.

        Raises:
            InvalidRequest: the prompt cannot be used.
        """
        self._tell_of_images(sent)
        prompt = self._prompt(sent)
        asked = prompt, *(self._given(name, sent) for name in DEFAULTS)
        if self._last[0] != asked:
            wish = self._wish(prompt, sent) if prompt else None
            self._last = asked, wish
        return self._last[1]

    def _prompt(self, sent: Mapping[str, Any]) -> str:
        """A transition's target stands until `prompts` is sent anew: Scope takes the transition
        away after the first returned video, while `prompts` still holds the old text.
        """
        prompts, transition = sent.get("prompts"), sent.get("transition")
        if transition is not None and transition is not self._transition:
            self._transition = transition
            target = transition.get("target_prompts") if isinstance(transition, Mapping) else None
            if text := _text(target):
                self._target, self._replaced = text, prompts
        if self._target is not None and not _same(prompts, self._replaced):
            self._target = None
        return self._target or _text(prompts)

    def _wish(self, prompt: str, sent: Mapping[str, Any]) -> PlaybackRequest:
        stages = round(self._number("stages", sent, 1, 2))
        rate = self._number("frame_rate", sent, 1, 60)
        width, crop_width = self._side("width", stages)
        height, crop_height = self._side("height", stages)
        random = bool(self._given("randomize_seed", sent))
        seed = round(self._number("base_seed", sent, 0, MAX_SEED))
        request = VideoRequest.parse(
            {
                "prompt": prompt,
                "stages": stages,
                "width": width,
                "height": height,
                "crop_width": crop_width,
                "crop_height": crop_height,
                "frame_rate": rate,
                "num_frames": self._frames(sent, rate),
                "seed": None if random else seed,
            }
        )
        return PlaybackRequest(request, round(self._number("prefetch", sent, 0, MOST_PREFETCH)))

    def _given(self, name: str, sent: Mapping[str, Any]) -> Any:
        return self._loaded[name] if sent.get(name) is None else sent[name]

    def _number(self, name: str, sent: Mapping[str, Any], low: float, high: float) -> float:
        given = self._given(name, sent)
        try:
            number = float(given)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            number = DEFAULTS[name]
        used = min(max(number, low), high)
        if used != given:
            self._tell(name, given, f"{used:g}", f"it is a number from {low:g} to {high:g}")
        return used

    def _frames(self, sent: Mapping[str, Any], rate: float) -> int:
        most = (math.floor(MAX_SECONDS * rate) - 1) // FRAME_STEP * FRAME_STEP + 1
        given = self._number("num_frames", sent, 1, most)
        near = nearest(round(given), step=FRAME_STEP, offset=1, low=1, high=most)
        frames = min(near, key=lambda allowed: abs(allowed - given))
        if frames != given:
            self._tell("num_frames", given, str(frames), "the model makes 1, 9, 17, 25, 33, …")
        return frames

    def _side(self, name: str, stages: int) -> tuple[int, int | None]:
        """A side's length as the model makes it, and what it is cropped to, if it is."""
        given = round(self._number(name, {}, MIN_SIDE, MAX_SIDE))
        even = given - given % 2
        if even != given:
            self._tell(name, given, str(even), "a video's sides are even")
        step = SIDE_STEP * stages
        made = -(-even // step) * step
        return made, even if even != made else None

    def _tell_of_images(self, sent: Mapping[str, Any]) -> None:
        for name in IMAGES:
            if sent.get(name):
                self._tell(name, "an image", "none", "clips are made from text alone so far")

    def _tell(self, name: str, given: Any, used: str, why: str) -> None:
        shown = f"{given!r}"[:60]
        if self._told.get(name) != shown:
            self._told[name] = shown
            log.warning("%s is %s, not %s: %s.", name, used, shown, why)


def _text(prompts: Any) -> str:
    """One prompt of Scope's list of texts with weights, or of a plain text; '' where none is.

    The model takes one text. Of several, those whose weight is above 0 follow each other as they
    stand, so that turning weights does not change the clip until one is switched off.
    """
    if isinstance(prompts, str):
        return prompts.strip()
    if not isinstance(prompts, list | tuple):
        return ""
    texts = [_weighted(entry) for entry in prompts]
    return "\n".join(text for text in texts if text)


def _weighted(entry: Any) -> str:
    if isinstance(entry, str):
        return entry.strip()
    if not isinstance(entry, Mapping) or not isinstance(entry.get("text"), str):
        return ""
    weight = entry.get("weight", 1)
    switched_off = isinstance(weight, int | float) and weight <= 0
    return "" if switched_off else str(entry["text"]).strip()


def _same(prompts: Any, before: Any) -> bool:
    """Whether no client has sent `prompts` since: a sent list is a new one, be it an equal one."""
    return prompts is before or (isinstance(prompts, str) and prompts == before)
