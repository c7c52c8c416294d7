"""What a model folder must hold, and what is said of one that does not. Without torch."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ltxq.cli import main
from ltxq.errors import ModelUnusable
from ltxq_worker.models.files.folder import ModelFolder
from ltxq_worker.pipeline.registry import ModelLimits, family_of, limits_of, suits_a_cpu

UPSCALES = "post_upsample_res_blocks.0.conv1.weight"
LAYER = "model.diffusion_model.transformer_blocks.1.attn1.to_q"
CONFIG = {"transformer": {"_class_name": "AVTransformer3DModel"}, "vae": {}}


def safetensors(
    path: Path, config: dict[str, Any] | None = None, version: str = "", tensor: str = "weight"
) -> Path:
    """A file of one tensor of 64 bytes."""
    metadata = {} if config is None else {"config": json.dumps(config)}
    if version:
        metadata["model_version"] = version
    header = json.dumps(
        {
            "__metadata__": metadata,
            tensor: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]},
        }
    ).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model of an LTX-2 kind, with a text encoder of its own."""
    path = tmp_path / "my-model"
    safetensors(path / "weights.safetensors", CONFIG, "2.0.0")
    text_encoder(path / "gemma")
    return path


def text_encoder(path: Path) -> None:
    safetensors(path / "model.safetensors")
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text("{}")


def test_a_whole_folder_says_what_it_holds(folder: Path) -> None:
    model = ModelFolder.open(folder)
    assert model.name == "my-model"
    assert model.checkpoint == folder / "weights.safetensors"
    assert model.text_encoder == folder / "gemma"
    assert model.upscaler is None
    assert model.version == "2.0.0"
    assert model.config == CONFIG
    assert not model.tiny


def test_the_upscaler_is_told_from_the_checkpoint(folder: Path) -> None:
    upscaler = safetensors(folder / "a-spatial-upscaler.safetensors", {"dims": 3}, tensor=UPSCALES)
    model = ModelFolder.open(folder)
    assert model.checkpoint == folder / "weights.safetensors"
    assert (model.upscaler, model.upscaler_config) == (upscaler, {"dims": 3})


def test_of_many_files_the_newest_that_doubles_both_sides_is_the_upscaler(folder: Path) -> None:
    for name, config in {
        "upscaler-x2-1.0": {},
        "upscaler-x2-1.1": {"spatial_scale": 2.0},
        "upscaler-x3-1.1": {"spatial_scale": 1.5},
        "upscaler-y-temporal": {"temporal_upsample": True, "spatial_upsample": False},
        "upscaler-z-both": {"temporal_upsample": True},
    }.items():
        safetensors(folder / f"{name}.safetensors", config, tensor=UPSCALES)
    safetensors(folder / "zz-lora.safetensors")
    assert ModelFolder.open(folder).upscaler == folder / "upscaler-x2-1.1.safetensors"


def test_models_may_share_a_text_encoder_beside_them(folder: Path) -> None:
    shared = folder.parent / "gemma-3-12b-it"
    (folder / "gemma").rename(shared)
    assert ModelFolder.open(folder).text_encoder == shared


@pytest.mark.parametrize("version", ["", "2.0.0", "2.3.1", "2.3"])
def test_the_versions_it_can_run_are_taken(folder: Path, version: str) -> None:
    safetensors(folder / "weights.safetensors", CONFIG, version)
    assert ModelFolder.open(folder).version == version


@pytest.mark.parametrize("version", ["2.5", "2.5.0", "2.10.0", "3.0"])
def test_a_newer_checkpoint_is_refused_by_its_version(folder: Path, version: str) -> None:
    safetensors(folder / "weights.safetensors", CONFIG, version)
    with pytest.raises(ModelUnusable, match=f"LTX {version}, newer than"):
        ModelFolder.open(folder)


def test_an_older_or_other_model_is_refused(folder: Path) -> None:
    other = {"transformer": {"_class_name": "Transformer3DModel"}}
    safetensors(folder / "weights.safetensors", other, "0.9.7")
    with pytest.raises(ModelUnusable, match="not an LTX-2 audio-video model"):
        ModelFolder.open(folder)


def fp8_checkpoint(path: Path, scale: float = 0.5, **changed: dict[str, Any] | None) -> Path:
    """A checkpoint with one weight in FP8 and its scale; `changed`: entries of its header."""
    entries: dict[str, dict[str, Any] | None] = {
        f"{LAYER}.weight_scale": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        f"{LAYER}.weight": {"dtype": "F8_E4M3", "shape": [4, 4], "data_offsets": [4, 20]},
    }
    entries |= {f"{LAYER}.{name}": entry for name, entry in changed.items()}
    header = {
        "__metadata__": {"config": json.dumps(CONFIG)},
        **{name: entry for name, entry in entries.items() if entry},
    }
    text = json.dumps(header).encode()
    tail = struct.pack("<f", scale) + bytes(60)
    path.write_bytes(len(text).to_bytes(8, "little") + text + tail)
    return path


def test_a_checkpoint_published_in_fp8_says_what_its_numbers_are_worth(folder: Path) -> None:
    assert ModelFolder.open(folder).fp8_scales == {}
    fp8_checkpoint(folder / "weights.safetensors", 0.5)
    assert ModelFolder.open(folder).fp8_scales == {f"{LAYER}.weight": 0.5}


@pytest.mark.parametrize("scale", [math.nan, math.inf, 0.0, -0.5])
def test_an_fp8_scale_that_is_no_positive_number_is_refused(folder: Path, scale: float) -> None:
    fp8_checkpoint(folder / "weights.safetensors", scale)
    with pytest.raises(ModelUnusable, match=f"not positive numbers, of {LAYER}.weight"):
        ModelFolder.open(folder)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"weight_scale": None}, "no scale for the FP8 weights"),
        ({"weight": None}, "scales without FP8 weights"),
        (
            {"weight": {"dtype": "BF16", "shape": [4, 2], "data_offsets": [4, 20]}},
            "scales without FP8 weights",
        ),
        (
            {"weight_scale": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
            "not one F32",
        ),
        ({"weight_scale": {"dtype": "BF16", "shape": [], "data_offsets": [0, 2]}}, "not one F32"),
        (
            {"weight": {"dtype": "U8", "shape": [4, 4], "data_offsets": [4, 20]}},
            f"stores {LAYER}.weight as U8",
        ),
        (
            {"bias": {"dtype": "F8_E5M2", "shape": [4], "data_offsets": [20, 24]}},
            f"stores {LAYER}.bias as F8_E5M2",
        ),
    ],
)
def test_an_fp8_checkpoint_of_another_form_is_refused(
    folder: Path, changed: dict[str, Any], says: str
) -> None:
    """A weight in FP8 without its scale would be read as noise."""
    fp8_checkpoint(folder / "weights.safetensors", **changed)
    with pytest.raises(ModelUnusable, match=says):
        ModelFolder.open(folder)


def test_a_folder_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match="no model folder") as caught:
        ModelFolder.open(tmp_path / "ltx-2-19b-distilled")
    assert "ltxq model download ltx-2-19b-distilled" in caught.value.hint
    with pytest.raises(ModelUnusable, match="no model folder") as caught:
        ModelFolder.open(tmp_path / "my-model")
    assert "ltxq model tiny DIR" in caught.value.hint


def test_two_checkpoints_are_one_too_many(folder: Path) -> None:
    safetensors(folder / "second.safetensors", CONFIG)
    with pytest.raises(ModelUnusable, match=r"2 checkpoints: second\.safetensors, weights"):
        ModelFolder.open(folder)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_text_encoder_without_a_file_is_refused_by_name(folder: Path, missing: str) -> None:
    (folder / "gemma" / missing).unlink()
    with pytest.raises(ModelUnusable, match=missing):
        ModelFolder.open(folder)


def test_a_missing_text_encoder_is_refused(folder: Path) -> None:
    (folder / "gemma").rename(folder / "elsewhere")
    with pytest.raises(ModelUnusable, match="no text encoder"):
        ModelFolder.open(folder)


def test_every_shard_an_index_names_must_be_there(folder: Path) -> None:
    encoder = folder / "gemma"
    (encoder / "model.safetensors").rename(encoder / "model-1-of-2.safetensors")
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (encoder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelUnusable, match=r"model-2-of-2\.safetensors"):
        ModelFolder.open(folder)
    safetensors(encoder / "model-2-of-2.safetensors")
    assert ModelFolder.open(folder).text_encoder == encoder


@pytest.mark.parametrize("file", ["weights.safetensors", "gemma/model.safetensors"])
@pytest.mark.parametrize("keep", [-1, -70, 40, 8, 4, 0])
def test_a_file_that_is_cut_short_is_refused(folder: Path, file: str, keep: int) -> None:
    path = folder / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelUnusable, match=r"cut short|not a safetensors file") as caught:
        ModelFolder.open(folder)
    assert str(path) in caught.value.message
    if keep == -1:
        assert "cut short" in caught.value.message


@pytest.mark.parametrize(
    "content",
    [
        b"<html>Access to model is restricted</html>" * 4,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        (5).to_bytes(8, "little") + b"[1,2]",
        (20).to_bytes(8, "little") + b'{"weight": [1, 2,3]}',
        (2**40).to_bytes(8, "little") + b"{" * 50,
    ],
)
def test_a_file_of_another_kind_is_refused(folder: Path, content: bytes) -> None:
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(ModelUnusable, match="not a safetensors file"):
        ModelFolder.open(folder)


@pytest.mark.parametrize("config", [None, {}, {"transformer": "yes"}, {"dims": 3}])
def test_weights_without_a_models_configuration_are_refused(
    folder: Path, config: dict[str, Any] | None
) -> None:
    safetensors(folder / "weights.safetensors", config)
    with pytest.raises(ModelUnusable, match="no LTX-2 checkpoint"):
        ModelFolder.open(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match="no checkpoint"):
        ModelFolder.open(tmp_path)


def test_looking_at_a_folder_needs_no_torch() -> None:
    code = (
        "import sys, ltxq_worker.models.files.folder, ltxq_worker.pipeline.memory\n"
        "sys.exit(bool({'torch', 'safetensors', 'numpy', 'transformers'} & sys.modules.keys()))"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=True)


def test_a_model_without_an_upscaler_has_one_stage(folder: Path) -> None:
    family = family_of("my-model")
    assert limits_of(family.open(folder)) == ModelLimits(stages=(1,), num_inference_steps=8)
    safetensors(folder / "a-spatial-upscaler.safetensors", {"dims": 3}, tensor=UPSCALES)
    assert limits_of(family.open(folder)) == ModelLimits(stages=(1, 2), num_inference_steps=8)


def test_a_tiny_model_and_the_test_pipeline_suit_a_cpu(folder: Path) -> None:
    assert not suits_a_cpu(family_of("my-model").open(folder))
    safetensors(folder / "weights.safetensors", {**CONFIG, "random_weights": True}, "2.0.0")
    assert suits_a_cpu(family_of("my-model").open(folder))
    assert suits_a_cpu(family_of("instant").open(folder.parent / "instant"))


def test_the_list_of_models_has_their_limits(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LTXQ_MODEL_DIR", str(folder.parent))
    assert main(["model", "list", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert models["my-model"]["limits"]["stages"] == [1]
    assert models["my-model"]["limits"]["max_side"] == 2048
    assert models["ltx-2-19b-distilled"]["limits"] is None  # it is not here
