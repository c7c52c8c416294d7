"""Model families: how a model is checked and loaded, and which clips it can make. Imports torch
only to load a model.

Everything that depends on the kind of model is here; other modules call `family_of`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ltxq.errors import ModelUnusable
from ltxq.job import ModelName
from ltxq.limits import ModelLimits
from ltxq.reasons import reason_of
from ltxq.settings import WorkerSettings
from ltxq_worker.models.files.folder import ModelFolder
from ltxq_worker.pipeline import INSTANT, Pipeline, schedule
from ltxq_worker.pipeline.fast.options import keep_compiled_code, parse_shapes

log = logging.getLogger("ltxq.worker")

Progress = Callable[[str, float], None]  # the part being loaded, and the share done, 0..1

# Sizes of the warm-up clips before a worker is ready, unless LTXQ_SHAPES names others.
WARM_UP = {"cuda": "768x512x33", "cpu": "64x64x9"}


class Instant:
    """The test pipeline: real MP4s in milliseconds, without a model."""

    def open(self, folder: Path) -> ModelFolder | None:  # noqa: ARG002
        """None: the pipeline needs no files."""
        return None

    def load(self, folder: Path, settings: WorkerSettings, *_: object, **__: object) -> Pipeline:  # noqa: ARG002
        """The pipeline; its denoising takes LTXQ_INSTANT_SECONDS."""
        from ltxq_worker.pipeline.instant import InstantPipeline

        return InstantPipeline(denoise_seconds=settings.instant_seconds)


class DistilledLtx:
    """LTX-2 and LTX-2.3, distilled, and tiny models of the same architecture."""

    def open(self, folder: Path) -> ModelFolder | None:
        """The model's files, checked by their headers; its folder has the model's name.

        Raises:
            ModelUnusable: a file is missing, cut short, foreign or too new.
        """
        return ModelFolder.open(folder)

    def load(
        self,
        folder: Path,
        settings: WorkerSettings,
        device: str | None,
        progress: Progress,
        *,
        warm_up: bool = True,
        rgb: bool = False,
    ) -> Pipeline:
        """Load all parts onto the device, where they stay.

        Args:
            device: 'cuda' or 'cpu'; None: cuda if there is one.
            warm_up: make clips of the sizes in LTXQ_SHAPES first; `device` must be given.
            rgb: frames leave the device as RGB.

        Raises:
            ModelUnusable, OutOfMemory, DeviceBroken
            ConfigurationError: LTXQ_OPTIMIZE or LTXQ_SHAPES cannot be read.
        """
        shapes = parse_shapes(settings.shapes or WARM_UP[device or "cpu"]) if warm_up else []
        keep_compiled_code()  # torch reads the folder when it is imported
        from ltxq_worker.pipeline.ltx import LtxPipeline  # imports torch, once settings are valid

        pipeline = LtxPipeline.load(
            folder,
            device=device,
            quantization=settings.quantization,
            optimize=settings.optimize,
            rgb=rgb,
            report=progress,
        )
        if warm_up:
            progress("warm-up clip", 1.0)
            pipeline.warm_up(shapes)
            log.info("optimizations: %s", pipeline.optimizations)
        return pipeline


# Models that are checked and loaded in the same way.
Family = Instant | DistilledLtx


def limits_of(files: ModelFolder | None) -> ModelLimits:
    """The clips a model can make, by its files from `Family.open`. Two stages need an upscaler."""
    stages = (1, 2) if files is None or files.upscaler else (1,)
    return ModelLimits(stages=stages, num_inference_steps=schedule.steps(1))


def suits_a_cpu(files: ModelFolder | None) -> bool:
    """Whether a CPU is fast enough for a model: a tiny model, or one that needs no files."""
    return files is None or files.tiny


def check_name(model: str) -> None:
    """Can jobs name this model?

    Raises:
        ModelUnusable: no; no queue can have this name.
    """
    try:
        TypeAdapter(ModelName).validate_python(model)
    except ValidationError as exc:
        raise ModelUnusable(
            f"No worker can serve a model called {model[:80]!r}: the name "
            f"{reason_of(exc.errors()[0])}.",
            hint="A model has the name of its folder in LTXQ_MODEL_DIR: rename the folder.",
        ) from None


def model_folder(settings: WorkerSettings, model: str) -> Path:
    """The folder of a model in LTXQ_MODEL_DIR, which the instant pipeline does not need.

    Raises:
        ModelUnusable: as `check_name`.
        ConfigurationError: LTXQ_MODEL_DIR is in the home folder of a user who has none.
    """
    check_name(model)
    return Path(model) if model == INSTANT else settings.models_folder / model


def family_of(model: str) -> Family:
    """The family of a model, by the model's name."""
    return Instant() if model == INSTANT else DistilledLtx()
