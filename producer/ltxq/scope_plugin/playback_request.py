"""Reads Scope's parameters (of the load and of each call) into one playback request.

Scope passes on what a client sent, unchecked. A value that the model cannot make is replaced by the
nearest one that it can, with one warning in the log.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticUndefined

from ltxq.job import MAX_SEED, VideoRequest
from ltxq.limits import MAX_SIDE, MIN_SIDE, most_frames, nearest_frames, side_to_make

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
MAX_PREFETCH = 4
IMAGE_PARAMETERS = ("images", "first_frame_image", "last_frame_image", "vace_ref_images")


@dataclass(frozen=True)
class PlaybackRequest:
    """The clips to play next."""

    video: VideoRequest  # seed None: a new seed for each clip
    prefetch: int  # number of clips to generate in advance


class ParameterReader:
    """Reads one session's parameters. A client's parameters override the load parameters.

    Args:
        loaded: the pipeline's constructor arguments; unknown and undefined ones are ignored.
    """

    def __init__(self, loaded: Mapping[str, Any]) -> None:
        self._loaded = dict(DEFAULTS)
        self._loaded |= {
            name: value
            for name, value in loaded.items()
            if name in DEFAULTS and value is not None and value is not PydanticUndefined
        }
        self._warned: dict[str, str] = {}  # the value last warned of, by parameter
        self._last: tuple[Any, PlaybackRequest | None] = (None, None)
        self.start_session()

    def start_session(self) -> None:
        """Forget the transition that the last session's client sent."""
        self._transition: Any = None
        self._target: str | None = None  # the transition's prompt
        self._replaced: Any = None  # the `prompts` that the target replaces

    def read(self, sent: Mapping[str, Any]) -> PlaybackRequest | None:
        """The request of one call; the same object while no parameter changes. None: no prompt.

        Raises:
            InvalidRequest: the prompt cannot be used.
        """
        self._warn_of_images(sent)
        prompt = self._prompt(sent)
        parameters = prompt, *(self._given(name, sent) for name in DEFAULTS)
        if self._last[0] != parameters:
            self._last = parameters, self._build(prompt, sent) if prompt else None
        return self._last[1]

    def _prompt(self, sent: Mapping[str, Any]) -> str:
        """The text of `prompts`, or a transition's target until a client sends `prompts` again.

        Scope removes the transition after the first output with video, and leaves the old text in
        `prompts`.
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

    def _build(self, prompt: str, sent: Mapping[str, Any]) -> PlaybackRequest:
        stages = round(self._number("stages", sent, 1, 2))
        rate = self._number("frame_rate", sent, 1, 60)
        width, crop_width = self._side("width", stages)
        height, crop_height = self._side("height", stages)
        random = bool(self._given("randomize_seed", sent))
        seed = round(self._number("base_seed", sent, 0, MAX_SEED))
        video = VideoRequest.parse(
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
        return PlaybackRequest(video, round(self._number("prefetch", sent, 0, MAX_PREFETCH)))

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
            self._warn(name, given, f"{used:g}", f"it must be a number from {low:g} to {high:g}")
        return used

    def _frames(self, sent: Mapping[str, Any], rate: float) -> int:
        given = self._number("num_frames", sent, 1, most_frames(rate))
        near = nearest_frames(round(given), rate)
        frames = min(near, key=lambda allowed: abs(allowed - given))
        if frames != given:
            self._warn("num_frames", given, str(frames), "the model makes 1, 9, 17, 25, 33, …")
        return frames

    def _side(self, name: str, stages: int) -> tuple[int, int | None]:
        """A side in pixels as the model makes it, and as it is cropped to (None: not cropped)."""
        given = round(self._number(name, {}, MIN_SIDE, MAX_SIDE))
        even = given - given % 2
        if even != given:
            self._warn(name, given, str(even), "a video's sides must be even")
        made = side_to_make(even, stages)
        return made, even if even != made else None

    def _warn_of_images(self, sent: Mapping[str, Any]) -> None:
        for name in IMAGE_PARAMETERS:
            if sent.get(name) and name not in self._warned:
                self._warned[name] = ""
                log.warning("%s is ignored: the plugin makes clips from text only.", name)

    def _warn(self, name: str, given: Any, used: str, reason: str) -> None:
        shown = f"{given!r}"[:60]
        if self._warned.get(name) != shown:
            self._warned[name] = shown
            log.warning("%s: using %s instead of %s, because %s.", name, used, shown, reason)


def _text(prompts: Any) -> str:
    """The prompt in Scope's `prompts`: a text, or a list of texts with weights. '': no prompt.

    The model takes one text. Of a list, the texts whose weight is above 0 are joined unchanged: a
    new weight changes the clip only if it switches a text on or off.
    """
    if isinstance(prompts, str):
        return prompts.strip()
    if not isinstance(prompts, list | tuple):
        return ""
    texts = [_entry_text(entry) for entry in prompts]
    return "\n".join(text for text in texts if text)


def _entry_text(entry: Any) -> str:
    if isinstance(entry, str):
        return entry.strip()
    if not isinstance(entry, Mapping) or not isinstance(entry.get("text"), str):
        return ""
    weight = entry.get("weight", 1)
    switched_off = isinstance(weight, int | float) and weight <= 0
    return "" if switched_off else str(entry["text"]).strip()


def _same(prompts: Any, before: Any) -> bool:
    """Whether no client has sent `prompts` again. Each list that is sent is a new object, so lists
    are compared by identity.
    """
    return prompts is before or (isinstance(prompts, str) and prompts == before)
