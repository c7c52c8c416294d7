"""Checks of what a worker needs: driver, GPUs, torch, a compiler, the model, a disk.

A separate process imports torch, so that a broken installation is a finding and does not end the
doctor.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ltxq.errors import ConfigurationError, ModelUnusable
from ltxq.job import VideoRequest
from ltxq.ops.findings import Check, Finding, ok, problem, skipped, warning
from ltxq.settings import Settings
from ltxq_worker.gpus import Gpu, read_gpus
from ltxq_worker.models.catalog import CATALOG, Repo, how_to_repair, repo_of
from ltxq_worker.models.files.folder import ModelFolder
from ltxq_worker.models.files.magic import obstacle
from ltxq_worker.models.files.record import HASHES, hashes_in
from ltxq_worker.pipeline import memory
from ltxq_worker.pipeline.fast.options import Optimizations, parse_shapes
from ltxq_worker.pipeline.registry import family_of, model_folder

OLDEST_DRIVER = 580  # what CUDA 13 needs, which torch 2.11 from the package index is built with
IMPORT_TIMEOUT = 180.0  # seconds for torch on a cold disk
IN_USE = 1_000_000_000  # bytes of a card that others use, from which a finding says so
KEPT_FREE = 1_500_000_000  # bytes of a card for CUDA itself and the allocator's gaps
FP8_SAVES = 0.354  # share of a bf16 checkpoint's bytes: 16.3 of 46.0 GB in LTX-2.3 22B
SPOOL_CLIP = 100_000_000  # bytes on disk of a large clip that waits for its upload

_IMPORTS = """
import json, torch, torchaudio
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": names}))
"""


@dataclass(frozen=True)
class WorkerChecks:
    """The checks of a worker with this model, for clips of this size."""

    model: str
    sizes: tuple[VideoRequest, ...]
    hashes: bool  # read every file of the model, which takes minutes

    @classmethod
    def of(
        cls, settings: Settings, model: str | None, size: str | None, hashes: bool
    ) -> WorkerChecks:
        """Without `model` and `size`: the settings' model, and the sizes of a worker's warm-up.

        Raises:
            ConfigurationError: `size` is not a size.
        """
        if size:
            requests = parse_shapes(size, "--size")
        else:
            requests = parse_shapes(settings.shapes or "") or [VideoRequest(prompt="doctor")]
        return cls(model or settings.default_model, tuple(requests), hashes)

    def all(self) -> tuple[tuple[str, Check], ...]:
        """All checks, in the order in which things can go wrong."""
        return (
            ("GPU", check_gpus),
            ("torch", check_torch),
            ("Compiler", check_compiler),
            ("Model", self.check_model),
            ("GPU memory", self.check_memory),
            ("Spool", check_spool),
            ("Ports", check_ports),
        )

    def check_model(self, settings: Settings) -> Iterator[Finding]:
        """The model's files; if they are missing, whether they can be downloaded."""
        path = model_folder(settings, self.model)
        if not os.path.lexists(path) and self.model in CATALOG:
            yield problem(f"{path} is not there.", f"Download it: ltxq model download {self.model}")
            yield from check_access(self.model)
            return
        folder = family_of(self.model).open(path)
        if folder is None:
            yield ok(f"{self.model} needs no files.")
            return
        yield ok(f"{self.model} is whole by its files' sizes and headers.")
        if folder.upscaler is None:
            get = f"ltxq model download {self.model}" if self.model in CATALOG else ""
            yield warning(
                f"{folder.path} has no spatial upscaler, which clips in two stages need.",
                f"Get it: {get}" if get else "Put the x2 upscaler of its version into the folder.",
            )
        if self.hashes:
            yield from check_hashes(folder)

    def check_memory(self, settings: Settings) -> Iterator[Finding]:
        """Do model and clips fit each card?"""
        try:
            path = model_folder(settings, self.model)
            folder = family_of(self.model).open(path) if path.is_dir() else None
        except (ModelUnusable, ConfigurationError):  # `check_model` says why
            folder = None
        if folder is None:
            yield skipped("There is no model to measure it against.")
            return
        cards = read_gpus()
        if not cards:
            yield skipped("There is no GPU.")
            return
        weights = weights_bytes(folder, settings.quantization or "fp8")
        for request in self.sizes:
            shape = memory.Shape(request.height, request.width, request.num_frames, request.stages)
            clip = memory.bytes_needed(folder.config, shape)
            for card in cards:
                yield _fit(folder, card, weights, clip, shape)


def check_gpus(_: Settings) -> Iterator[Finding]:
    """Driver, cards, and other processes on them."""
    cards = read_gpus()
    if not cards:
        yield warning(
            "nvidia-smi shows no GPU here.",
            "The real models need one: install NVIDIA's driver, or start the container with GPUs. "
            "The tiny model runs on a CPU.",
        )
    for card in cards:
        if int(card.driver.partition(".")[0]) < OLDEST_DRIVER:
            yield problem(
                f"The driver is {card.driver}; torch here is built for CUDA 13.",
                f"Install NVIDIA's driver {OLDEST_DRIVER} or newer.",
            )
        yield ok(
            f"{card.index}: {card.name}, {card.memory_size / 1e9:.0f} GB, driver {card.driver}."
        )
        if card.memory_used > IN_USE:
            yield warning(
                f"{card.index}: {card.memory_used / 1e9:.1f} GB are in use, by a worker or others.",
                "nvidia-smi names the processes.",
            )


def check_torch(_: Settings) -> Iterator[Finding]:
    """torch and torchaudio: of one version, importable, and do they see the GPUs?"""
    try:
        found = {name: version(name) for name in ("torch", "torchaudio", "ltx-core")}
    except PackageNotFoundError as exc:
        yield problem(
            f"{exc.name} is not installed.", "Install the worker: pip install 'ltxq[worker]'"
        )
        return
    if _minor(found["torch"]) != _minor(found["torchaudio"]):
        yield problem(
            f"torch is {found['torch']} and torchaudio {found['torchaudio']}: they must match.",
            "Install the locked versions: pip install --require-hashes -r requirements/worker.txt",
        )
        return
    done = subprocess.run(
        [sys.executable, "-P", "-c", _IMPORTS],
        capture_output=True,
        text=True,
        timeout=IMPORT_TIMEOUT,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        yield problem(
            f"torch or torchaudio cannot be imported: {last[:300]}",
            "Install the locked versions: pip install --require-hashes -r requirements/worker.txt",
        )
        return
    yield from _what_torch_sees(json.loads(done.stdout.splitlines()[-1]))


def _what_torch_sees(seen: dict[str, Any]) -> Iterator[Finding]:
    built = f"torch {seen['torch']}" + (f" for CUDA {seen['cuda']}" if seen["cuda"] else "")
    if seen["gpus"]:
        yield ok(f"{built} sees {', '.join(seen['gpus'])}.")
    elif read_gpus():
        yield problem(
            f"{built} sees no GPU, though nvidia-smi does.",
            "Install torch as the package index has it, not a build for CPUs; and look at "
            f"CUDA_VISIBLE_DEVICES ({os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}).",
        )
    else:
        yield ok(f"{built} is there; it sees no GPU, as there is none.")


def check_compiler(settings: Settings) -> Iterator[Finding]:
    """The programs that torch.compile and triton call."""
    if not Optimizations.parse(settings.optimize, "cuda").compile:
        yield skipped("LTXQ_OPTIMIZE leaves compile out.")
        return
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("gcc", "clang"))), None)
    headers = Path(sysconfig.get_paths()["include"], "Python.h").is_file()
    missing = [name for name, there in (("gcc", compiler), ("Python.h", headers)) if not there]
    if missing:
        yield warning(
            f"{' and '.join(missing)} not found: clips are made without torch.compile, slower.",
            "apt install gcc python3-dev",
        )
    else:
        yield ok(f"{compiler} and Python's headers are there.")


def check_access(model: str) -> Iterator[Finding]:
    """Token and licences for a missing model, one at a time, as the download asks for them."""
    from ltxq_worker.models.files.hub_settings import check_hub_settings

    check_hub_settings()
    from huggingface_hub import HfApi

    from ltxq_worker.models.files.hub import TIMEOUT
    from ltxq_worker.models.files.hub_errors import advice

    repos: tuple[Repo, ...] = tuple(CATALOG[model].parts.values())
    for repo in repos:
        with advice(repo, Path()):
            HfApi().auth_check(repo.id)
            HfApi().model_info(repo.id, timeout=TIMEOUT)
        yield ok(f"The Hugging Face token may read {repo.id}.", about="Licences")


def check_hashes(folder: ModelFolder) -> Iterator[Finding]:
    """Every file's hash against the one noted at its download."""
    for place in {folder.path, folder.text_encoder}:
        compare = how_to_compare(place)
        sums = hashes_in(place)
        if not sums:
            yield skipped(f"{place / HASHES} is not there: nothing to compare with.{compare}")
            continue
        for name, expected in sums.items():
            if found := obstacle(place / name):
                yield problem(
                    f"{place / name} is {found}.", compare.strip() or how_to_repair(place / name)
                )
                break
            with (place / name).open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 != expected:
                yield problem(
                    f"{place / name} is damaged: its SHA-256 is {sha256}.",
                    compare.strip() or how_to_repair(place / name),
                )
                break
        else:
            yield ok(f"The files in {place} are as they were downloaded.")


def how_to_compare(place: Path) -> str:
    """The hint that compares a downloaded folder's contents with the hub's; '' for another's."""
    if repo_of(place.name) is None:
        return ""
    return f" Compare and repair it with `ltxq model download {place.name} --verify`."


def weights_bytes(folder: ModelFolder, quantization: str) -> int:
    """About the model's bytes on a card: its files, less what FP8 saves."""
    checkpoint = folder.checkpoint.stat().st_size
    encoder = folder.text_encoder.glob("*.safetensors")
    upscaler = folder.upscaler.stat().st_size if folder.upscaler else 0
    saved = FP8_SAVES * checkpoint if quantization == "fp8" else 0
    return int(checkpoint - saved + upscaler + sum(file.stat().st_size for file in encoder))


def _fit(folder: ModelFolder, card: Gpu, weights: int, clip: int, shape: memory.Shape) -> Finding:
    budget = int(card.memory_size) - weights - KEPT_FREE
    need = f"{shape} takes about {(weights + clip + KEPT_FREE) / 1e9:.0f} GB with the model"
    has = f"GPU {card.index} has {card.memory_size / 1e9:.0f}"
    if clip <= budget:
        return ok(f"{need}; {has}.")
    fits = memory.largest_that_fits(folder.config, shape, budget)
    hint = f"The largest that fits: {fits}." if fits else "Set LTXQ_QUANTIZATION=fp8."
    return problem(f"{need}; {has}.", hint)


def check_spool(settings: Settings) -> Iterator[Finding]:
    """Is there room for clips that wait for their upload?"""
    from ltxq_worker.supervisor.child import spool_root

    root = spool_root(settings)
    there = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free, wanted = shutil.disk_usage(there).free, SPOOL_CLIP * (1 + settings.spool_jobs)
    if free < wanted:
        yield warning(
            f"{root} has {free / 1e9:.1f} GB free; {1 + settings.spool_jobs} large clips take "
            f"{wanted / 1e9:.1f}.",
            "Free some, set LTXQ_SPOOL_DIR to a larger disk, or lower LTXQ_SPOOL_JOBS.",
        )
    elif not os.access(there, os.W_OK):
        yield problem(f"{there} cannot be written.", "Set LTXQ_SPOOL_DIR.")
    else:
        yield ok(f"{root} has {free / 1e9:.0f} GB free.")


def check_ports(_: Settings) -> Iterator[Finding]:
    """Are the usual ports of `ltxq up` free?"""
    from ltxq_worker.embedded.servers import port_is_free
    from ltxq_worker.embedded.stack import USUAL_PORTS

    taken = [str(port) for port in USUAL_PORTS.values() if not port_is_free(port)]
    if taken:
        yield ok(f"{', '.join(taken)} in use here: a first `ltxq up` would take others.")
    else:
        usual = ", ".join(map(str, USUAL_PORTS.values()))
        yield ok(f"{usual} are free for `ltxq up`.")


def _minor(number: str) -> list[str]:
    return number.split("+")[0].split(".")[:2]
