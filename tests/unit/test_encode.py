"""A clip becomes an MP4 with the right colours, frames, times and sound, or nothing at all."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from ltxq.errors import PermanentError, StorageUnavailable
from ltxq.job import Stage, VideoRequest
from ltxq_worker.encode import clip as encode_module
from ltxq_worker.encode.clip import Encoded, encode, write_sidecar
from ltxq_worker.encode.mp4 import exact_rate
from ltxq_worker.pipeline import ClipStream, Sound
from ltxq_worker.pipeline.instant import InstantPipeline, read_mark

FILES = {"clip.mp4", "poster.jpg", "spritesheet.jpg"}


def silent(stage: Stage, step: int, steps: int) -> None:
    """A report nobody listens to."""


def small(**fields: Any) -> VideoRequest:
    return VideoRequest(
        **{"seed": 42, "prompt": "a", "width": 64, "height": 64, "num_frames": 9, **fields}
    )


def instant(request: VideoRequest) -> ClipStream:
    return InstantPipeline().generate(request, silent)


def chunks_of(*counts: int, side: int = 64) -> Iterator[NDArray[np.uint8]]:
    for count in counts:
        yield np.zeros((count, side, side, 3), np.uint8)


def pictures(path: Path, **reformat: Any) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_frame_arrives_once_and_in_order(tmp_path: Path) -> None:
    request = small(num_frames=33)
    encoded = encode(instant(request), request, tmp_path, silent)
    assert [read_mark(picture).index for picture in pictures(encoded.mp4)] == list(range(33))
    assert names_in(tmp_path) == FILES


def test_encoded_tells_what_the_file_is(tmp_path: Path) -> None:
    request = small(frame_rate=25.0)
    encoded = encode(instant(request), request, tmp_path, silent)
    content = encoded.mp4.read_bytes()
    assert encoded == Encoded(
        mp4=tmp_path / "clip.mp4",
        poster=tmp_path / "poster.jpg",
        spritesheet=tmp_path / "spritesheet.jpg",
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        width=64,
        height=64,
        num_frames=9,
        frame_rate=25.0,
        duration=0.36,
    )


def test_same_clip_is_the_same_bytes(tmp_path: Path) -> None:
    request = small(num_frames=33, width=128)
    first, second = (
        encode(instant(request), request, tmp_path / name, silent) for name in ("a", "b")
    )
    assert first.sha256 == second.sha256


@pytest.mark.parametrize(
    "colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 100, 50)]
)
def test_colours_are_converted_and_tagged_as_bt709(
    tmp_path: Path, colour: tuple[int, int, int]
) -> None:
    request = small(num_frames=1, audio=False)
    frames = np.broadcast_to(np.array(colour, np.uint8), (1, 64, 64, 3))
    encoded = encode(ClipStream(frames=iter([frames]), sound=None), request, tmp_path, silent)
    red, green, blue = (value / 255 for value in colour)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # ITU-R BT.709, limited range
    expected = (
        16 + 219 * luma,
        128 + 224 * (blue - luma) / 1.8556,
        128 + 224 * (red - luma) / 1.5748,
    )
    with av.open(str(encoded.mp4)) as container:
        frame = next(container.decode(video=0))
        assert frame.format.name == "yuv420p"
        planes = [np.frombuffer(plane, np.uint8)[0] for plane in frame.planes]
        assert planes == pytest.approx(expected, abs=1.5)
        video = container.streams.video[0].codec_context
        tags = (video.color_primaries, video.color_trc, video.colorspace, video.color_range)
        assert tags == (1, 1, 1, 1)  # BT.709 three times, limited range: the H.264 stream's own
    colr = b"colr" + b"nclx" + b"\0\1" * 3 + b"\0"
    assert colr in encoded.mp4.read_bytes()  # and the container's


def test_header_comes_before_the_pictures(tmp_path: Path) -> None:
    request = small()
    content = encode(instant(request), request, tmp_path, silent).mp4.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(
    ("rate", "exact"),
    [
        (24.0, Fraction(24)),
        (23.976, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (30000 / 1001, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (12.5, Fraction(25, 2)),
        (1.0, Fraction(1)),
        (60.0, Fraction(60)),
    ],
)
def test_frame_rate_is_constant_and_exact(tmp_path: Path, rate: float, exact: Fraction) -> None:
    assert exact_rate(rate) == exact
    request = small(frame_rate=rate)
    encoded = encode(instant(request), request, tmp_path, silent)
    with av.open(str(encoded.mp4)) as container:
        video = container.streams.video[0]
        assert video.average_rate == exact
        assert video.duration * video.time_base == 9 / exact
        times = [frame.pts * frame.time_base for frame in container.decode(video)]
    assert times == [index / exact for index in range(9)]


@pytest.mark.parametrize("sample_rate", [24_000, 48_000])
@pytest.mark.parametrize("num_frames", [1, 9, 33])
@pytest.mark.parametrize("ratio", [0.0, 0.9, 1.0, 3.0])
def test_sound_is_as_long_as_the_picture(
    tmp_path: Path, sample_rate: int, num_frames: int, ratio: float
) -> None:
    request = small(num_frames=num_frames)
    samples = np.full((2, int(ratio * num_frames / 24 * sample_rate)), 0.1, np.float32)
    sound = Sound(samples=samples, sample_rate=sample_rate)
    encoded = encode(
        ClipStream(frames=chunks_of(num_frames), sound=sound), request, tmp_path, silent
    )
    with av.open(str(encoded.mp4)) as container:
        audio = container.streams.audio[0]
        assert (audio.codec_context.name, audio.channels, audio.rate) == ("aac", 2, sample_rate)
        assert audio.start_time == 0
        video = container.streams.video[0]
        assert video.duration * video.time_base == Fraction(num_frames, 24)
        assert float(audio.duration * audio.time_base) == pytest.approx(num_frames / 24, abs=1e-4)


def test_sound_starts_with_the_picture_and_keeps_left_left(tmp_path: Path) -> None:
    request = small(num_frames=25)
    samples = np.zeros((2, 25_000), np.float32)
    samples[0, 12_000:] = 0.5 * np.sin(2 * np.pi * 440 * np.arange(13_000) / 24_000)
    sound = Sound(samples=samples, sample_rate=24_000)
    encoded = encode(ClipStream(frames=chunks_of(25), sound=sound), request, tmp_path, silent)
    with av.open(str(encoded.mp4)) as container:
        heard = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    loud = np.abs(heard[0]) > 0.1
    assert np.argmax(loud) == pytest.approx(12_000, abs=300)  # AAC smears a little ahead
    assert np.abs(heard[1]).max() < 0.05
    assert np.abs(heard[0, 14_000:24_000]).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("asked", [True, False])
def test_silent_clip_has_no_audio_stream(tmp_path: Path, asked: bool) -> None:
    request = small(audio=asked)
    sound = None if asked else Sound(samples=np.ones((2, 9000), np.float32), sample_rate=24_000)
    encoded = encode(ClipStream(frames=chunks_of(9), sound=sound), request, tmp_path, silent)
    with av.open(str(encoded.mp4)) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_crop_takes_the_same_from_both_sides(tmp_path: Path) -> None:
    request = small(num_frames=1, audio=False, crop_width=50, crop_height=36)
    frame = np.zeros((1, 64, 64, 3), np.uint8)
    frame[:, 14:-14, 7:-7] = 255
    encoded = encode(ClipStream(frames=iter([frame]), sound=None), request, tmp_path, silent)
    for path in (encoded.mp4, encoded.poster):
        (picture,) = pictures(path)
        assert picture.shape == (36, 50, 3)
        assert picture.min() > 250
    assert (encoded.width, encoded.height) == (50, 36)


def test_poster_is_the_first_frame_and_the_sheet_goes_across_the_clip(tmp_path: Path) -> None:
    request = small(num_frames=33, audio=False)
    frames = np.empty((33, 64, 64, 3), np.uint8)
    frames[:] = (np.arange(33) * 7)[:, None, None, None]
    encoded = encode(ClipStream(frames=iter([frames]), sound=None), request, tmp_path, silent)
    (poster,) = pictures(encoded.poster)
    assert poster.shape == (64, 64, 3)
    assert poster.max() < 3
    (sheet,) = pictures(encoded.spritesheet)
    tiles = sheet.reshape(4, 64, 4, 64, 3).mean(axis=(1, 3, 4)).ravel()
    assert tiles == pytest.approx(np.linspace(0, 32, 16).round() * 7, abs=2)


@pytest.mark.parametrize(("num_frames", "tiles"), [(1, 1), (9, 3), (17, 4)])
def test_spritesheet_is_a_full_square_of_tiles(tmp_path: Path, num_frames: int, tiles: int) -> None:
    request = small(num_frames=num_frames, width=768, height=512, audio=False)
    encoded = encode(instant(request), request, tmp_path, silent)
    (sheet,) = pictures(encoded.spritesheet)
    assert sheet.shape == (tiles * 128, tiles * 192, 3)


def test_progress_is_told_after_the_last_frame_is_taken(tmp_path: Path) -> None:
    request = small(num_frames=33)
    told: list[tuple[str, int, int]] = []
    clip = InstantPipeline().generate(request, lambda *step: told.append(step))
    encode(clip, request, tmp_path, lambda *step: told.append(step))
    stages = [stage for stage, _, _ in told]
    first = stages.index("encode")
    assert set(stages[first:]) == {"encode"}
    assert set(stages[:first]) == {"encode_text", "denoise", "decode"}
    steps = [step for _, step, _ in told[first:]]
    assert steps == sorted(steps)
    assert told[-1] == ("encode", 33, 33)


def test_decoding_does_not_wait_for_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_taken = threading.Event()

    class Patient(encode_module.Mp4Writer):
        def write_frame(self, picture: NDArray[np.uint8], index: int) -> None:
            assert all_taken.wait(30)
            super().write_frame(picture, index)

    def frames() -> Iterator[NDArray[np.uint8]]:
        yield from chunks_of(8, 8, 8, 8, 1)
        all_taken.set()

    monkeypatch.setattr(encode_module, "Mp4Writer", Patient)
    encode(ClipStream(frames=frames(), sound=None), small(num_frames=33), tmp_path, silent)


def test_decoding_waits_while_too_many_bytes_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: list[weakref.ref[NDArray[np.uint8]]] = []
    most = 0

    def frames() -> Iterator[NDArray[np.uint8]]:
        nonlocal most
        for count in [8] * 15 + [1]:
            made = np.zeros((count, 64, 64, 3), np.uint8)
            chunks.append(weakref.ref(made))
            most = max(most, sum(chunk() is not None for chunk in chunks))
            yield made
            del made

    monkeypatch.setattr(encode_module, "MAX_WAITING", 2 * 8 * 64 * 64 * 3)  # bytes: two chunks
    encode(ClipStream(frames=frames(), sound=None), small(num_frames=121), tmp_path, silent)
    assert most <= 4  # two that wait, one in the caller's hand, one just let go


class Stop(Exception):
    """What a cancelled job's report raises."""


def stop_when(stage: Stage) -> Callable[[Stage, int, int], None]:
    def report(told: Stage, step: int, steps: int) -> None:
        if told == stage and step > 0:
            raise Stop

    return report


@pytest.mark.parametrize("stage", ["decode", "encode"])
def test_cancelled_job_leaves_no_file_and_no_thread(tmp_path: Path, stage: Stage) -> None:
    request = small(num_frames=33)
    report = stop_when(stage)
    clip = InstantPipeline().generate(request, report)
    threads = threading.active_count()
    with pytest.raises(Stop):
        encode(clip, request, tmp_path, report)
    assert names_in(tmp_path) == set()
    assert threading.active_count() == threads
    assert next(clip.frames, None) is None  # and nothing goes on decoding


def test_cancelled_job_is_not_encoded_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled, written = threading.Event(), 0

    class Slow(encode_module.Mp4Writer):
        def write_frame(self, picture: NDArray[np.uint8], index: int) -> None:
            nonlocal written
            assert cancelled.wait(30)
            time.sleep(0.01)
            written += 1

    def frames() -> Iterator[NDArray[np.uint8]]:
        yield from chunks_of(8, 8, 8, 8)
        cancelled.set()
        raise Stop

    monkeypatch.setattr(encode_module, "Mp4Writer", Slow)
    with pytest.raises(Stop):
        encode(ClipStream(frames=frames(), sound=None), small(num_frames=33), tmp_path, silent)
    assert written < 32


def test_decoding_ends_at_the_first_error(tmp_path: Path) -> None:
    taken: list[int] = []
    frames = (taken.append(len(chunk)) or chunk for chunk in chunks_of(8, 8, 8))
    with pytest.raises(PermanentError, match="made more than 9 frames"):
        encode(ClipStream(frames=frames, sound=None), small(), tmp_path, silent)
    assert next(frames, None) is None
    assert taken == [8, 8]


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        (lambda: chunks_of(8), "made 8 frames, not 9"),
        (lambda: chunks_of(8, 8), "made more than 9 frames, not 9"),
        (lambda: iter(()), "made 0 frames, not 9"),
        (lambda: chunks_of(9, side=32), r"uint8 \[9, 32, 32, 3\], not uint8 \[n, 64, 64, 3\]"),
        (lambda: iter([np.zeros((9, 64, 64, 3), np.float32)]), r"float32 \[9, 64, 64, 3\], not"),
    ],
)
def test_wrong_frames_are_an_error_and_no_file(
    tmp_path: Path, frames: Callable[[], Iterator[NDArray[np.uint8]]], says: str
) -> None:
    with pytest.raises(PermanentError, match=says):
        encode(ClipStream(frames=frames(), sound=None), small(), tmp_path, silent)
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (np.full((2, 9000), np.nan, np.float32), "not finite"),
        (np.zeros((1, 9000), np.float32), r"not float32 \[2, S\]"),
        (np.zeros((2, 9000)), r"float64 \[2, 9000\], not"),
    ],
)
def test_wrong_sound_is_an_error_and_no_file(
    tmp_path: Path, samples: NDArray[Any], says: str
) -> None:
    sound = Sound(samples=samples, sample_rate=24_000)
    with pytest.raises(PermanentError, match=says):
        encode(ClipStream(frames=chunks_of(9), sound=sound), small(), tmp_path, silent)
    assert names_in(tmp_path) == set()


FULL_DISK = """
import sys
from pathlib import Path
from ltxq.errors import StorageUnavailable
from ltxq.job import VideoRequest
from ltxq_worker.encode.clip import encode
from ltxq_worker.pipeline.instant import InstantPipeline

folder = Path(sys.argv[1])
request = VideoRequest(seed=42, prompt="a", width=512, height=512, num_frames=97)
silent = lambda *step: None
try:
    encode(InstantPipeline().generate(request, silent), request, folder, silent)
except StorageUnavailable as exc:
    assert not list(folder.iterdir()), list(folder.iterdir())
    print(exc)
"""


def test_full_disk_is_named_and_nothing_stays_behind(tmp_path: Path) -> None:
    """On a tmpfs of 64 KiB, mounted in a namespace of its own."""
    mount = (
        f'mount -t tmpfs -o size=64k none {tmp_path} && exec {sys.executable} -c "$1" {tmp_path}'
    )
    command = ["unshare", "--user", "--mount", "--map-root-user", "sh", "-c", mount, "sh"]
    if subprocess.run([*command[:4], "true"], capture_output=True, timeout=30).returncode:
        pytest.skip("this machine allows no user namespaces")
    done = subprocess.run([*command, FULL_DISK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"The disk that holds {tmp_path} is full. Free space there, or set" in done.stdout


def test_full_disk_is_an_error_that_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(picture: NDArray[np.uint8], path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(encode_module, "write_jpeg", no_space)
    with pytest.raises(StorageUnavailable) as caught:
        encode(instant(small()), small(), tmp_path, silent)
    assert caught.value.retryable
    assert names_in(tmp_path) == set()


def test_sidecar_tells_what_made_the_clip_but_no_webhook(tmp_path: Path) -> None:
    request = small(prompt="Möwen über dem Fjord", webhook_url="https://host/?key=secret")
    encoded = encode(instant(request), request, tmp_path, silent)
    path = tmp_path / "clip.json"
    write_sidecar(
        path,
        request=request,
        seed=7,
        model="instant",
        versions={"instant": "1"},
        timings={"denoise": 0.5},
        encoded=encoded,
        job_id="video_1",
    )
    text = path.read_text(encoding="utf-8")
    assert "Möwen" in text
    assert "secret" not in text
    about = json.loads(text)
    assert VideoRequest.parse(about["request"]).prompt == request.prompt
    assert (about["job_id"], about["seed"], about["model"]) == ("video_1", 7, "instant")
    assert about["clip"]["sha256"] == encoded.sha256
    assert names_in(tmp_path) == FILES | {"clip.json"}


def test_sidecar_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    request = small()
    encoded = encode(instant(request), request, tmp_path / "clip", silent)
    in_the_way = tmp_path / "clip.json"
    in_the_way.mkdir()
    with pytest.raises(IsADirectoryError):
        write_sidecar(
            in_the_way,
            request=request,
            seed=7,
            model="instant",
            versions={},
            timings={},
            encoded=encoded,
        )
    assert names_in(tmp_path) == {"clip", "clip.json"}
