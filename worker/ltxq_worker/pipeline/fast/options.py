"""The optimizations of making a clip, and which of them are on: the setting `LTXQ_OPTIMIZE`.

Each works without the others, but for those that bring `hoist` along. All are exact up to rounding:
none skips a step or reuses one's outcome in another. Knows no torch, so that a setting is checked
before a model is loaded.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ltxq.errors import ConfigurationError, InvalidRequest
from ltxq.job import VideoRequest

log = logging.getLogger("ltxq.worker")

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})x(\d{1,5})(?:x(\d))?(?:@(\d{1,3}(?:\.\d+)?))?")


@dataclass(frozen=True)
class Optimizations:
    """Which are on. None is: the library's own arithmetic, bit for bit."""

    hoist: bool = False  # one timestep for all tokens; positions and text once a clip
    attention: bool = False  # cuDNN's attention first, on CUDA
    compile: bool = False  # torch.compile of the transformer's block, once for each size
    graphs: bool = False  # a denoising step as one CUDA graph, for each of the last few sizes
    decode: bool = False  # frames decoded channels-last, and in one piece where memory allows
    text: bool = False  # a prompt's tokens without the padding to 1,024 through Gemma
    frames: bool = False  # frames copied from the GPU while others are, into pinned memory

    @classmethod
    def parse(cls, setting: str, device: str) -> Optimizations:
        """Read `setting` for a device's type, 'cuda' or 'cpu'.

        auto: all on CUDA; on a CPU those that need no compiler and pay: hoist and text.

        Raises:
            ConfigurationError: it names what there is not.
        """
        names = [field.name for field in fields(cls)]
        words = {word.strip() for word in setting.split(",") if word.strip()}
        if words == {"auto"}:
            words = set(names) if device == "cuda" else {"hoist", "text"}
        elif words == {"all"}:
            words = set(names)
        elif words == {"none"}:
            words = set()
        unknown = sorted(words - set(names))
        if unknown or not setting.strip():
            raise ConfigurationError(
                f"LTXQ_OPTIMIZE: there is no {unknown[0]!r}."
                if unknown
                else "LTXQ_OPTIMIZE: empty.",
                hint=f"auto, all, none, or some of {', '.join(names)} with commas between.",
            )
        chosen = cls(**dict.fromkeys(words, True))
        if device != "cuda":
            chosen = replace(chosen, attention=False, graphs=False, frames=False)
        if chosen.attention or chosen.compile or chosen.graphs:
            chosen = replace(chosen, hoist=True)
        return chosen

    def __str__(self) -> str:
        return ",".join(field.name for field in fields(self) if getattr(self, field.name)) or "none"


def parse_shapes(setting: str) -> list[VideoRequest]:
    """Requests of the sizes in `LTXQ_SHAPES`: width × height × frames, if need be × stages, and
    @ frames per second (24), on which the length of the sound depends: 768x512x33,512x768x121@30.

    Raises:
        ConfigurationError: one cannot be read, or cannot be made.
    """
    return [_request(entry.strip()) for entry in setting.split(",") if entry.strip()]


def _request(entry: str) -> VideoRequest:
    match = _SIZE.fullmatch(entry)
    if match is None:
        raise ConfigurationError(
            f"LTXQ_SHAPES: {entry!r} is no size.", hint="Write width x height x frames: 768x512x33."
        )
    width, height, frames, stages, rate = match.groups()
    size: dict[str, object] = {
        "prompt": "warm-up",
        "width": int(width),
        "height": int(height),
        "num_frames": int(frames),
    }
    if rate:
        size["frame_rate"] = float(rate)
    if stages:
        size["stages"] = int(stages)
    try:
        return VideoRequest.parse(size)
    except InvalidRequest as exc:
        raise ConfigurationError(f"LTXQ_SHAPES: {entry}: {exc}", hint=exc.hint) from exc


def keep_compiled_code() -> Path:
    """Where torch keeps compiled code between processes; a worker that starts again finds it.

    Before torch compiles anything. TORCHINDUCTOR_CACHE_DIR names another folder.
    """
    folder = os.environ.setdefault(
        "TORCHINDUCTOR_CACHE_DIR", str(Path("~/.cache/ltxq/compiled").expanduser())
    )
    return Path(folder)


def step_down(name: str, why: str, hint: str) -> None:
    """Say that an optimization is off from here on: no worker ends for want of one."""
    log.warning("Clips are made without %r from here on: %s. %s", name, why.rstrip("."), hint)


def said_by(exc: BaseException) -> str:
    """What an error says, on one short line."""
    return f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}"
