"""A part of the model that makes NaN or infinity fails the clip, and is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fleet import PATIENCE, Fleet, worker_environment
from ltxq.cli import main
from ltxq.errors import PermanentError
from ltxq.job import Stage, VideoRequest
from ltxq_worker.embedded.servers import S3Server
from ltxq_worker.encode.clip import encode
from ltxq_worker.models.tiny.model import make_tiny
from ltxq_worker.pipeline.decode.frames import tiles
from ltxq_worker.pipeline.decode.transfer import send_on_cpu
from ltxq_worker.pipeline.ltx import LtxPipeline
from variants import variants

SMALL = VideoRequest(seed=42, prompt="a cat", height=64, width=64, num_frames=17)
LARGER = SMALL.model_copy(update={"height": 128, "width": 128, "num_frames": 9})
NAN, INFINITY = float("nan"), float("inf")

# Part of the pipeline's modules, a weight in it, what that weight becomes, the part that is named.
PARTS = variants(
    ("text.gemma", "norm.weight", NAN, "text encoder"),
    ("transformer", "velocity_model.proj_out.bias", NAN, "transformer in stage 1"),
    ("transformer", "velocity_model.audio_proj_out.bias", NAN, "transformer in stage 1"),
    ("audio_decoder", "conv_out.conv.bias", NAN, "audio decoder"),
    ("vocoder", "conv_post.bias", NAN, "vocoder"),
    ("video_decoder", "conv_out.conv.bias", NAN, "video decoder"),
    ("video_decoder", "conv_out.conv.bias", INFINITY, "video decoder"),
    extended=(
        ("text.embeddings", "feature_extractor.aggregate_embed.weight", NAN, "text encoder"),
        ("transformer", "velocity_model.proj_out.bias", INFINITY, "transformer in stage 1"),
        ("audio_decoder", "conv_out.conv.bias", -INFINITY, "audio decoder"),
        ("video_decoder", "conv_out.conv.bias", -INFINITY, "video decoder"),
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(path)
    return path


@pytest.fixture(scope="module", params=variants("yuv420p", extended=("rgb24",)))
def pipeline(folder: Path, request: pytest.FixtureRequest) -> LtxPipeline:
    """Frames leave it as from a GPU, or as the library makes them."""
    if request.param == "rgb24":
        return LtxPipeline.load(folder, device="cpu", optimize="none")
    made = LtxPipeline.load(folder, device="cpu", optimize="hoist,decode")
    made._decoding._send, made._decoding.pixels = send_on_cpu, "yuv420p"
    return made


@contextmanager
def broken(pipeline: LtxPipeline, part: str, weight: str, value: float) -> Iterator[None]:
    """One number of a weight is `value` meanwhile."""
    module: Any = pipeline._parts
    for name in part.split("."):
        module = getattr(module, name)
    numbers = module.get_parameter(weight).data.view(-1)
    before = numbers[0].clone()
    numbers[0] = value
    try:
        yield
    finally:
        numbers[0] = before


def made(pipeline: LtxPipeline, request: VideoRequest, folder: Path) -> bytes:
    """The clip's MP4."""
    return encode(pipeline.generate(request, ignore), request, folder, ignore).mp4.read_bytes()


@pytest.mark.parametrize(("part", "weight", "value", "named"), PARTS)
def test_the_part_is_named_and_the_next_clip_is_whole(
    pipeline: LtxPipeline, tmp_path: Path, part: str, weight: str, value: float, named: str
) -> None:
    whole = made(pipeline, SMALL, tmp_path / "whole")
    pipeline._context.cache_clear()
    with broken(pipeline, part, weight, value), pytest.raises(PermanentError) as caught:
        made(pipeline, SMALL, tmp_path / "broken")
    assert named in caught.value.message
    assert "not finite" in caught.value.message
    assert caught.value.code == "internal"
    assert not list(tmp_path.glob("broken/*"))
    assert made(pipeline, SMALL, tmp_path / "again") == whole  # the prompt's context too


def test_without_sound_the_pictures_are_checked_all_the_same(
    pipeline: LtxPipeline, tmp_path: Path
) -> None:
    silent = SMALL.model_copy(update={"audio": False})
    with broken(pipeline, "vocoder", "conv_post.bias", NAN):
        made(pipeline, silent, tmp_path)
    with (
        broken(pipeline, "video_decoder", "conv_out.conv.bias", NAN),
        pytest.raises(PermanentError, match="video decoder"),
    ):
        made(pipeline, silent, tmp_path)


def test_of_two_stages_the_one_is_named(pipeline: LtxPipeline, tmp_path: Path) -> None:
    request = LARGER.model_copy(update={"stages": 2})
    with (
        broken(pipeline, "upsampler", "final_conv.bias", NAN),
        pytest.raises(PermanentError, match="upsampler"),
    ):
        made(pipeline, request, tmp_path)
    bias: Any = pipeline._parts.transformer.get_parameter("velocity_model.proj_out.bias").data
    before = bias[0].clone()

    def break_later(stage: Stage, step: int, _steps: int) -> None:
        if stage == "denoise" and step == 9:
            bias[0] = NAN

    try:
        with pytest.raises(PermanentError, match="transformer in stage 2"):
            list(pipeline.generate(request, break_later).frames)
    finally:
        bias[0] = before


def test_a_clip_that_is_decoded_in_tiles_is_checked_in_each(
    pipeline: LtxPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltxq_worker.pipeline.memory.PIXELS_UNTILED", 64 * 64 * 72)
    monkeypatch.setattr(pipeline, "_tilings", lambda shape: [tiles(shape)])
    request = SMALL.model_copy(update={"num_frames": 73})
    last = pipeline._decoding._decoder.conv_out
    calls: list[int] = []

    def break_the_last(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output * NAN if len(calls) == 2 else output

    hook = last.register_forward_hook(break_the_last)
    try:
        with pytest.raises(PermanentError, match="video decoder"):
            list(pipeline.generate(request, ignore).frames)
    finally:
        hook.remove()
    assert len(calls) == 2


def test_a_worker_whose_model_is_broken_does_not_start(
    broken_model: Path, redis_url: str, s3_server: S3Server, tmp_path: Path
) -> None:
    """Each job that it took would fail."""
    environment = worker_environment(redis_url, s3_server, tmp_path / "spool")
    environment["LTXQ_MODEL_DIR"] = str(broken_model.parent)
    with Fleet(environment, model=broken_model.name) as fleet:
        fleet.wait_for("cannot start: The video decoder made values that are not finite")
        assert fleet.supervisor.wait(PATIENCE) == 1


@pytest.fixture
def broken_model(folder: Path, tmp_path: Path) -> Path:
    """A model with a NaN in the last layer of its video decoder."""
    file = folder / "checkpoint.safetensors"
    weights = load_file(file)
    (name,) = (name for name in weights if name.endswith("vae.decoder.conv_out.conv.bias")
               and "audio" not in name)  # fmt: skip
    weights[name][0] = NAN
    copy = tmp_path / "model"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / file.name).unlink()
    with safe_open(file, "pt") as opened:
        save_file(weights, copy / file.name, opened.metadata())
    return copy


def test_generate_writes_no_black_clip(
    broken_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ("--width", "64", "--height", "64", "--num-frames", "9")
    clip = tmp_path / "fox.mp4"
    words = [
        "generate",
        "a fox",
        "--model",
        str(broken_model),
        "--device",
        "cpu",
        "-o",
        str(clip),
        *size,
    ]
    assert main(words) == 1
    assert "The video decoder made values that are not finite" in capsys.readouterr().err
    assert not clip.exists()


def test_frames_of_finite_numbers_are_as_before(folder: Path) -> None:
    """The check reads the decoder's output, and changes nothing of it."""
    one, other = (LtxPipeline.load(folder, device="cpu", optimize="none") for _ in range(2))
    other._decoding.finite_check = lambda: _Unchecked()  # type: ignore[method-assign]
    frames = [np.concatenate(list(p.generate(SMALL, ignore).frames)) for p in (one, other)]
    assert np.array_equal(*frames)


class _Unchecked:
    def note(self, *_: Any) -> None: ...

    @contextmanager
    def watching(self, *_: Any) -> Iterator[None]:
        yield

    def up_to_here(self) -> Any:
        return lambda: None


def ignore(stage: Stage, step: int, steps: int) -> None:
    """A report that does nothing."""
