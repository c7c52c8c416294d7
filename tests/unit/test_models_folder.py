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
from safetensors import SafetensorError, safe_open

import model_files
from ltxq.cli import main
from ltxq.errors import ConfigurationError, ModelUnusable
from ltxq.settings import Settings
from ltxq_worker.models.files.folder import ModelFolder
from ltxq_worker.pipeline.registry import ModelLimits, family_of, limits_of, suits_a_cpu
from model_files import (
    CONFIG,
    checkpoint_tensors,
    gemma_tensors,
    in_shards,
    safetensors,
    upscaler_tensors,
)

LAYER = "model.diffusion_model.transformer_blocks.1.attn1.to_q"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model of an LTX-2 kind, with a text encoder of its own."""
    return model_files.model(tmp_path / "my-model")


def checkpoint(folder: Path, version: str = "2.0.0", config: dict[str, Any] | None = None) -> Path:
    return safetensors(
        folder / "weights.safetensors", checkpoint_tensors(), config or CONFIG, version
    )


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
    upscaler = safetensors(
        folder / "a-spatial-upscaler.safetensors", upscaler_tensors(), {"dims": 3}
    )
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
        safetensors(folder / f"{name}.safetensors", upscaler_tensors(), config)
    safetensors(folder / "zz-lora.safetensors", {"to_q.lora_A.weight": (4, 4)})
    assert ModelFolder.open(folder).upscaler == folder / "upscaler-x2-1.1.safetensors"


def test_models_may_share_a_text_encoder_beside_them(folder: Path) -> None:
    shared = folder.parent / "gemma-3-12b-it"
    (folder / "gemma").rename(shared)
    assert ModelFolder.open(folder).text_encoder == shared


@pytest.mark.parametrize("version", ["", "2.0.0", "2.3.1", "2.3"])
def test_the_versions_it_can_run_are_taken(folder: Path, version: str) -> None:
    checkpoint(folder, version)
    assert ModelFolder.open(folder).version == version


@pytest.mark.parametrize("version", ["2.5", "2.10.0", "3.0", "v2.5.0", "LTX-2.5"])
def test_a_newer_checkpoint_is_refused_by_its_version(folder: Path, version: str) -> None:
    checkpoint(folder, version)
    with pytest.raises(ModelUnusable, match=f"LTX {version}, newer than"):
        ModelFolder.open(folder)


def test_an_older_or_other_model_is_refused(folder: Path) -> None:
    other = {"transformer": {"_class_name": "Transformer3DModel"}}
    checkpoint(folder, "0.9.7", other)
    with pytest.raises(ModelUnusable, match="not an LTX-2 audio-video model"):
        ModelFolder.open(folder)


def fp8_checkpoint(
    path: Path, scale: float = 0.5, **changed: tuple[str, tuple[int, ...]] | None
) -> Path:
    """A checkpoint with one weight in FP8 and its scale; `changed`: dtypes and shapes of them."""
    entries: dict[str, tuple[str, tuple[int, ...]] | None] = {
        "weight_scale": ("F32", ()),
        "weight": ("F8_E4M3", (4, 4)),
        **changed,
    }
    layer = {f"{LAYER}.{name}": entry for name, entry in entries.items() if entry}
    others = checkpoint_tensors(blocks=1) | {f"{LAYER.removesuffix('q')}k.weight": (4, 4)}
    safetensors(
        path,
        {name: shape for name, (_, shape) in layer.items()} | others,
        CONFIG,
        dtypes={name: dtype for name, (dtype, _) in layer.items()},
    )
    with path.open("r+b") as file:  # the scale is the first tensor
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        file.write(struct.pack("<f", scale))
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
            {"weight": ("BF16", (4, 2))},
            "scales without FP8 weights",
        ),
        (
            {"weight_scale": ("F32", (4,))},
            "not one F32",
        ),
        ({"weight_scale": ("BF16", ())}, "not one F32"),
        (
            {"weight": ("U8", (4, 4))},
            f"stores {LAYER}.weight as U8",
        ),
        (
            {"bias": ("F8_E5M2", (4,))},
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
    safetensors(folder / "second.safetensors", checkpoint_tensors(), CONFIG)
    with pytest.raises(ModelUnusable, match=r"2 checkpoints: second\.safetensors, weights"):
        ModelFolder.open(folder)


@pytest.mark.parametrize(
    "missing", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
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
    _, second = in_shards(encoder)
    assert ModelFolder.open(folder).text_encoder == encoder
    second.unlink()
    with pytest.raises(ModelUnusable, match=f"has no {second.name}"):
        ModelFolder.open(folder)


def test_a_shard_must_hold_what_the_index_places_in_it(folder: Path) -> None:
    first, second = in_shards(folder / "gemma")
    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelUnusable, match=rf"{second.name} is .*; it lacks weights that"):
        ModelFolder.open(folder)


def test_one_file_of_weights_is_looked_at_before_an_index(folder: Path) -> None:
    """As transformers does: it would load a stray file of another model."""
    encoder = folder / "gemma"
    in_shards(encoder)
    safetensors(encoder / "model.safetensors", gemma_tensors(generation=2))
    with pytest.raises(ModelUnusable, match="Gemma 2 of 4 layers"):
        ModelFolder.open(folder)


@pytest.mark.parametrize("file", ["weights.safetensors", "gemma/model.safetensors"])
@pytest.mark.parametrize("keep", [-1, -70, 40, 8, 4, 0])
def test_a_file_that_is_cut_short_is_refused(folder: Path, file: str, keep: int) -> None:
    path = folder / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelUnusable, match=r"cut short|unknown format|empty file") as caught:
        ModelFolder.open(folder)
    assert str(path) in caught.value.message
    if keep == -1:
        assert "cut short" in caught.value.message


def entry(**changed: Any) -> dict[str, Any]:
    return {"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changed}}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ([1, 2], "unknown format"),
        ({"weight": [1, 2, 3]}, "damaged header"),
        (entry(shape=[3]), "damaged header"),  # more numbers than bytes
        (entry(dtype="F128"), "damaged header"),
        (entry(shape=[2**80]), "damaged header"),
        (entry(shape=[10**4000] * 30), "damaged header"),
        (entry(data_offsets=[8, 16]), "damaged header"),  # a gap
        (entry() | {"other": entry()["weight"]}, "damaged header"),  # both in one place
        (entry(data_offsets=[-8, 0]), "damaged header"),
        (entry(shape=[4], data_offsets=[0, 16]), "is cut short: it has"),
        (entry(shape=[1], data_offsets=[0, 4]), "is too long: it has"),
    ],
)
def test_a_header_that_safetensors_would_refuse_is_refused_before_loading(
    folder: Path, header: Any, says: str
) -> None:
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(8)
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(ModelUnusable, match=says):
        ModelFolder.open(folder)
    with pytest.raises(SafetensorError):
        safe_open(folder / "weights.safetensors", "np")


@pytest.mark.parametrize("config", [None, {}, {"transformer": "yes"}, {"dims": 3}])
def test_weights_without_a_models_configuration_are_refused(
    folder: Path, config: dict[str, Any] | None
) -> None:
    safetensors(folder / "weights.safetensors", {"weight": (4,)}, config)
    with pytest.raises(ModelUnusable, match=r"no LTX-2 checkpoint: weights\.safetensors is"):
        ModelFolder.open(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match="is empty; a whole LTX-2"):
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
    safetensors(folder / "a-spatial-upscaler.safetensors", upscaler_tensors(), {"dims": 3})
    assert limits_of(family.open(folder)) == ModelLimits(stages=(1, 2), num_inference_steps=8)


def test_a_tiny_model_and_the_test_pipeline_suit_a_cpu(folder: Path) -> None:
    assert not suits_a_cpu(family_of("my-model").open(folder))
    checkpoint(folder, config={**CONFIG, "random_weights": True})
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


@pytest.mark.parametrize("variable", ["LTXQ_MODEL_DIR", "LTXQ_SPOOL_DIR"])
def test_an_empty_setting_is_not_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """As a variable that is not set leaves it: 70 GB would be downloaded there."""
    monkeypatch.delenv(variable, raising=False)
    unset = Settings.read()
    monkeypatch.setenv(variable, "")
    assert Settings.read() == unset
    monkeypatch.setenv(variable, " ")
    with pytest.raises(ConfigurationError, match=f"{variable}: must be a folder; unset it"):
        Settings.read()
