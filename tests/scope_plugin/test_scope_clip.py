"""Decodes MP4s of the worker's encoder: colours, and sound in step with the picture."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ltxq import VideoRequest
from ltxq.scope_plugin.clip import DownloadedClip

if "SCOPE_CHECKOUT" in os.environ:
    pytest.skip("Scope's PyAV is too old for the encoder", allow_module_level=True)

import scope.core

from ltxq_worker.encode.clip import encode
from ltxq_worker.pipeline import ClipStream, Sound

SCOPE = Path(scope.core.__file__).parents[2]
DROPS = """
import itertools, sys
import scope.core.pipelines.registry
from ltxq.scope_plugin.clip import DownloadedClip
with open(sys.argv[1], "rb") as file:
    clip = DownloadedClip(file.read())
for drop in range(300):
    for picture in itertools.islice(clip.pictures(None), 1 + drop % 3):
        pass
"""
LEFT, RIGHT = (200, 40, 60), (30, 90, 220)
BEEP = 12  # the frame at which the tone begins


def clip(rate: float = 24.0, sample_rate: int = 24_000, *, sound: bool = True) -> DownloadedClip:
    """An encoded clip of 33 frames in two colours, with silence and then a tone."""
    request = VideoRequest(
        seed=42, prompt="x", width=128, height=64, num_frames=33, frame_rate=rate, audio=sound
    )
    frames = np.empty((33, 64, 128, 3), np.uint8)
    frames[:, :, :64], frames[:, :, 64:] = LEFT, RIGHT
    seconds = np.arange(round(request.duration * sample_rate)) / sample_rate - BEEP / rate
    tone = np.where(seconds >= 0, 0.5 * np.cos(2000 * np.pi * seconds), 0).astype(np.float32)
    track = Sound(samples=np.stack([tone, tone]), sample_rate=sample_rate) if sound else None
    with tempfile.TemporaryDirectory() as folder:
        stream = ClipStream(frames=iter([frames]), sound=track)
        done = encode(stream, request, Path(folder), lambda *_: None)
        return DownloadedClip(done.mp4.read_bytes())


def test_colours_are_those_of_the_encoded_frames() -> None:
    pictures = list(clip().pictures(None))
    assert len(pictures) == 33
    assert pictures[0].dtype == np.uint8
    for picture in (pictures[0], pictures[-1]):
        assert picture.shape == (64, 128, 3)
        assert np.abs(picture[:, 8:56].mean(axis=(0, 1)) - LEFT).max() < 4
        assert np.abs(picture[:, 72:120].mean(axis=(0, 1)) - RIGHT).max() < 4


@pytest.mark.parametrize("sample_rate", [24_000, 48_000])
@pytest.mark.parametrize("rate", [24.0, 23.976, 60.0])
def test_sound_begins_with_its_frame(rate: float, sample_rate: int) -> None:
    decoded = clip(rate, sample_rate)
    sound = decoded.sound()
    assert sound is not None
    assert sound.dtype == np.float32
    assert sound.shape[0] == 2
    assert sound.shape[1] >= round(33 / rate * 48_000)
    onset = int(np.argmax(np.abs(sound[0]) > 0.2))
    assert onset == pytest.approx(BEEP / rate * 48_000, abs=100)  # 2 ms


def test_the_frame_rate_is_exact() -> None:
    assert clip(23.976).frame_rate() == Fraction(24000, 1001)


def test_a_silent_clip_has_no_sound() -> None:
    assert clip(sound=False).sound() is None


def test_pictures_have_the_requested_size() -> None:
    assert {picture.shape for picture in clip().pictures((100, 50))} == {(50, 100, 3)}


def test_a_clip_can_be_dropped_while_it_is_decoded(tmp_path: Path) -> None:
    """Drops 300 clips with PyAV's log callback set, as in Scope. With several decoder threads the
    process would deadlock: one waits for the GIL to log a line, and PyAV holds the GIL while it
    joins that thread.
    """
    noise = np.random.default_rng(0).integers(0, 256, (33, 192, 320, 3), np.uint8)
    request = VideoRequest(seed=42, prompt="x", width=320, height=192, num_frames=33, audio=False)
    made = encode(ClipStream(frames=iter([noise]), sound=None), request, tmp_path, lambda *_: None)
    subprocess.run(
        [sys.executable, "-c", DROPS, str(made.mp4)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SCOPE), *sys.path])},
        check=True,
        timeout=60,
    )
