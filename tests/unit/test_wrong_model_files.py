"""Each wrong file is named, with what it is, what is wanted and a way out. Without torch."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import model_files
from ltxq.cli import main
from ltxq.errors import ModelUnusable
from ltxq.settings import Settings
from ltxq_worker.cli.commands import ensure_tiny
from ltxq_worker.models.catalog import CATALOG
from ltxq_worker.models.files.folder import ModelFolder
from ltxq_worker.models.files.identify import describe
from model_files import (
    CONFIG,
    LTX,
    ROWS,
    checkpoint_tensors,
    gemma_tensors,
    safetensors,
    text_encoder,
    tokenizer,
    upscaler_tensors,
    write,
)

CHECKPOINT = "weights.safetensors"
Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model_files.model(tmp_path / "my-model")


def refused(folder: Path) -> ModelUnusable:
    with pytest.raises(ModelUnusable) as caught:
        ModelFolder.open(folder)
    assert caught.value.hint
    assert str(folder.parent) in caught.value.message
    return caught.value


def zipped(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(name, "x")
    return content.getvalue()


def pickled(folder: Path) -> bytes:
    """A pickle that makes this folder when it is loaded."""
    name = str(folder).encode()
    return b"\x80\x02cos\nmkdir\nX" + len(name).to_bytes(4, "little") + name + b"\x85R."


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 43000000000\n"
NO_SAFETENSORS = {
    "a GGUF file": b"GGUF\x03\0\0\0" + bytes(100),
    "a Git LFS pointer": POINTER,
    "an HTML page": b"\n<!DOCTYPE html><title>Sign in</title>",
    "an XML text": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a JSON text": b'{"error": "Access to model Lightricks/LTX-2 is restricted"}',
    "a Python pickle": pickled(Path("/nowhere")),
    "a PyTorch pickle": zipped("archive/data.pkl"),
    "a zip archive": zipped("ltx-2-19b-distilled.safetensors"),
    "a gzip archive": b"\x1f\x8b\x08" + bytes(50),
    "an empty file": b"",
    "full of zeros": bytes(5000),
    "a text": b"Access denied",
    "a file of an unknown format": bytes(range(128, 256)),
}


@pytest.mark.parametrize("what", NO_SAFETENSORS)
@pytest.mark.parametrize("file", [CHECKPOINT, "gemma/model.safetensors"])
def test_a_file_of_another_format_is_named(folder: Path, what: str, file: str) -> None:
    write(folder / file, NO_SAFETENSORS[what])
    message = refused(folder).message
    assert f"{folder / file} is {what}" in message
    assert message.endswith("; a safetensors file is wanted.")
    assert describe(folder / file).startswith(what)


def test_no_pickle_is_ever_loaded(folder: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    for name in (CHECKPOINT, "gemma/model.safetensors", "gemma/tokenizer.json"):
        write(folder / name, pickled(sprung))
        assert "pickle" in refused(folder).message
        (folder / name).unlink()
        model_files.model(folder)
    assert not sprung.exists()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/mnt/gone/blob")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (a_folder, "a folder"),
        (a_dangling_link, "a symbolic link to /mnt/gone/blob, which does not exist"),
        (a_pipe, "not a regular file"),
    ],
)
@pytest.mark.parametrize(
    "file",
    [
        CHECKPOINT, "gemma/model.safetensors", "gemma/config.json",
        "gemma/tokenizer.json", "gemma/tokenizer_config.json",
    ],
)  # fmt: skip
def test_what_is_no_file_is_named_and_not_waited_for(
    folder: Path, change: Change, what: str, file: str
) -> None:
    change(folder / file)
    assert f"{folder / file} is {what}" in refused(folder).message


@pytest.mark.parametrize("name", ["my-model", "my-model/gemma"])
@pytest.mark.parametrize("link", [False, True])
def test_a_file_in_place_of_a_folder(folder: Path, name: str, link: bool) -> None:
    place = folder.parent / name
    place.rename(folder.parent / "elsewhere")
    place.symlink_to("/mnt/gone") if link else write(place, POINTER)
    error = refused(folder)
    what = "a symbolic link to /mnt/gone, which" if link else "a Git LFS pointer"
    assert f"{place} is {what}" in error.message
    assert "a folder with" in error.message
    assert "away" in error.hint


TRANSFORMER = {n: s for n, s in checkpoint_tensors().items() if n.startswith(LTX)}
NO_CHECKPOINT: dict[str, model_files.Shapes] = {
    "an adapter (LoRA)": {"diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight": (4, 4)},
    "an adapter (LoRA),": {"lora_unet_blocks_0_attn.lora_down.weight": (4, 4)},
    "a part of an LTX-2 checkpoint, without text projection, video decoder": TRANSFORMER,
    "an LTX-2 transformer alone, as diffusers or ComfyUI": {
        "transformer_blocks.0.attn1.to_q.weight": (4, 4),
        "proj_in.weight": (4, 4),
        "audio_proj_in.weight": (4, 4),
    },
    "an LTX-Video (0.9) model, the older family": {
        f"{LTX}patchify_proj.weight": (4, 4),
        f"{LTX}transformer_blocks.0.attn1.to_q.weight": (4, 4),
        "vae.decoder.conv_in.conv.weight": (4,),
    },
    "a video VAE alone": {"vae.decoder.conv_in.conv.weight": (4,)},
    "a VAE alone": {"decoder.conv_in.conv.weight": (4,), "encoder.conv_in.conv.weight": (4,)},
    "an audio VAE and vocoder alone": {"audio_vae.a": (4,), "vocoder.b": (4,)},
    "a spatial x2 upscaler": upscaler_tensors(),
    "a temporal upscaler": upscaler_tensors("temporal"),
    "a text encoder, Gemma 3 of 4 layers and width 64": gemma_tensors(),
    "a T5 text encoder": {"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4)},
    "a Wan transformer": {"blocks.0.cross_attn.q.weight": (4, 4)},
    "a transformer of the FLUX": {"double_blocks.0.img_attn.qkv.weight": (4, 4)},
    "a safetensors file without weights": {},
}


@pytest.mark.parametrize("what", NO_CHECKPOINT)
def test_weights_that_are_no_checkpoint_are_named(folder: Path, what: str) -> None:
    safetensors(folder / CHECKPOINT, NO_CHECKPOINT[what])
    message = refused(folder).message
    assert f"{folder} has no LTX-2 checkpoint: {CHECKPOINT} is {what}" in message
    assert "a whole LTX-2 or LTX-2.3 checkpoint is wanted" in message


@pytest.mark.parametrize("lacking", ["vae.decoder.", "audio_vae.", "vocoder.", "text_embedding_"])
def test_a_split_checkpoint_says_which_part_is_missing(folder: Path, lacking: str) -> None:
    """ComfyUI's files of parts carry the whole configuration."""
    tensors = {n: s for n, s in checkpoint_tensors().items() if not n.startswith(lacking)}
    safetensors(folder / CHECKPOINT, tensors, CONFIG, "2.0.0")
    message = refused(folder).message
    assert f"{folder / CHECKPOINT} is a part of an LTX-2 checkpoint, without " in message


PARTS_BESIDE: dict[str, Callable[[str], bool]] = {
    "an adapter": lambda name: name.endswith("lora_A.weight"),
    "a VAE": lambda name: name.startswith("vae."),
    "a transformer": lambda name: name.startswith(LTX),
}


@pytest.mark.parametrize("what", PARTS_BESIDE)
def test_a_part_with_the_whole_configuration_beside_a_checkpoint_is_left_alone(
    folder: Path, what: str
) -> None:
    every = checkpoint_tensors() | {f"{LTX}transformer_blocks.0.attn1.to_q.lora_A.weight": (4, 4)}
    tensors = {name: shape for name, shape in every.items() if PARTS_BESIDE[what](name)}
    safetensors(folder / "a-part.safetensors", tensors, CONFIG, "2.0.0")
    assert ModelFolder.open(folder).checkpoint.name == CHECKPOINT


@pytest.mark.parametrize("config", [CONFIG, None])
def test_a_checkpoint_in_shards_is_named(folder: Path, config: dict[str, Any] | None) -> None:
    (folder / CHECKPOINT).unlink()
    names = sorted(checkpoint_tensors() | {f"{LTX}transformer_blocks.0.audio_ff.weight": (4,)})
    for number in (0, 1):
        tensors = dict.fromkeys(names[number::2], (4, 4))
        safetensors(folder / f"model-{number}.safetensors", tensors, config, "2.0.0")
    message = refused(folder).message
    for number in (0, 1):
        assert f"model-{number}.safetensors is a part of an LTX-2 checkpoint, without" in message


@pytest.mark.parametrize("file", [CHECKPOINT, "gemma/model.safetensors"])
@pytest.mark.parametrize(("suffix", "program"), [(".aria2", "aria2"), (".st", "axel")])
def test_a_download_of_another_program_that_is_not_complete(
    folder: Path, file: str, suffix: str, program: str
) -> None:
    """Its file has the right size from the start."""
    notes = write(folder / f"{file}{suffix}", b"\0\1")
    error = refused(folder)
    assert f"{folder / file} is not complete: {program} downloads it" in error.message
    assert f"Move {notes.name} out of {notes.parent}" in error.hint
    notes.unlink()
    ModelFolder.open(folder)


@pytest.mark.parametrize("dtype", ["U8", "F8_E5M2"])
@pytest.mark.parametrize("weight", ["vae.decoder.conv_in.conv.weight", "vocoder.conv_pre.weight"])
def test_numbers_that_would_be_read_as_others_are_named_in_every_part(
    folder: Path, weight: str, dtype: str
) -> None:
    """bitsandbytes' bytes would become weights of up to 255."""
    dtypes = {weight: dtype}
    safetensors(folder / CHECKPOINT, checkpoint_tensors(), CONFIG, "2.0.0", dtypes=dtypes)
    assert f"stores {weight} as {dtype}, which ltxq cannot load" in refused(folder).message


def test_an_upscaler_in_other_numbers_is_named(folder: Path) -> None:
    file = safetensors(folder / "up.safetensors", upscaler_tensors(), {}, dtype="F8_E4M3")
    assert f"{file} stores weights as F8_E4M3; an upscaler in bf16" in refused(folder).message


def test_a_repository_in_the_cache_of_hugging_face_is_named(folder: Path) -> None:
    snapshot = folder / "snapshots" / "aaaa"
    snapshot.mkdir(parents=True)
    (folder / CHECKPOINT).rename(snapshot / CHECKPOINT)
    error = refused(folder)
    assert f"{folder} is a repository in the cache of Hugging Face." in error.message
    assert f"HF_HUB_CACHE to {folder.parent}" in error.hint
    (folder / "gemma").rename(snapshot / "gemma")
    assert ModelFolder.open(snapshot).checkpoint.name == CHECKPOINT


SOUND = re.compile("audio|vocoder")


def test_an_older_checkpoint_that_carries_a_newer_configuration_is_named(folder: Path) -> None:
    tensors = {n: s for n, s in checkpoint_tensors().items() if not SOUND.search(n)}
    safetensors(folder / CHECKPOINT, tensors, CONFIG, "2.0.0")
    assert "is an LTX-Video (0.9) model" in refused(folder).message


def test_a_checkpoint_with_fewer_blocks_than_it_describes(folder: Path) -> None:
    safetensors(folder / CHECKPOINT, checkpoint_tensors(blocks=1), CONFIG, "2.0.0")
    assert "has 1 of the 2 transformer blocks" in refused(folder).message


def test_a_dev_checkpoint_is_told_by_its_name(folder: Path) -> None:
    (folder / CHECKPOINT).rename(folder / "ltx-2-19b-dev.safetensors")
    assert "by its name a dev checkpoint" in refused(folder).message


@pytest.mark.parametrize(
    ("name", "version", "kind"),
    [("ltx-2-19b-distilled", "2.3.0", "LTX-2.3"), ("ltx-2.3-22b-distilled", "2.0.0", "LTX-2")],
)
def test_a_checkpoint_of_another_version_than_the_models_name(
    tmp_path: Path, name: str, version: str, kind: str
) -> None:
    """Clients would get another model's clips under this name."""
    file, _ = CATALOG[name].weights.files
    error = refused(model_files.model(tmp_path / name, version, file))
    assert f"is an {kind} checkpoint; the model {name} is LTX-2" in error.message
    assert f"`ltxq model download {name}`" in error.hint


def test_a_temporal_upscaler_under_a_spatial_ones_name(folder: Path) -> None:
    file = folder / "ltx-2-spatial-upscaler-x2-1.0.safetensors"
    safetensors(file, upscaler_tensors("temporal"), {})
    error = refused(folder)
    assert f"{file} is a temporal upscaler" in error.message
    assert "spatial x2 upscaler, which is wanted" in error.message


def test_an_upscaler_of_another_version_is_not_used(folder: Path) -> None:
    other = folder / "ltx-2.3-spatial-upscaler-x2-1.1.safetensors"
    safetensors(other, upscaler_tensors(), {})
    assert f"{other} is by its name an upscaler for another" in refused(folder).message
    mine = safetensors(folder / "ltx-2-spatial-upscaler-x2-1.0.safetensors", upscaler_tensors(), {})
    assert ModelFolder.open(folder).upscaler == mine


def of_size(width: int, layers: int) -> Change:
    return lambda gemma: text_encoder(gemma, width, layers)


def described(**config: Any) -> Change:
    def change(gemma: Path) -> None:
        file = gemma / "config.json"
        write(file, json.loads(file.read_bytes()) | config)

    return change


def weights(tensors: model_files.Shapes, **dtype: str) -> Change:
    return lambda gemma: safetensors(gemma / "model.safetensors", tensors, **dtype)  # type: ignore[arg-type]


PACKED = {"language_model.model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4": (4,)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (of_size(32, 4), "is Gemma 3 of 4 layers and width 32; weights.safetensors wants a Gemma"),
        (of_size(64, 6), "is Gemma 3 of 6 layers and width 64; weights.safetensors wants a Gemma"),
        (described(model_type="gemma3_text"), "describes the text-only form of Gemma 3"),
        (described(model_type="gemma2"), "describes a gemma2 model"),
        (described(model_type="gemma4_unified"), "describes a gemma4_unified model"),
        (described(model_type="t5"), "describes a t5 model"),
        (
            described(quantization_config={"quant_method": "bitsandbytes"}),
            r"describes packed weights \(bitsandbytes\)",
        ),
        (described(text_config={"hidden_size": 32}), "they are of two models"),
        (weights(gemma_tensors(generation=2)), "are a text encoder, Gemma 2 of 4 layers"),
        (
            weights({n: s for n, s in gemma_tensors().items() if "vision" not in n}),
            "are Gemma 3 of 4 layers and width 64, the text-only form",
        ),
        (weights({"q.lora_A.weight": (4, 4)}), "are an adapter"),
        (weights({"encoder.block.0.layer.0.q": (4,)}), "are a T5 text encoder"),
        (weights(TRANSFORMER), "are a part of an LTX-2 checkpoint"),
        (weights({**gemma_tensors(), **PACKED}), "are packed or stored as"),
        (weights(gemma_tensors(), dtype="U8"), "are packed or stored as U8"),
        (weights(gemma_tensors(), dtype="F8_E4M3"), "are packed or stored as F8_E4M3"),
        (lambda g: write(g / "tokenizer.json", tokenizer(ROWS - 20)), "a tokenizer of 470 tokens"),
        (lambda g: write(g / "tokenizer.json", tokenizer(ROWS + 1)), "of another model"),
        (lambda g: write(g / "tokenizer.json", {}), "is no tokenizer of Gemma's kind"),
        (lambda g: write(g / "tokenizer.json", b'{"model": {"voc'), "json is damaged; a whole"),
        (lambda g: write(g / "config.json", POINTER), "is a Git LFS pointer"),
        (lambda g: write(g / "tokenizer_config.json", b""), "is an empty file"),
        (
            lambda g: (g / "config.json").rename(g / "Config.JSON"),
            "has no config.json, but Config.JSON",
        ),
    ],
)
def test_a_text_encoder_of_another_kind_is_named(folder: Path, change: Change, says: str) -> None:
    change(folder / "gemma")
    with pytest.raises(ModelUnusable, match=says) as caught:
        ModelFolder.open(folder)
    assert str(folder / "gemma") in caught.value.message
    assert re.search(r"gemma|Rename|text encoder that", caught.value.hint)


@pytest.mark.parametrize(
    ("width", "layers", "name"),
    [(2560, 34, "Gemma 3 4B"), (5376, 62, "Gemma 3 27B"), (1152, 26, "Gemma 3 1B")],
)
@pytest.mark.parametrize("newer", [False, True])
def test_a_gemma_of_another_size_is_blamed_and_not_the_checkpoint(
    tmp_path: Path, width: int, layers: int, name: str, newer: bool
) -> None:
    """In the published sizes."""
    model = "ltx-2.3-22b-distilled" if newer else "ltx-2-19b-distilled"
    file, _ = CATALOG[model].weights.files
    folder = tmp_path / model
    tensors = checkpoint_tensors(3840, 48, newer=newer)
    safetensors(folder / file, tensors, CONFIG, "2.3.0" if newer else "2.0.0")
    encoder = text_encoder(tmp_path / "gemma-3-12b-it", width, layers)
    error = refused(folder)
    assert error.message == (
        f"The text encoder {encoder} is {name} of {layers} layers and width {width:,}; {file} "
        "wants Gemma 3 12B (google/gemma-3-12b-it)."
    )
    assert "checkpoint is not at fault" in error.hint
    assert "`ltxq model download gemma-3-12b-it`" in error.hint
    text_encoder(encoder, 3840, 48)
    assert ModelFolder.open(folder).text_encoder == encoder


@pytest.mark.parametrize("name", ["gemma-3-12b-it-q4_0.gguf", "adapter_model.safetensors"])
def test_weights_under_another_name_are_said_to_be_there(folder: Path, name: str) -> None:
    (folder / "gemma/model.safetensors").unlink()
    file = folder / "gemma" / name
    if file.suffix == ".gguf":
        write(file, b"GGUF" + bytes(60))
    else:
        safetensors(file, {"q_proj.lora_A.weight": (4, 4)})
    message = refused(folder).message
    assert f"has no model.safetensors ({name} is a" in message


def test_names_in_other_letters_are_said_to_be_there(folder: Path) -> None:
    """As copies from other file systems have them."""
    (folder / CHECKPOINT).rename(folder / "Weights.SAFETENSORS")
    assert refused(folder).hint == "Rename Weights.SAFETENSORS to Weights.safetensors."
    other = folder.rename(folder.with_name("My-Model"))
    assert f"There is no model folder {folder}, but My-Model." in refused(folder).message
    (other / "Weights.SAFETENSORS").rename(other / CHECKPOINT)
    (other / "gemma").rename(folder.parent / "Gemma-3-12B-it")
    assert "Rename Gemma-3-12B-it to gemma-3-12b-it." in refused(other).hint


def test_a_model_in_parts_as_diffusers_stores_it(folder: Path) -> None:
    (folder / CHECKPOINT).unlink()
    write(folder / "model_index.json", {})
    assert f"{folder} is a model in parts, as diffusers stores it" in refused(folder).message


def test_a_checkpoint_in_place_of_its_folder(folder: Path) -> None:
    """As given to `ltxq generate --model`."""
    error = refused(folder / CHECKPOINT)
    assert "is an LTX-2 checkpoint; a folder with a model's files is wanted." in error.message
    assert error.hint == "Name the folder that it is in."


@pytest.mark.parametrize("marker", ["scaled_fp8", f"{LTX}patchify_proj.scale_weight"])
def test_fp8_in_comfyui_s_form_is_named(folder: Path, marker: str) -> None:
    layer = f"{LTX}transformer_blocks.1.attn1.to_q.weight"
    tensors = checkpoint_tensors() | {marker: (2,)}
    dtypes = {layer: "F8_E4M3", marker: "F8_E4M3"}
    safetensors(folder / CHECKPOINT, tensors, CONFIG, "2.0.0", dtypes=dtypes)
    assert "stores FP8 weights as ComfyUI does" in refused(folder).message


def test_a_header_of_hostile_length_is_not_read(folder: Path) -> None:
    """It would take twenty times its length in memory."""
    length = 50_000_000
    with (folder / CHECKPOINT).open("wb") as file:
        file.write(length.to_bytes(8, "little") + b'{"a":[')
        file.truncate(8 + length)
    assert "of an unknown format" in refused(folder).message


def test_a_folder_of_many_files_is_told_in_a_line(folder: Path) -> None:
    (folder / CHECKPOINT).unlink()
    for number in range(50):
        write(folder / f"a{number:02}.txt", b"x")
    write(folder / "z.gguf", b"GGUF")
    (folder / os.fsdecode(b"\xff.bin")).write_bytes(b"\x80\x02}")
    message = refused(folder).message
    assert "z.gguf is a GGUF file" in message
    assert "; and 49 more; a whole LTX-2" in message
    assert main(["model", "list"]) == 0


def test_a_file_in_place_of_the_folder_for_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LTXQ_MODEL_DIR", str(write(tmp_path / "models", b"x")))
    assert main(["model", "list"]) == 2
    assert "models cannot be read: Not a directory. LTXQ_MODEL_DIR" in said(capsys)
    assert main(["model", "download", "ltx-2-19b-distilled"]) == 2
    assert "models is a text; a folder is wanted. Move it away" in said(capsys)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_the_tiny_model_does_not_replace_a_user_s_file(tmp_path: Path) -> None:
    """Of that name; `ltxq demo` makes one there."""
    file, foreign, real, encoder = (tmp_path / name / "tiny" for name in "abcd")
    write(file, b"mine")
    for folder in (foreign, real, encoder):
        model_files.model(folder, checkpoint="checkpoint.safetensors")
    write(foreign / CHECKPOINT, b"mine")
    (real / "gemma" / "config.json").unlink()
    (encoder / "checkpoint.safetensors").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for place in (file, foreign, real, encoder):
        with pytest.raises(ModelUnusable):
            ensure_tiny(Settings(model_dir=place.parent))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_list_of_models_names_the_wrong_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder / CHECKPOINT, POINTER)
    monkeypatch.setenv("LTXQ_MODEL_DIR", str(folder.parent))
    assert main(["model", "list"]) == 0
    assert f"{folder / CHECKPOINT} is a Git LFS pointer" in capsys.readouterr().out
    assert main(["model", "list", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert models["my-model"]["hint"].startswith(f"Move it out of {folder}")


@pytest.mark.parametrize("by_path", [False, True])
def test_the_command_in_a_hint_is_for_the_folder_that_was_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by_path: bool
) -> None:
    """A download to LTXQ_MODEL_DIR would not help a model that is elsewhere."""
    elsewhere = folder.parent / "my models"
    (folder / "gemma").rename(folder.parent / "gemma")
    elsewhere.mkdir()
    model = folder.rename(elsewhere / "model")
    monkeypatch.setenv("LTXQ_MODEL_DIR", str(folder.parent if by_path else elsewhere))
    monkeypatch.chdir(folder.parent)
    name = "my models/model" if by_path else "model"
    assert main(["generate", "x", "--model", name, "-o", "x.mp4"]) == 1
    err = said(capsys)
    assert f"{model} has no text encoder" in err
    place = f"LTXQ_MODEL_DIR='{elsewhere}' " if by_path else ""
    assert f"`{place}ltxq model download gemma-3-12b-it`" in err


def test_two_stages_without_an_upscaler_are_refused_before_torch_is_imported(folder: Path) -> None:
    words = ["-m", "ltxq", "generate", "x", "--stages", "2", "--width", "64", "--height", "64"]
    words += ["--num-frames", "9", "--model", str(folder), "-o", str(folder.parent / "x.mp4")]
    done = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert done.returncode == 2
    assert "stages: must be 1: my-model has no spatial upscaler" in done.stderr
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)


@pytest.mark.parametrize("name", ["My Model", "a" * 65, "модель"])
def test_a_folder_whose_name_no_job_can_have(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Before any server is started."""
    folder.rename(folder.with_name(name))
    monkeypatch.setenv("LTXQ_MODEL_DIR", str(folder.parent))
    assert main(["up", "--model", name, "--data", str(folder.parent / "data")]) == 1
    err = said(capsys)
    assert f"No worker can serve a model called {name!r}: the name must be a model's" in err
    assert "rename the folder" in err
    assert not (folder.parent / "data").exists()
    assert main(["worker", "--model", name]) == 1
    assert "rename the folder" in said(capsys)
    assert main(["model", "list", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert not models[name]["usable"]
    assert "rename the folder" in models[name]["hint"]
