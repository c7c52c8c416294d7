"""Model folders cut short, mixed up and written over: usable, or refused in words."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

import model_files
from generated import count, fuzzed, json_values, mutated, nested, scalars, texts
from ltxq.errors import ModelUnusable
from ltxq_worker.models.files.folder import ModelFolder

CONFIG = model_files.CONFIG


def safetensors(header: Any, tail: bytes = bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tail


def whole() -> dict[str, bytes]:
    """The files of a whole model."""
    with tempfile.TemporaryDirectory() as folder:
        root = model_files.model(Path(folder))
        files = [path for path in root.rglob("*") if path.is_file()]
        return {str(path.relative_to(root)): path.read_bytes() for path in files}


WHOLE = whole()
INDEX = "gemma/model.safetensors.index.json"

metadata = st.one_of(
    json_values(),
    st.fixed_dictionaries(
        {"config": json_values().map(json.dumps) | st.just(json.dumps(CONFIG))},
        optional={"model_version": scalars | st.sampled_from(["2.0", "2.9", "9" * 5000 + ".1"])},
    ),
    st.just({"config": "[" * 5000 + "]" * 5000}),
)
tensors = st.one_of(
    json_values(),
    st.fixed_dictionaries({"data_offsets": st.lists(scalars, min_size=2, max_size=2)}),
)
headers = st.builds(
    lambda about, named: {"__metadata__": about, **named},
    metadata,
    st.dictionaries(texts, tensors, max_size=3),
).map(safetensors)
contents = st.one_of(
    headers,
    json_values().map(safetensors),
    st.just(safetensors(json.dumps(nested(900)).encode())),
    st.just(safetensors(b'{"a":' * 20000)),
    st.binary(max_size=64),
    *(mutated(content) for content in WHOLE.values()),
)
indexes = st.one_of(
    json_values().map(lambda v: json.dumps({"weight_map": v}).encode()),
    st.dictionaries(texts, texts | scalars).map(lambda m: json.dumps({"weight_map": m}).encode()),
    st.sampled_from(["\0", "x" * 5000, "../weights.safetensors", "/dev/zero"]).map(
        lambda shard: json.dumps({"weight_map": {"a": shard}}).encode()
    ),
    st.binary(max_size=32),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "my-model"
    (path / "gemma").mkdir(parents=True)
    for name, content in WHOLE.items():
        (path / name).write_bytes(content)
    return path


def refused_or_usable(folder: Path, name: str, content: bytes) -> None:
    count()
    (folder / name).write_bytes(content)
    try:
        model = ModelFolder.open(folder)
        assert isinstance(model.version, str)
    except ModelUnusable as exc:
        assert str(folder) in exc.message
        assert len(exc.message) < 10_000
    finally:
        if name in WHOLE:
            (folder / name).write_bytes(WHOLE[name])
        else:
            (folder / name).unlink()


@fuzzed(0.15, name=st.sampled_from(sorted(WHOLE)), content=contents)
def test_a_file_written_over_is_refused_or_usable(folder: Path, name: str, content: bytes) -> None:
    refused_or_usable(folder, name, content)


@fuzzed(0.05, content=indexes)
def test_an_index_of_shards_written_over_is_refused_or_usable(folder: Path, content: bytes) -> None:
    refused_or_usable(folder, INDEX, content)
