"""Frames as the optimizations `decode` and `frames` make them: against the library's decoder, and
against the encoder's own colours.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from ltx_core.model.video_vae import decode_video

from ltxq.job import Stage, VideoRequest
from ltxq_worker.encode import mp4 as encode_mp4
from ltxq_worker.encode.clip import encode
from ltxq_worker.models.tiny.model import make_tiny
from ltxq_worker.pipeline import ClipStream, memory
from ltxq_worker.pipeline.decode import transfer as delivery
from ltxq_worker.pipeline.decode.decoder import channels_last
from ltxq_worker.pipeline.decode.transfer import Fetch, as_yuv420, send_on_cpu
from ltxq_worker.pipeline.decode.yuv import to_yuv420
from ltxq_worker.pipeline.ltx import LtxPipeline

SMALL = VideoRequest(prompt="a cat", height=64, width=96, num_frames=17, seed=1)


@pytest.fixture(scope="module", params=["ltx-2-19b", "ltx-2.3-22b"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("models") / request.param
    make_tiny(path, request.param)
    return path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> LtxPipeline:
    return LtxPipeline.load(folder, device="cpu", optimize="hoist")


@pytest.fixture(scope="module")
def fast(folder: Path) -> LtxPipeline:
    return LtxPipeline.load(folder, device="cpu", optimize="hoist,decode")


@pytest.mark.parametrize("causal", [False, True])
@torch.inference_mode()
def test_channels_last_equals_the_library_in_float32(pipeline: LtxPipeline, causal: bool) -> None:
    decoder = copy.deepcopy(pipeline._parts.video_decoder).float()
    decoder.causal = causal
    latent = torch.randn(1, 128, 3, 2, 3, generator=torch.Generator().manual_seed(1))
    theirs = decoder(latent)
    ours = channels_last(decoder)(latent)
    assert ours.shape == theirs.shape
    assert float((ours - theirs).norm() / theirs.norm()) < 3e-6
    assert torch.equal(decoder(latent), theirs)  # the library's is as it was


@torch.inference_mode()
def test_frames_of_16_bits_differ_by_rounding_alone(pipeline: LtxPipeline) -> None:
    decoder = pipeline._parts.video_decoder
    latent = torch.randn(1, 128, 3, 2, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = copy.deepcopy(decoder).float()(latent.float())

    def error(decoder: torch.nn.Module) -> float:
        return float((decoder(latent).float() - exact).norm() / exact.norm())

    assert error(channels_last(decoder)) < 1.3 * error(decoder)
    theirs = next(decode_video(latent, decoder)).int()
    ours = next(decode_video(latent, channels_last(decoder))).int()
    assert int((ours - theirs).abs().max()) <= 4
    assert float((ours - theirs).abs().float().mean()) < 0.5


@torch.inference_mode()
def test_every_convolution_gets_its_channels_last(pipeline: LtxPipeline) -> None:
    decoder = channels_last(pipeline._parts.video_decoder)
    seen: list[bool] = []

    def watch(x: torch.Tensor, weight: torch.Tensor, *args: Any) -> torch.Tensor:
        seen.extend(t.is_contiguous(memory_format=torch.channels_last_3d) for t in (x, weight))
        return torch.nn.functional.conv3d(x, weight, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltxq_worker.pipeline.decode.decoder.conv3d", watch)
        decoder(torch.randn(1, 128, 2, 2, 2).bfloat16())
    assert len(seen) > 20
    assert all(seen)


def test_a_clip_is_decoded_in_one_piece_where_memory_allows(
    pipeline: LtxPipeline, fast: LtxPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SMALL.model_copy(update={"num_frames": 73})
    monkeypatch.setattr(memory, "PIXELS_UNTILED", 64 * 96 * 72)
    shape = memory.Shape(64, 96, 73)
    whole = memory.bytes_needed(fast._config, shape, in_one_piece=True)
    assert count_of_decodings(pipeline, request) == 2
    assert count_of_decodings(fast, request) == 1
    monkeypatch.setattr(memory, "bytes_needed", lambda *_, **how: whole if how else 1)
    monkeypatch.setattr(fast, "_budget", lambda: whole - 1)
    assert count_of_decodings(fast, request) == 2


def test_a_clip_that_did_not_fit_in_one_piece_after_all_is_decoded_in_tiles(
    fast: LtxPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SMALL.model_copy(update={"num_frames": 73})
    monkeypatch.setattr(memory, "PIXELS_UNTILED", 64 * 96 * 72)

    def full(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if args[0].shape[2] == 10:  # all of its latent frames
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = fast._decoding._decoder.register_forward_pre_hook(full)
    try:
        chunks = list(fast.generate(request, ignore).frames)
    finally:
        hook.remove()
    assert sum(map(len, chunks)) == 73


def test_a_decoder_that_cudnn_refuses_with_channels_last_is_the_librarys_from_then_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> torch.Tensor:
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    pipeline = LtxPipeline.load(folder, device="cpu", optimize="hoist,decode")
    hoist = LtxPipeline.load(folder, device="cpu", optimize="hoist")
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("ltxq_worker.pipeline.decode.decoder.conv3d", refuse)
        ours = np.concatenate(list(pipeline.generate(SMALL, ignore).frames))
    assert np.array_equal(ours, np.concatenate(list(hoist.generate(SMALL, ignore).frames)))
    assert str(pipeline.optimizations) == "hoist"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "'decode' is now off" in line
    assert "unable to find an engine" in line


def test_colours_are_halved_by_cudnn_without_rounding_to_ten_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[tuple[bool, bool]] = set()

    def look(*args: Any, **options: Any) -> torch.Tensor:
        seen.add((torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32))
        return torch.nn.functional.conv2d(*args, **options)

    monkeypatch.setattr("ltxq_worker.pipeline.decode.yuv.conv2d", look)
    to_yuv420(torch.from_numpy(waves()))
    assert seen == {(True, False)}


@pytest.mark.parametrize("picture", ["noise", "waves", "edges"])
def test_colours_are_the_encoders_own_within_one_of_255(picture: str) -> None:
    frames = PICTURES[picture]()
    ours = to_yuv420(torch.from_numpy(frames)).numpy().astype(int)
    theirs = np.stack(
        [
            encode_mp4.as_yuv420(av.VideoFrame.from_ndarray(frame, format="rgb24")).to_ndarray()
            for frame in frames
        ]
    )
    assert ours.shape == theirs.shape == (2, 96, 96)
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(ours - theirs).mean() < 0.1


def test_a_part_is_sent_before_the_one_before_it_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "FRAMES_AT_ONCE", 2)
    happened: list[str] = []

    def send(part: torch.Tensor) -> Fetch:
        happened.append(f"send {len(part)}")

        def fetch() -> Any:
            happened.append(f"fetch {len(part)}")
            return part.numpy()

        return fetch

    def chunks() -> Iterator[torch.Tensor]:
        for count in (3, 4):
            happened.append("decode")
            yield torch.zeros(count, 64, 64, 3, dtype=torch.uint8)

    taken = list(as_yuv420(chunks(), (slice(None), slice(None)), send))
    assert [len(chunk) for chunk in taken] == [2, 1, 2, 2]
    assert happened == [
        *("decode", "send 2", "send 1", "fetch 2"),
        *("decode", "send 2", "fetch 1", "send 2", "fetch 2", "fetch 2"),
    ]


@pytest.mark.parametrize("crop", [{}, {"crop_width": 90, "crop_height": 58}], ids=["whole", "cut"])
def test_files_from_yuv_frames_look_as_those_from_rgb(crop: dict[str, int], tmp_path: Path) -> None:
    request = VideoRequest(prompt="a", height=64, width=96, num_frames=9, seed=1, **crop)
    frames = np.concatenate([waves() for _ in range(5)])[:9]
    left, top = (96 - request.output_size[0]) // 2, (64 - request.output_size[1]) // 2
    part = slice(top, 64 - top), slice(left, 96 - left)
    yuv = as_yuv420(iter([torch.from_numpy(frames)]), part, send_on_cpu)
    ours = encode(
        ClipStream(frames=yuv, sound=None, pixels="yuv420p"), request, tmp_path / "yuv", ignore
    )
    theirs = encode(
        ClipStream(frames=iter([frames]), sound=None), request, tmp_path / "rgb", ignore
    )
    assert (ours.width, ours.height) == (theirs.width, theirs.height) == request.output_size
    for file in ("mp4", "poster", "spritesheet"):
        mine, its = pictures(getattr(ours, file)), pictures(getattr(theirs, file))
        assert mine.shape == its.shape
        assert np.abs(mine.astype(int) - its).mean() < 2.5
        assert its.std() > 20
    assert about(ours.mp4) == about(theirs.mp4)
    shown = pictures(ours.poster)[0, 4:-4, 4:-4].reshape(-1, 3).mean(axis=0)
    as_made = frames[0, part[0], part[1]][4:-4, 4:-4].reshape(-1, 3).mean(axis=0)
    assert np.abs(shown - as_made).max() < 3


def test_the_pipeline_gives_yuv_frames_cropped_and_its_sound(folder: Path) -> None:
    request = SMALL.model_copy(update={"crop_width": 90, "crop_height": 58})
    hoist = LtxPipeline.load(folder, device="cpu", optimize="hoist")
    clip = hoist.generate(request, ignore)
    rgb = np.concatenate(list(clip.frames))
    hoist._decoding._send, hoist._decoding.pixels = send_on_cpu, "yuv420p"  # as on a GPU
    other = hoist.generate(request, ignore)
    yuv = np.concatenate(list(other.frames))
    assert other.pixels == "yuv420p"
    assert np.array_equal(yuv, to_yuv420(torch.from_numpy(rgb[:, 3:61, 3:93])).numpy())
    assert clip.sound is not None
    assert other.sound is not None
    assert np.array_equal(other.sound.samples, clip.sound.samples)
    assert other.sound.sample_rate == clip.sound.sample_rate


def test_a_clip_tells_how_long_its_stages_took(fast: LtxPipeline) -> None:
    clip = fast.generate(SMALL, ignore)
    assert clip.timings == {}
    list(clip.frames)
    assert list(clip.timings) == ["encode_text", "denoise", "decode"]
    assert all(0 < seconds < 60 for seconds in clip.timings.values())


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)


def waves() -> np.ndarray:
    y, x = np.mgrid[:64, :96]
    scene = [128 + 100 * np.sin(x / 30), 100 + 90 * np.cos(y / 20), (x + y) * 1.5]
    return np.stack([np.stack(scene, -1).astype(np.uint8)] * 2)


def edges() -> np.ndarray:
    picture = np.zeros((2, 64, 96, 3), np.uint8)
    picture[:, 20:41, 33:70] = (255, 0, 128)
    picture[:, :, :1] = picture[:, -1:] = (0, 255, 255)
    return picture


PICTURES: dict[str, Callable[[], np.ndarray]] = {"noise": noise, "waves": waves, "edges": edges}


def count_of_decodings(pipeline: LtxPipeline, request: VideoRequest) -> int:
    calls: list[object] = []
    first = pipeline._decoding._decoder.conv_in
    hook = first.register_forward_pre_hook(lambda *args: calls.append(args))
    try:
        chunks = list(pipeline.generate(request, ignore).frames)
    finally:
        hook.remove()
    assert sum(map(len, chunks)) == request.num_frames
    return len(calls)


def pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def about(path: Path) -> tuple[Any, ...]:
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        return context.pix_fmt, context.colorspace, context.color_range, context.color_primaries


def ignore(stage: Stage, step: int, steps: int) -> None:
    """A report nobody reads."""
