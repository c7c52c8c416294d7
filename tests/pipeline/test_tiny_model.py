"""The tiny model: shaped as the real ones, small, the same every time, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ltx_core.model.upsampler import LatentUpsamplerConfigurator
from safetensors import safe_open

from ltxq.cli import main
from ltxq_worker.models.files.folder import ModelFolder
from ltxq_worker.models.tiny import model as tiny
from ltxq_worker.models.tiny import text as tiny_text
from ltxq_worker.models.tiny.model import make_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "ltx-2-tiny"
    make_tiny(path)
    return path


@pytest.mark.parametrize(
    ("base", "version", "extractor"),
    [
        ("ltx-2-19b", "2.0.0", "text_embedding_projection.aggregate_embed.weight"),
        ("ltx-2.3-22b", "2.3.0", "text_embedding_projection.video_aggregate_embed.weight"),
    ],
)
def test_it_is_a_small_folder_of_its_bases_kind(
    tmp_path: Path, base: tiny.Base, version: str, extractor: str
) -> None:
    make_tiny(tmp_path / "model", base)
    model = ModelFolder.open(tmp_path / "model")
    assert model.tiny
    assert model.version == version
    assert model.text_encoder == tmp_path / "model" / "gemma"
    with safe_open(model.checkpoint, "pt") as checkpoint:
        assert extractor in set(checkpoint.keys())
    assert sum(file.stat().st_size for file in (tmp_path / "model").rglob("*")) < 30_000_000


def test_nothing_in_it_is_left_uninitialised(folder: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                tensor = weights.get_tensor(name)
                assert tensor.isfinite().all(), name
                assert tensor.abs().max() < 100, name


@pytest.mark.extended
def test_another_process_makes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from ltxq_worker.models.tiny.model import make_tiny\n"
        "make_tiny(pathlib.Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "again"], env=environment, timeout=120, check=True
    )
    assert digests(tmp_path / "again") == digests(folder)


def test_another_seed_makes_other_weights(folder: Path, tmp_path: Path) -> None:
    make_tiny(tmp_path / "other", seed=1)
    first, other = digests(folder), digests(tmp_path / "other")
    differ = {name for name in first if first[name] != other[name]}
    assert differ == {
        "checkpoint.safetensors",
        "gemma/model.safetensors",
        "spatial_upsampler.safetensors",
    }


def test_making_one_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    make_tiny(tmp_path / "model")
    assert torch.equal(torch.rand(3), expected)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        make_tiny(tmp_path / "model")
    assert [file.name for file in tmp_path.rglob("*")] == ["model", "mine.txt"]


def test_it_may_fill_an_empty_folder_and_others_may_read_it(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    make_tiny(tmp_path / "model")
    ModelFolder.open(tmp_path / "model")
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o755


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiny, "_write_safetensors", fail)
    with pytest.raises(OSError, match="No space"):
        make_tiny(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_english_takes_about_three_characters_a_token(folder: Path) -> None:
    prompt = "A red car drives along the coast in the morning, soft light, film grain."
    tokenizer = tiny_text.make_tokenizer()
    ids = tokenizer(prompt)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert 2 < len(prompt) / len(ids) < 5
    assert tokenizer.decode(ids[1:]) == prompt
    assert tokenizer.unk_token_id not in tokenizer("猫 é \N{CAT FACE}")["input_ids"]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_the_text_encoder_names_no_place_it_was_made_in(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "gemma").glob("*.json"):
        assert str(folder.parent) not in file.read_text()
        json.loads(file.read_text())


def test_the_upsampler_doubles_a_latents_sides(folder: Path) -> None:
    file = ModelFolder.open(folder).upscaler
    assert file is not None
    with safe_open(file, framework="pt") as weights:
        upsampler = LatentUpsamplerConfigurator.from_config(
            json.loads(weights.metadata()["config"])
        )
        upsampler.load_state_dict({name: weights.get_tensor(name) for name in weights.keys()})  # noqa: SIM118
    with torch.inference_mode():
        doubled = upsampler.bfloat16()(torch.randn(1, 128, 2, 2, 3, dtype=torch.bfloat16))
    assert doubled.shape == (1, 128, 2, 4, 6)
    assert doubled.isfinite().all()


@pytest.mark.parametrize("name", ["file", "link", "file/inside"])
def test_a_place_that_cannot_be_a_folder_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("/mnt/gone")
    assert main(["model", "tiny", str(tmp_path / name)]) == 2
    error = " ".join(capsys.readouterr().err.split())
    says = "cannot be written: it is not a folder. Choose another path with DIR."
    assert f"{tmp_path / name} {says}" in error
    assert "Errno" not in error
    assert (tmp_path / "file").read_text() == "mine"
