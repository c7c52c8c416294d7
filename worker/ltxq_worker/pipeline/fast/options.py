"""The optional speed-ups of the pipeline, chosen by the setting `LTXQ_OPTIMIZE`.

Each works alone, except that attention, compile and graphs switch `hoist` on. All are exact up to
rounding: none skips a step or reuses the result of one step in another. Imports no torch, so that
the setting is checked before a model is loaded.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ltxq.errors import ConfigurationError, InvalidRequest
from ltxq.job import VideoRequest

log = logging.getLogger("ltxq.worker")

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})x(\d{1,5})(?:x(\d))?(?:@(\d{1,3}(?:\.\d+)?))?")


@dataclass(frozen=True)
class Optimizations:
    """The optimizations that are on. With none, frames equal the library's bit for bit."""

    hoist: bool = False  # one timestep for all tokens; positions and text once a clip
    attention: bool = False  # cuDNN's attention first, on CUDA
    compile: bool = False  # torch.compile of the transformer's block, once for each size
    graphs: bool = False  # a denoising step as one CUDA graph, for each of the last few sizes
    decode: bool = False  # frames decoded channels-last, and in one piece where memory allows
    text: bool = False  # a prompt's tokens run through Gemma without the padding to 1,024
    frames: bool = False  # asynchronous copies of YUV frames from the GPU, into pinned memory

    @classmethod
    def parse(cls, setting: str, device: str) -> Optimizations:
        """Read `setting` for a device's type, 'cuda' or 'cpu'.

        auto: all on CUDA; on a CPU hoist and text, which gain time there and need no compiler.

        Raises:
            ConfigurationError: the setting is empty or names an unknown optimization.
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
                f"LTXQ_OPTIMIZE: there is no optimization {unknown[0]!r}."
                if unknown
                else "LTXQ_OPTIMIZE: empty.",
                hint=f"Use auto, all, none, or a comma-separated list of {', '.join(names)}.",
            )
        chosen = cls(**dict.fromkeys(words, True))
        if device != "cuda":
            chosen = replace(chosen, attention=False, graphs=False, frames=False)
        if chosen.attention or chosen.compile or chosen.graphs:
            chosen = replace(chosen, hoist=True)
        return chosen

    def __str__(self) -> str:
        return ",".join(field.name for field in fields(self) if getattr(self, field.name)) or "none"


def parse_shapes(setting: str, source: str = "LTXQ_SHAPES") -> list[VideoRequest]:
    """Requests of the sizes in `LTXQ_SHAPES`, such as 768x512x33,512x768x121@30.

    An entry is width x height x frames, optionally x stages (1) and @ frames per second (24), which
    determines the length of the sound.

    Args:
        source: the setting or option, for messages.

    Raises:
        ConfigurationError: an entry cannot be parsed, or is not a valid size.
    """
    return [_request(entry.strip(), source) for entry in setting.split(",") if entry.strip()]


def _request(entry: str, source: str) -> VideoRequest:
    match = _SIZE.fullmatch(entry)
    if match is None:
        raise ConfigurationError(
            f"{source}: {entry!r} is not a size.",
            hint="Write width x height x frames: 768x512x33.",
        )
    width, height, frames, stages, rate = match.groups()
    size = {
        "prompt": "warm-up",
        "seed": 0,
        "width": int(width),
        "height": int(height),
        "num_frames": int(frames),
        "stages": int(stages or 1),
        "frame_rate": float(rate or 24),
    }
    try:
        return VideoRequest.parse(size)
    except InvalidRequest as exc:
        raise ConfigurationError(f"{source}: {entry}: {exc}", hint=exc.hint) from exc


def compiled_code_folder() -> Path | None:
    """The folder in this user's home for compiled code; None if there is no home, or the user may
    not write there.
    """
    try:
        folder = Path("~/.cache/ltxq/compiled").expanduser()
        there = next(part for part in (folder, *folder.parents) if part.exists())
    except (RuntimeError, OSError):
        return None
    return folder if os.access(there, os.W_OK | os.X_OK) else None


def keep_compiled_code() -> None:
    """Set the folder where torch caches compiled code between processes, unless
    TORCHINDUCTOR_CACHE_DIR names one. To be called before torch is imported, which sets its own.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    folder = compiled_code_folder()
    if folder is None:  # torch's own choice needs the user's name
        folder = Path(tempfile.mkdtemp(prefix="ltxq-compiled-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def step_down(name: str, why: str, hint: str) -> None:
    """Log that an optimization failed and is off from now on. The worker goes on without it."""
    log.warning("The optimization %r is now off: %s. %s", name, why.rstrip("."), hint)


def describe_error(exc: BaseException) -> str:
    """An error's type and message on one line, the message cut to 300 characters."""
    return f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}"
