"""A model's folder on disk: finds its files, reads its configuration, checks that it is complete.

Reads headers only, without torch, so that the supervisor and the CLI can check a folder cheaply.
`identify.py` says what a wrong file is; `download.py` compares whole files with the hub's.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from ltxq.errors import InvalidRequest, ModelUnusable
from ltxq_worker.models.catalog import CATALOG, how_to_repair
from ltxq_worker.models.files.encoder import find_text_encoder
from ltxq_worker.models.files.header import SafetensorsHeader
from ltxq_worker.models.files.identify import (
    PLAIN,
    TRANSFORMER,
    UPSAMPLER,
    WEIGHTS,
    config_of,
    describe,
    kind_of,
    missing_parts,
    upscaler_kind,
)
from ltxq_worker.models.files.magic import other_spelling
from ltxq_worker.models.files.scales import fp8_scales

NEWEST = (2, 3)  # LTX-2.5 needs ltx-core 1.2, which is not released as a package

_WANTED = "a whole LTX-2 or LTX-2.3 checkpoint is wanted"
_BLOCK = re.compile(re.escape(f"{TRANSFORMER}transformer_blocks.") + r"(\d{1,6})\.")
_DEV = re.compile(r"(?<![a-z])dev(?![a-z])", re.IGNORECASE)
_VERSION = re.compile(r"ltx-(\d+(?:\.\d+)?)-")
_DOUBLES = "spatial x2"
_SUFFIX = ".safetensors"
_NAMED = 3  # files that a message names

Headers = dict[Path, SafetensorsHeader]


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A folder that holds one usable model."""

    path: Path
    name: str  # the folder's name, by which requests name the model
    checkpoint: Path
    upscaler: Path | None  # doubles height and width of latents; needed for two stages only
    upscaler_config: dict[str, Any]  # from the upscaler's header; empty without an upscaler
    text_encoder: Path
    config: dict[str, Any]  # from the checkpoint's header: transformer, vae, audio_vae, vocoder
    version: str  # the checkpoint's model_version; '' for an LTX-2 file that has none
    fp8_scales: dict[str, float]  # dequantization scales by weight name; published FP8 only
    tiny: bool  # random weights; user interfaces explain why its pictures are abstract

    @classmethod
    def open(cls, path: Path) -> ModelFolder:
        """Read a model's folder and check that all files exist, are complete and fit together.

        Raises:
            ModelUnusable: a file is missing, cut short, foreign or too new: the message names it,
                what it is and what is wanted; the hint says what to do.
        """
        path = Path(path).expanduser().absolute()
        _require_folder(path)
        headers = {
            file: SafetensorsHeader.read(file, how_to_repair(file))
            for file in sorted(path.glob("[!.]*.safetensors"))
        }
        configs = {file: config_of(header) for file, header in headers.items()}
        checkpoint = _only_checkpoint(path, headers, configs)
        header, config = headers[checkpoint], configs[checkpoint]
        version = header.metadata.get("model_version", "")
        tiny = bool(config.get("random_weights", False))
        _check_version(checkpoint, config, version)
        _check_whole(header, config)
        is_23 = _is_23(config, version)
        _check_name(path.name, checkpoint, "LTX-2.3" if is_23 else "LTX-2", tiny=tiny)
        upscaler = _upscaler(path, headers, configs, "2.3" if is_23 else "2")
        return cls(
            path=path,
            name=path.name,
            checkpoint=checkpoint,
            upscaler=upscaler,
            upscaler_config=configs[upscaler] if upscaler else {},
            text_encoder=find_text_encoder(path, header),
            config=config,
            version=version,
            fp8_scales=fp8_scales(header, how_to_repair(checkpoint)),
            tiny=tiny,
        )


def no_upscaler(model: str) -> InvalidRequest:
    """The error for two stages with a model whose folder has no upscaler."""
    reason = f"must be 1: {model} has no spatial upscaler, which two stages need"
    get = "Put the x2 spatial upscaler that is published with its checkpoint into its folder"
    if model in CATALOG:
        get = f"Run `ltxq model download {model}` on the worker's machine"
    return InvalidRequest.of(
        ("stages", reason), hint=f"{get}, and start its workers again, if there are any."
    )


def _require_folder(path: Path) -> None:
    if path.is_dir():
        try:
            os.listdir(path)
        except OSError as exc:
            raise ModelUnusable(
                f"{path} cannot be read: {exc.strerror}.",
                hint=f"Let this user read it: chmod u+rx {quote(str(path))}, as its owner.",
            ) from exc
        return
    if path.name in CATALOG:
        again = f"Get it with `ltxq model download {path.name}`."
    else:
        again = "`ltxq model list` lists the models; `ltxq model tiny DIR` makes a small one."
    if not path.exists() and not path.is_symlink():
        if spelling := other_spelling(path.parent, path.name):
            again = f"Rename it to {path.name}, or name it as it is. {again}"
        there = f", but {spelling}" if spelling else ""
        raise ModelUnusable(f"There is no model folder {path}{there}.", hint=again)
    named = path.suffix == _SUFFIX and path.is_file()
    raise ModelUnusable(
        f"{path} is {describe(path)}; a folder with a model's files is wanted.",
        hint="Name the folder that it is in." if named else f"Move it away. {again}",
    )


def _only_checkpoint(path: Path, headers: Headers, configs: dict[Path, dict[str, Any]]) -> Path:
    """The one file whose configuration describes a transformer. Adapters and parts, such as a VAE
    alone, may have a whole configuration too: a whole file goes before them.
    """
    described = [file for file in configs if isinstance(configs[file].get("transformer"), dict)]
    found = [file for file in described if not missing_parts(headers[file].tensors)]
    if len(found or described) == 1:
        return (found or described)[0]
    if found:
        published = CATALOG[path.name].weights.files[0] if path.name in CATALOG else ""
        keep = next((file.name for file in found if file.name == published), "only one")
        raise ModelUnusable(
            f"{path} has {len(found)} checkpoints: {', '.join(file.name for file in found)}.",
            hint=f"Keep {keep} in the folder, and move the rest out of it.",
        )
    others = sorted(
        (file for file in path.glob("[!.]*") if file.name not in _BESIDE),
        key=lambda file: (file.suffix.lower() not in WEIGHTS, file.name),
    )
    seen = [f"{file.name} is {describe(file)}" for file in others[:_NAMED]]
    if (path / "model_index.json").is_file():
        raise ModelUnusable(
            f"{path} is a model in parts, as diffusers stores it; {_WANTED}, in one file.",
            hint=how_to_repair(path / "*.safetensors"),
        )
    if (path / "snapshots").is_dir():
        raise ModelUnusable(
            f"{path} is a repository in the cache of Hugging Face.",
            hint=f"Set LTXQ_MODEL_DIR to another folder, and HF_HUB_CACHE to {path.parent}: `ltxq "
            "model download NAME` uses the files in the cache.",
        )
    for file in others:
        if file.suffix != _SUFFIX and file.suffix.lower() == _SUFFIX:
            right = file.with_suffix(_SUFFIX).name
            raise ModelUnusable(
                f"{path} has no LTX-2 checkpoint: {file.name} ends in capitals.",
                hint=f"Rename {file.name} to {right}.",
            )
    more = f"; and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    what = f"has no LTX-2 checkpoint: {'; '.join(seen)}{more}" if seen else "is empty"
    raise ModelUnusable(f"{path} {what}; {_WANTED}.", hint=how_to_repair(path / "*.safetensors"))


_BESIDE = {"gemma", "SHA256SUMS"}  # of a model's folder: what cannot be its checkpoint


def _number(version: str) -> tuple[int, int] | None:
    """(2, 3) of "2.3.0", "v2.3" or "LTX-2.3"; None for a version without such a number."""
    found = re.search(r"(\d{1,9})\d*\.(\d{1,9})", version)  # int() refuses thousands of digits
    return (int(found[1]), int(found[2])) if found else None


def _check_version(checkpoint: Path, config: dict[str, Any], version: str) -> None:
    hint = "Use an LTX-2 or LTX-2.3 checkpoint: `ltxq model list` lists them."
    number = _number(version)
    if number and number > NEWEST:
        raise ModelUnusable(
            f"{checkpoint} is LTX {version}, newer than this ltxq can run (LTX-2 and LTX-2.3).",
            hint=hint,
        )
    kind = config["transformer"].get("_class_name", "AVTransformer3DModel")
    if kind != "AVTransformer3DModel" or (number and number[0] < 2):
        raise ModelUnusable(
            f"{checkpoint} is not an LTX-2 audio-video model, but {kind} {version}.", hint=hint
        )


def _check_whole(header: SafetensorsHeader, config: dict[str, Any]) -> None:
    """Does the file have every part of the model, and every block of the transformer?"""
    again = how_to_repair(header.path)
    if missing_parts(header.tensors):
        kind = kind_of(header.tensors, config)
        raise ModelUnusable(f"{header.path} is {kind}; {_WANTED}.", hint=again)
    blocks = {found[1] for name in header.tensors if (found := _BLOCK.match(name))}
    if len(blocks) != (layers := config["transformer"].get("num_layers", len(blocks))):
        raise ModelUnusable(
            f"{header.path} has {len(blocks)} of the {str(layers)[:20]} transformer blocks that "
            f"its configuration describes; {_WANTED}.",
            hint=again,
        )


def _is_23(config: dict[str, Any], version: str) -> bool:
    """Whether a checkpoint is LTX-2.3, and not LTX-2. A file without a version tells by its text
    projection.
    """
    if number := _number(version):
        return number == (2, 3)
    return config["transformer"].get("caption_proj_before_connector", False) is True


def _check_name(name: str, checkpoint: Path, kind: str, *, tiny: bool) -> None:
    """Is it the model that the folder's and the file's names say? Weights cannot tell a dev
    checkpoint from a distilled one.
    """
    if _DEV.search(checkpoint.stem) and "distilled" not in checkpoint.stem:
        raise ModelUnusable(
            f"{checkpoint} is by its name a dev checkpoint, which needs guidance and many steps; "
            "a distilled one is wanted.",
            hint="Move it out of the folder, and use a distilled checkpoint: `ltxq model list` "
            "lists them.",
        )
    wanted = "LTX-2.3" if name.startswith("ltx-2.3") else "LTX-2"
    if name in CATALOG and not tiny and kind != wanted:
        published = checkpoint.with_name(CATALOG[name].weights.files[0])
        raise ModelUnusable(
            f"{checkpoint} is an {kind} checkpoint; the model {name} is {wanted}.",
            hint=f"Move {checkpoint.name} out of the folder. {how_to_repair(published)}",
        )


def _upscaler(
    path: Path, headers: Headers, configs: dict[Path, dict[str, Any]], version: str
) -> Path | None:
    """The upscaler that doubles height and width; of several, the last by name, which is newest.

    Upscalers that add frames or scale by another factor are published beside it. Those of LTX-2
    and LTX-2.3 have equal weights' names and other latents: their own names tell them apart.
    """
    kinds = {
        file: upscaler_kind(header.tensors, configs[file])
        for file, header in headers.items()
        if UPSAMPLER in header.tensors
    }
    published = CATALOG[path.name].weights.files[1] if path.name in CATALOG else ""
    for file, kind in kinds.items():
        doubles = "spatial" in file.name and "x2" in file.name and "temporal" not in file.name
        if kind != _DOUBLES and (doubles or file.name == published):
            raise ModelUnusable(
                f"{file} is a {kind} upscaler; by its name it is a {_DOUBLES} upscaler, which is "
                "wanted.",
                hint=how_to_repair(file),
            )
        if strange := {tensor.dtype for tensor in headers[file].tensors.values()} - PLAIN:
            raise ModelUnusable(
                f"{file} stores weights as {', '.join(sorted(strange))}; an upscaler in bf16 is "
                "wanted.",
                hint=how_to_repair(file),
            )
    able = [file for file, kind in kinds.items() if kind == _DOUBLES]
    fitting = [f for f in able if (of := _VERSION.match(f.name)) is None or of[1] == version]
    if able and not fitting:
        raise ModelUnusable(
            f"{able[-1]} is by its name an upscaler for another LTX version; one for "
            f"LTX-{version} is wanted.",
            hint=f"Move it out of the folder. {how_to_repair(path / (published or '*'))}",
        )
    return max(fitting, default=None)
