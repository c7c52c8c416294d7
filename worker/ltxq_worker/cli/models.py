"""`ltxq generate` and `ltxq model`: commands that need a model and no queue.

`ltxq.cli.machine` declares the commands and calls these functions by name. Only commands that run
a model import torch.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from shlex import quote
from typing import Any

from ltxq.cli import screen
from ltxq.cli.machine import TINY_SIZE
from ltxq.cli.outputs import ROOM, unfinished, writable_file, writable_folder
from ltxq.errors import (
    ConfigurationError,
    InvalidRequest,
    ModelUnusable,
    StorageUnavailable,
    UnknownModel,
)
from ltxq.job import VideoRequest
from ltxq.settings import Settings
from ltxq_worker.models.files.folder import no_upscaler
from ltxq_worker.pipeline.registry import (
    check_name,
    family_of,
    limits_of,
    model_folder,
    suits_a_cpu,
)


def generate(
    prompt: str,
    *,
    fields: dict[str, Any],
    output: Path,
    model: str,
    device: str | None,
    frames_out: Path | None,
    as_json: bool,
) -> None:
    """Make one clip with the pipeline in this process."""
    from ltxq_worker.encode.clip import DiskFull, encode
    from ltxq_worker.process.attempt import progress_at

    request = VideoRequest.parse({"prompt": prompt, **fields}).settled(Path(model).name)
    mp4 = writable_file(output, "-o")
    recording = frames_out and _Recording.checked(frames_out, request)
    if recording and recording.path.resolve() == mp4.resolve():
        raise ConfigurationError(
            f"{output} is named twice: for the clip and for its frames.",
            hint="Name another file with --frames-out.",
        )
    began = time.monotonic()
    with screen.Bar() as bar, unfinished(mp4.parent) as folder:

        def report(stage: Any, step: int, steps: int) -> None:
            screen.show_progress(bar, progress_at(stage, step, steps))

        pipeline = _loaded(request, model, device, bar, rgb=recording is not None)
        clip = pipeline.generate(request, report)
        if recording:
            clip = replace(clip, frames=recording.of(clip.frames))
        try:
            encoded = encode(clip, request, folder, report)
        except DiskFull:
            raise _no_room(mp4, "-o") from None
        encoded.mp4.replace(mp4)
    seconds = time.monotonic() - began
    if as_json:
        about = {"file": str(mp4), "sha256": encoded.sha256, "size": encoded.size}
        screen.emit(about | {"seed": request.seed, "seconds": round(seconds, 3)})
    else:
        screen.say(str(output))
        screen.note(f"Seed {request.seed}, {seconds:.1f} s, loading included.")


@dataclass(frozen=True)
class _Recording:
    """A NumPy file of all frames: uint8 [F, H, W, 3], uncropped."""

    path: Path
    shape: tuple[int, int, int, int]

    @classmethod
    def checked(cls, file: Path, request: VideoRequest) -> _Recording:
        """Raises ConfigurationError if the file could not be written."""
        shape = (request.num_frames, request.height, request.width, 3)
        size = prod(shape) + ROOM
        return cls(writable_file(file, "--frames-out", size=size), shape)

    def of(self, frames: Iterator[Any]) -> Iterator[Any]:
        """`frames` unchanged; all of them are in the file at the end."""
        import numpy as np

        about = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        with unfinished(self.path.parent) as folder:
            partial = folder / "frames.npy"
            with _full_disk_named(self.path), partial.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, about)
                for chunk in frames:
                    file.write(chunk.tobytes())
                    yield chunk
            partial.replace(self.path)


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _no_room(path, "--frames-out") from None


def _no_room(path: Path, option: str) -> StorageUnavailable:
    return StorageUnavailable(
        f"The disk that holds {path} is full.",
        hint=f"Free space there, or name a file on another disk with {option}.",
    )


def _loaded(
    request: VideoRequest, model: str, device: str | None, bar: screen.Bar, *, rgb: bool
) -> Any:
    """The pipeline of a model, given by its folder or by its name in LTXQ_MODEL_DIR."""
    settings = Settings.read()
    bar.at("loading the model", 0)
    is_path = "/" in model or (model != "" and Path(model).is_dir())
    folder = Path(model) if is_path else model_folder(settings, model)
    try:
        files = family_of(model).open(folder)  # before torch is imported
        if request.stages not in limits_of(files).stages:
            raise no_upscaler(folder.name)
    except (ModelUnusable, InvalidRequest) as exc:
        if is_path:
            here = f"`LTXQ_MODEL_DIR={quote(str(folder.absolute().parent))} ltxq model download"
            exc.hint = re.sub("`ltxq model download(?! NAME)", lambda _: here, exc.hint)
        raise
    return family_of(model).load(
        folder,
        settings,
        device,
        lambda part, fraction: bar.at("loading the model", fraction, part),
        warm_up=False,
        rgb=rgb,
    )


def model_tiny(folder: Path, *, kind: str, seed: int, as_json: bool) -> None:
    """Write a tiny model."""
    writable_folder(folder, "DIR", size=TINY_SIZE, make=True)
    from ltxq_worker.models.tiny.model import Base, make_tiny

    kinds: tuple[str, ...] = Base.__args__  # type: ignore[attr-defined]
    if kind not in kinds:
        raise UnknownModel(f"No checkpoint is called {kind!r}.", hint=f"One of {', '.join(kinds)}.")
    try:
        make_tiny(folder, kind, seed)  # type: ignore[arg-type]
    except FileExistsError as exc:
        raise ConfigurationError(str(exc), hint="Name a new folder, or empty that one.") from None
    made = {"folder": str(folder.absolute()), "kind": kind, "seed": seed}
    screen.result(made, str(folder), as_json=as_json)


def model_download(name: str, *, verify: bool, update: bool, as_json: bool) -> None:
    """Download or repair a model in LTXQ_MODEL_DIR."""
    from ltxq_worker.models.catalog import SHARED_TEXT_ENCODER, parts_of
    from ltxq_worker.models.files.hub_settings import check_hub_settings

    check_hub_settings()
    from ltxq_worker.models.files.download import download

    size = sum(repo.size for repo in parts_of(name).values())
    model_dir = Settings.read().models_folder
    screen.note(f"{name}: about {size / 1e9:.0f} GB, into {model_dir}")
    with screen.Bar() as bar:

        def get(*, verify: bool) -> Path:
            return download(
                name, model_dir, report=report, note=screen.note, verify=verify, update=update
            )

        def report(done: int, total: int) -> None:
            share = done / total if total else 1.0
            bar.at("downloading", share, f"{done / 1e9:.1f} of {total / 1e9:.1f} GB")

        bar.at("asking the hub", 0)
        folder = get(verify=verify)
        if not verify and _problem_of(folder):
            folder = get(verify=True)  # a disk may change content behind a file's time
    if problem := _problem_of(folder):
        hint = problem.hint
        if "ltxq model download" in hint and "Move" not in hint:
            hint = "Every file is as the hub has it: upgrade ltxq, or report this."
        raise ModelUnusable(problem.message, hint=hint) from problem
    screen.result({"model": name, "folder": str(folder)}, str(folder), as_json=as_json)
    if not as_json and name != SHARED_TEXT_ENCODER:
        screen.note(f"Start a worker with it: ltxq worker --model {name}")


def _problem_of(folder: Path) -> ModelUnusable | None:
    """Why a downloaded model or text encoder cannot be used, such as a stray file beside it."""
    from ltxq_worker.models.catalog import SHARED_TEXT_ENCODER
    from ltxq_worker.models.files.encoder import check_text_encoder

    try:
        if folder.name == SHARED_TEXT_ENCODER:
            check_text_encoder(folder, None)
        else:
            family_of(folder.name).open(folder)
    except ModelUnusable as exc:
        return exc
    return None


def model_list(*, as_json: bool) -> None:
    """List the models in LTXQ_MODEL_DIR and the models that ltxq can download."""
    from ltxq_worker.models.catalog import CATALOG, SHARED_TEXT_ENCODER

    model_dir = Settings.read().models_folder
    _require_readable(model_dir)
    here = {
        path.name: path
        for path in sorted(model_dir.glob("[!.]*"))
        if path.is_dir() or path.name in CATALOG
    }
    models: list[dict[str, Any]] = [
        {
            "name": name,
            "about": CATALOG[name].about if name in CATALOG else "",
            "here": name in here,
        }
        | _condition(here.get(name))
        for name in sorted(CATALOG.keys() | here.keys() - {SHARED_TEXT_ENCODER})
    ]
    if as_json:
        screen.emit({"model_dir": str(model_dir), "models": models})
        return
    screen.table(
        [
            (
                model["name"],
                "here" if model["usable"] else "broken" if model["here"] else "not here",
                f"{CATALOG[model['name']].size / 1e9:.0f} GB" if model["name"] in CATALOG else "",
                model["problem"] or model["about"],
            )
            for model in models
        ]
    )
    for model in models:
        if model["hint"]:
            screen.note(f"{model['name']}: {model['hint']}")
    screen.note(f"In {model_dir}; get or repair one with: ltxq model download NAME")


def _require_readable(model_dir: Path) -> None:
    """Without this, a folder that cannot be read would look empty."""
    try:
        if os.path.lexists(model_dir):
            os.listdir(model_dir)
    except OSError as exc:
        raise ConfigurationError(
            f"{model_dir} cannot be read: {exc.strerror}.",
            hint="LTXQ_MODEL_DIR names the folder for models.",
        ) from exc


def _condition(folder: Path | None) -> dict[str, Any]:
    """Whether a model's folder is complete, what the model can make, or what is wrong."""
    if folder is None:
        return {"usable": False, "problem": "", "hint": "", "limits": None}
    try:
        check_name(folder.name)
        files = family_of(folder.name).open(folder)
    except ModelUnusable as exc:
        return {"usable": False, "problem": exc.message, "hint": exc.hint, "limits": None}
    about = {"about": "random weights, abstract pictures"} if suits_a_cpu(files) else {}
    limits = limits_of(files).model_dump(mode="json")
    return {"usable": True, "problem": "", "hint": "", "limits": limits, **about}
