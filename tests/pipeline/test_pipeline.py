"""The real pipeline on a CPU with a tiny model: what it gives, and how it refuses and stops."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltxq.errors import ConfigurationError, InvalidRequest, ModelUnusable, OutOfMemory
from ltxq.job import Stage, VideoRequest
from ltxq_worker.models.tiny.model import make_tiny
from ltxq_worker.pipeline import ClipStream, memory
from ltxq_worker.pipeline.fast.options import parse_shapes
from ltxq_worker.pipeline.ltx import PROMPTS_KEPT, LtxPipeline

Change = Callable[[dict[str, torch.Tensor]], object]
SMALL = VideoRequest(seed=42, prompt="a cat walks on the beach", height=64, width=64, num_frames=17)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "ltx-2-tiny"
    make_tiny(path)
    return path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> LtxPipeline:
    torch.set_num_threads(1)
    return LtxPipeline.load(folder, device="cpu")


@pytest.mark.parametrize("num_frames", [1, 9, 17])
def test_a_clip_has_the_frames_and_about_the_sound_asked_for(
    pipeline: LtxPipeline, num_frames: int
) -> None:
    request = SMALL.model_copy(update={"num_frames": num_frames, "width": 96})
    clip = pipeline.generate(request, ignore)
    chunks = list(clip.frames)
    assert all(chunk.dtype == np.uint8 and chunk.flags.c_contiguous for chunk in chunks)
    assert np.concatenate(chunks).shape == (num_frames, 64, 96, 3)
    assert clip.sound is not None
    assert clip.sound.samples.dtype == np.float32
    assert clip.sound.samples.shape[0] == 2
    assert np.abs(clip.sound.samples).max() <= 1
    seconds = clip.sound.samples.shape[1] / clip.sound.sample_rate
    assert seconds == pytest.approx(request.duration, abs=0.08)  # the audio latent's grain


def test_one_frame_may_be_shorter_than_any_sound(pipeline: LtxPipeline) -> None:
    short = SMALL.model_copy(update={"num_frames": 1, "frame_rate": 60.0})
    clip = pipeline.generate(short, ignore)
    assert clip.sound is not None
    assert clip.sound.samples.shape[1] > 0
    assert len(np.concatenate(list(clip.frames))) == 1


def test_a_seed_makes_the_same_clip_again_and_another_seed_another(pipeline: LtxPipeline) -> None:
    first, again = frames(pipeline, SMALL), frames(pipeline, SMALL)
    other = frames(pipeline, SMALL.model_copy(update={"seed": 43}))
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5


def test_another_prompt_makes_another_clip(pipeline: LtxPipeline) -> None:
    other = SMALL.model_copy(update={"prompt": "thunder over a dark sea"})
    assert np.abs(frames(pipeline, SMALL).astype(int) - frames(pipeline, other)).mean() > 1


def test_no_sound_is_made_when_none_is_asked_for(pipeline: LtxPipeline) -> None:
    silent = SMALL.model_copy(update={"audio": False})
    clip = pipeline.generate(silent, ignore)
    assert clip.sound is None
    assert np.array_equal(np.concatenate(list(clip.frames)), frames(pipeline, SMALL))


def test_progress_is_told_for_every_step_in_order(pipeline: LtxPipeline) -> None:
    told: list[tuple[Stage, int, int]] = []
    clip = pipeline.generate(SMALL, lambda stage, step, steps: told.append((stage, step, steps)))
    assert told == [
        ("encode_text", 0, 1),
        ("encode_text", 1, 1),
        *(("denoise", step, 8) for step in range(9)),
    ]
    told.clear()
    list(clip.frames)
    assert told == [("decode", 0, 17), ("decode", 17, 17)]


def test_progress_of_two_stages_is_one_count(pipeline: LtxPipeline) -> None:
    told: list[tuple[Stage, int, int]] = []
    request = SMALL.model_copy(update={"stages": 2})
    pipeline.generate(request, lambda *step: told.append(step))
    assert told[2:] == [("denoise", step, 11) for step in range(12)]


def test_two_stages_without_the_upscaler_are_refused_with_what_to_do(
    folder: Path, tmp_path: Path
) -> None:
    copy = copied(folder, tmp_path).rename(tmp_path / "ltx-2-19b-distilled")
    (copy / "spatial_upsampler.safetensors").unlink()
    pipeline = LtxPipeline.load(copy, device="cpu")
    with pytest.raises(InvalidRequest, match="no spatial upscaler") as caught:
        pipeline.generate(SMALL.model_copy(update={"stages": 2}), ignore)
    assert "`ltxq model download ltx-2-19b-distilled`" in caught.value.hint
    assert len(frames(pipeline, SMALL)) == 17


class Stop(Exception):
    """What a report raises to stop a job."""


@pytest.mark.parametrize("at", [("encode_text", 0), ("denoise", 3), ("decode", 0)])
def test_what_report_raises_stops_the_job_and_leaves_the_pipeline_usable(
    pipeline: LtxPipeline, at: tuple[Stage, int]
) -> None:
    before = frames(pipeline, SMALL)
    told: list[tuple[Stage, int]] = []

    def stop(stage: Stage, step: int, steps: int) -> None:
        told.append((stage, step))
        if (stage, step) == at:
            raise Stop

    with pytest.raises(Stop):
        list(pipeline.generate(SMALL, stop).frames)
    assert told[-1] == at
    assert np.array_equal(before, frames(pipeline, SMALL))


def test_no_autograd_graph_is_kept(pipeline: LtxPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while generating nor in the lazy decoding, whose caller is outside of both."""
    outputs: list[torch.Tensor] = []

    def watch(module: torch.nn.Module, args: object, output: object) -> None:
        outputs.extend(part for part in torch.utils._pytree.tree_leaves(output))

    parts = pipeline._parts
    model = parts.transformer.velocity_model
    watched = (
        *(model.proj_out, model.audio_proj_out),
        *(parts.video_decoder, parts.audio_decoder, parts.vocoder),
    )
    hooks = [part.register_forward_hook(watch) for part in watched]
    try:
        clip = pipeline.generate(SMALL, ignore)
        for _ in clip.frames:
            assert torch.is_grad_enabled()  # the caller's own mode is left alone
            assert not torch.is_inference_mode_enabled()
    finally:
        for hook in hooks:
            hook.remove()
    assert len(outputs) == 8 * 2 + 3
    assert all(output.is_inference() and output.grad_fn is None for output in outputs)


def test_a_prompt_is_encoded_once_while_it_is_among_the_last(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = LtxPipeline.load(folder, device="cpu")
    encoded: list[str] = []
    encode = pipeline._parts.text.encode
    monkeypatch.setattr(
        pipeline._parts.text,
        "encode",
        lambda prompt, padded: encoded.append(prompt) or encode(prompt, padded=padded),
    )
    for _ in range(2):
        pipeline._context("first")
    for number in range(PROMPTS_KEPT):
        pipeline._context(f"prompt {number}")
    assert encoded.count("first") == 1
    pipeline._context("first")
    assert encoded.count("first") == 2
    assert pipeline._context.cache_info().currsize == PROMPTS_KEPT


def test_a_prompt_of_too_many_tokens_is_refused_with_their_count(pipeline: LtxPipeline) -> None:
    ids, mask = pipeline._parts.text.tokenize("é" * 511)  # two bytes, two tokens each; and <bos>
    assert ids.shape == mask.shape == (1, 1024)
    assert mask.sum() == 1023
    too_long = SMALL.model_copy(update={"prompt": "é" * 512})
    with pytest.raises(InvalidRequest, match="1,025 tokens"):
        pipeline.generate(too_long, ignore)


def test_a_clip_the_memory_cannot_hold_is_refused_with_the_largest_that_fits(
    pipeline: LtxPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = memory.Shape(512, 768, 121)
    fits = memory.Shape(512, 768, 65)
    room = memory.bytes_needed(pipeline._config, fits)
    monkeypatch.setattr(memory, "available_ram", lambda: room)
    request = VideoRequest(seed=42, prompt="a", height=512, width=768, num_frames=121)
    with pytest.raises(OutOfMemory, match="768×512 with 121 frames") as caught:
        pipeline.generate(request, ignore)
    assert f"The largest that fits: {fits}." in caught.value.hint
    assert memory.bytes_needed(pipeline._config, shape) > room


@pytest.mark.parametrize("part", ["transformer.velocity_model.proj_out", "video_decoder"])
def test_running_out_of_memory_is_told_with_what_fits_and_leaves_the_pipeline_usable(
    pipeline: LtxPipeline, part: str
) -> None:
    def run_out(module: torch.nn.Module, args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = attrgetter(part)(pipeline._parts).register_forward_pre_hook(run_out)
    try:
        with pytest.raises(OutOfMemory, match="64×64 with 17 frames") as caught:
            list(pipeline.generate(SMALL, ignore).frames)
    finally:
        hook.remove()
    assert "with 17 frames" not in caught.value.hint  # not what was just tried
    assert caught.value.__context__ is None  # nothing holds the tensors of the failed run
    assert len(frames(pipeline, SMALL)) == 17


@pytest.mark.parametrize("users", [None, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_the_allocator_is_told_to_avoid_fragments_unless_the_user_says_otherwise(
    folder: Path, users: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that what loading sets is undone
        monkeypatch.delenv(name)
    if users:
        monkeypatch.setenv(users, "backend:native")
    LtxPipeline.load(folder, device="cpu")
    expected = (
        {users: "backend:native"}
        if users
        else {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    )
    assert {k: v for k, v in os.environ.items() if k.endswith("ALLOC_CONF")} == expected


def test_loading_tells_a_share_that_only_grows_and_ends_at_one(folder: Path) -> None:
    told: list[tuple[str, float]] = []
    LtxPipeline.load(folder, device="cpu", report=lambda *now: told.append(now))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert {"text encoder", "transformer", "video decoder", "vocoder"} <= {what for what, _ in told}


def test_warming_up_makes_clips_of_the_shapes_given(pipeline: LtxPipeline) -> None:
    seen: list[torch.Size] = []
    hook = pipeline._parts.video_decoder.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape)
    )
    try:
        pipeline.warm_up(parse_shapes("96x64x9, 64x64x1"))
    finally:
        hook.remove()
    assert [tuple(shape[2:]) for shape in seen] == [(2, 2, 3), (1, 2, 2)]


def test_versions_name_what_made_the_clip(pipeline: LtxPipeline) -> None:
    assert pipeline.versions["ltx-core"] == "1.0.0"
    assert pipeline.versions["checkpoint"] == "2.0.0"
    assert {"torch", "transformers"} < pipeline.versions.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_clear_error(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="no device cuda"):
        LtxPipeline.load(folder, device="cuda")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: weights.pop("model.diffusion_model.proj_out.bias"), "lacks weights"),
        (lambda weights: weights.pop("vae.per_channel_statistics.std-of-means"), "lacks weights"),
        (lambda weights: weights.pop("vocoder.conv_pre.weight"), "lacks weights of the vocoder"),
        (
            lambda weights: weights.update({"model.diffusion_model.extra": torch.zeros(1)}),
            "unknown weights of the transformer: extra",
        ),
        (
            lambda weights: weights.update({"model.diffusion_model.proj_out.bias": torch.ones(3)}),
            "misshapen",
        ),
    ],
)
def test_a_checkpoint_without_exactly_its_weights_is_refused(
    folder: Path, tmp_path: Path, change: Change, says: str
) -> None:
    with pytest.raises(ModelUnusable, match=says):
        load_changed(folder, tmp_path, "checkpoint.safetensors", change)


def test_statistics_the_decoders_do_not_use_may_be_there(folder: Path, tmp_path: Path) -> None:
    """The published files have them."""
    extra = {"vae.per_channel_statistics.channel": torch.zeros(128)}
    load_changed(folder, tmp_path, "checkpoint.safetensors", lambda weights: weights.update(extra))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: weights.popitem(), "missing keys"),
        (lambda weights: weights.update({"foreign.weight": torch.zeros(1)}), "unexpected keys"),
    ],
)
def test_a_gemma_without_exactly_its_weights_is_refused(
    folder: Path, tmp_path: Path, change: Change, says: str
) -> None:
    with pytest.raises(ModelUnusable, match=says):
        load_changed(folder, tmp_path, "gemma/model.safetensors", change)


def test_a_damaged_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    (copy / "gemma" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelUnusable, match="tokenizer"):
        LtxPipeline.load(copy, device="cpu")


def ignore(stage: Stage, step: int, steps: int) -> None:
    """A report nobody reads."""


def frames(pipeline: LtxPipeline, request: VideoRequest) -> np.ndarray:
    clip: ClipStream = pipeline.generate(request, ignore)
    return np.concatenate(list(clip.frames))


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "changed"))


def load_changed(folder: Path, tmp_path: Path, file: str, change: Change) -> None:
    """Load a copy of the model one of whose weight files was changed."""
    copy = copied(folder, tmp_path)
    weights = load_file(copy / file)
    with safe_open(copy / file, "pt") as opened:
        metadata = opened.metadata()
    change(weights)
    save_file(weights, copy / file, metadata)
    LtxPipeline.load(copy, device="cpu")
