"""The text encoder's folder: Gemma 3 and its tokenizer, complete, and of the checkpoint's sizes.

transformers reads this folder. It would find a file that is missing or foreign after minutes, and
a Gemma of another size would look like a damaged checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ltxq.errors import ModelUnusable
from ltxq_worker.models.catalog import (
    GEMMA,
    OWN_TEXT_ENCODER,
    SHARED_TEXT_ENCODER,
    how_to_repair,
)
from ltxq_worker.models.files.header import SafetensorsHeader, StoredTensor
from ltxq_worker.models.files.identify import (
    GEMMAS,
    MAX_JSON,
    PLAIN,
    WEIGHTS,
    describe,
    is_adapter,
    is_gemma_3,
    is_quantized,
    kind_of,
    language_model,
    language_size,
    sees_pictures,
)
from ltxq_worker.models.files.magic import obstacle, other_spelling

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_PROJECTIONS = ("aggregate_embed", "video_aggregate_embed")  # of LTX-2 and of LTX-2.3
_LEAST_USED = 0.98  # share of the embeddings' rows that a tokenizer of the same model uses
_NAMED = 3  # files that a message names

Tensors = dict[str, StoredTensor]


def check_text_encoder(folder: Path, checkpoint: SafetensorsHeader | None) -> None:
    """Check a text encoder's folder, for `checkpoint` if one is given.

    Raises:
        ModelUnusable: as `find_text_encoder`.
    """
    config = _read_config(folder)
    tensors = _read_headers(folder)
    _check_weights(folder, config, tensors)
    if checkpoint:
        _check_size(folder, tensors, checkpoint)
    _check_tokenizer(folder, tensors)


def find_text_encoder(model: Path, checkpoint: SafetensorsHeader) -> Path:
    """The model's own gemma/ folder, or else the shared text encoder's, checked.

    Raises:
        ModelUnusable: a file is missing, damaged or of another kind, or Gemma has other sizes than
            those that `checkpoint` was made for.
    """
    own, shared = model / OWN_TEXT_ENCODER, model.parent / SHARED_TEXT_ENCODER
    folder = own if own.exists() or own.is_symlink() else shared
    if not folder.is_dir():
        what = describe(folder)
        problem = (
            f"{model} has no text encoder: neither {own} nor {shared} exists."
            if what == "not there"
            else f"{folder} is {what}; a folder with {GEMMA.id} is wanted."
        )
        move = "" if what == "not there" else f"Move {folder} away. "
        if spelling := other_spelling(model.parent, SHARED_TEXT_ENCODER):
            move = f"Rename {spelling} to {SHARED_TEXT_ENCODER}. Or: "
        raise ModelUnusable(
            problem, hint=f"{move}Get it with `ltxq model download {SHARED_TEXT_ENCODER}`."
        )
    check_text_encoder(folder, checkpoint)
    return folder


def _read_config(folder: Path) -> dict[str, Any]:
    """config.json of a Gemma 3 that sees pictures, as published: its kind is checked."""
    _require(folder, _CONFIG)
    config = _json(folder / _CONFIG)
    kind = str(config.get("model_type", "unknown"))[:40]
    if kind != "gemma3":
        note = {
            "gemma3_text": "the text-only form of Gemma 3",
            "unknown": "no description of a model",
        }.get(kind, f"a {kind} model")
        raise _wrong(folder / _CONFIG, f"describes {note}")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise _wrong(folder / _CONFIG, f"describes packed weights ({str(method)[:40]})")
    return config


def _read_headers(folder: Path) -> Tensors:
    """The tensors of all weights' files: transformers prefers one file to an index of shards."""
    if (folder / _SINGLE).is_file() or not (folder / _INDEX).exists():
        _require(folder, _SINGLE)
        return SafetensorsHeader.read(folder / _SINGLE, _how_to_repair_weights(folder)).tensors
    index = folder / _INDEX
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in places.values()
    ):
        raise ModelUnusable(f"{index} is damaged.", hint=how_to_repair(index))
    tensors: Tensors = {}
    for shard in sorted(set(places.values())):
        _require(folder, shard)
        found = SafetensorsHeader.read(folder / shard, how_to_repair(folder / shard)).tensors
        if lacking := {name for name, place in places.items() if place == shard} - found.keys():
            raise ModelUnusable(
                f"{folder / shard} is {kind_of(found, {})}; it lacks weights that {_INDEX} places "
                f"in it: {_some(lacking)}.",
                hint=how_to_repair(folder / shard),
            )
        tensors |= found
    return tensors


def _check_weights(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    """Are the weights a Gemma 3's in plain numbers, and the one that config.json describes?"""
    again = _how_to_repair_weights(folder)
    size = language_size(tensors)
    if size is None or is_adapter(tensors) or not is_gemma_3(tensors):
        kind = kind_of(tensors, {})
        raise ModelUnusable(f"The weights in {folder} are {kind}; {_WANTED}.", hint=again)
    if not sees_pictures(tensors):
        raise ModelUnusable(
            f"The weights in {folder} are {language_model(tensors)}, the text-only form; "
            f"{_WANTED}.",
            hint=again,
        )
    strange = {tensor.dtype for tensor in tensors.values()} - PLAIN
    if strange or is_quantized(tensors):
        raise ModelUnusable(
            f"The weights in {folder} are packed or stored as {_some(strange or {'U8'})}; "
            f"{_WANTED}, in bf16.",
            hint=again,
        )
    text = config.get("text_config")
    described = text if isinstance(text, dict) else {}
    claims = (
        described.get("hidden_size", size[0]),
        described.get("num_hidden_layers", size[1]),
    )
    if claims != size:
        raise ModelUnusable(
            f"The weights in {folder} are {language_model(tensors)}, but {_CONFIG} describes "
            f"{str(claims[1])[:20]} layers of width {str(claims[0])[:20]}: they are of two models.",
            hint=again,
        )


def _how_to_repair_weights(folder: Path) -> str:
    """The hint for wrong weights. The published ones are shards: one file beside their index is
    another's, which would be used before them and which no download removes.
    """
    again = how_to_repair(folder / _SINGLE)
    if os.path.lexists(folder / _SINGLE) and (folder / _INDEX).exists():
        return f"Move {_SINGLE} out of {folder}. {again}"
    return again


def _check_size(folder: Path, tensors: Tensors, checkpoint: SafetensorsHeader) -> None:
    """Has Gemma the width and depth of the hidden states that the checkpoint projects?"""
    size = language_size(tensors)
    for name in _PROJECTIONS:
        projection = checkpoint.tensors.get(f"text_embedding_projection.{name}.weight")
        if projection is None or size is None or len(projection.shape) != 2:
            continue
        width, layers = size
        wanted = projection.shape[1]  # the embeddings and every layer, side by side
        if wanted == width * (layers + 1):
            continue
        fits = [name for (w, n), name in GEMMAS.items() if w * (n + 1) == wanted]
        wants = f"a Gemma with {wanted:,} values per token"
        wants = f"{fits[0]} ({GEMMA.id})" if fits else wants
        again = f"Replace the text encoder. {_how_to_repair_weights(folder)}"
        if not fits and folder.name == OWN_TEXT_ENCODER:
            again = "Use the text encoder that the checkpoint was made with."
        raise ModelUnusable(
            f"The text encoder {folder} is {language_model(tensors)}; {checkpoint.path.name} "
            f"wants {wants}.",
            hint=f"The checkpoint is not at fault. {again}",
        )


def _check_tokenizer(folder: Path, tensors: Tensors) -> None:
    """Is there a tokenizer, and of this Gemma's vocabulary?

    Each token needs its row of the embeddings. Gemma 3 has 64 rows to spare, and Gemma 2's
    tokenizer 6,208 tokens less.
    """
    _require(folder, "tokenizer_config.json")
    _json(folder / "tokenizer_config.json")
    _require(folder, _TOKENIZER)
    file = folder / _TOKENIZER
    rows = next(t.shape[0] for n, t in tensors.items() if n.endswith("embed_tokens.weight"))
    about = file.stat()
    count, last = _vocabulary(file, about.st_size, about.st_mtime_ns)
    if last >= rows or count < rows * _LEAST_USED:
        raise ModelUnusable(
            f"{file} is a tokenizer of {count:,} tokens, of another model; the Gemma beside it "
            f"wants its own, for {rows:,} rows of embeddings.",
            hint=how_to_repair(file),
        )


@lru_cache(maxsize=4)
def _vocabulary(file: Path, size: int, changed: int) -> tuple[int, int]:  # noqa: ARG001
    """The number of tokens in a tokenizer.json, and the largest id. `size` and `changed`, the
    file's time, keep the cache true.

    Raises:
        ModelUnusable: it is damaged.
    """
    content = _json(file)
    try:
        ids = {*content["model"]["vocab"].values()}
        ids |= {token["id"] for token in content.get("added_tokens", [])}
    except (KeyError, TypeError, AttributeError):
        ids = {None}
    if not all(type(token) is int for token in ids):
        raise ModelUnusable(f"{file} is no tokenizer of Gemma's kind.", hint=how_to_repair(file))
    return len(ids), max(ids, default=0)


def _json(file: Path) -> dict[str, Any]:
    """A JSON file's object."""
    try:
        if file.stat().st_size > MAX_JSON:
            raise ValueError("too large")
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except OSError as exc:
        raise ModelUnusable(
            f"{file} cannot be read: {exc.strerror}.", hint=how_to_repair(file)
        ) from exc
    except (ValueError, RecursionError) as exc:
        what = describe(file)
        what = "damaged" if what.startswith("a JSON text") else what
        raise ModelUnusable(
            f"{file} is {what}; a whole JSON file is wanted.", hint=how_to_repair(file)
        ) from exc
    return content


def _require(folder: Path, name: str) -> None:
    """Raise if the file is not there, not a file or not readable."""
    problem = obstacle(folder / name)
    if problem is None:
        return
    if problem != "not there" and not problem.startswith("not readable (File name"):
        raise ModelUnusable(
            f"{folder / name} is {problem}; a file is wanted.", hint=how_to_repair(folder / name)
        )
    if spelling := other_spelling(folder, name):
        raise ModelUnusable(
            f"{folder} has no {name[:200]}, but {spelling}.",
            hint=f"Rename {spelling} to {name[:200]}.",
        )
    raise ModelUnusable(
        f"{folder} has no {name[:200]}{_instead(folder)}.", hint=how_to_repair(folder / name)
    )


def _instead(folder: Path) -> str:
    """The weights of other kinds in a folder, which people take for the ones that are wanted."""
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in WEIGHTS)
    except OSError:
        return ""
    seen = "; ".join(f"{file.name} is {describe(file)}" for file in files[:_NAMED])
    return f" ({seen})" if seen else ""


_WANTED = f"a Gemma 3 with pictures, such as {GEMMA.id}, is wanted"


def _wrong(file: Path, what: str) -> ModelUnusable:
    return ModelUnusable(f"{file} {what}; {_WANTED}.", hint=how_to_repair(file))


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(name[:80] for name in names)[:_NAMED])
