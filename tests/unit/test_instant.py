"""The pipeline without a model makes what a real one makes: frames, sound, reports."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from ltxq.job import Stage, VideoRequest
from ltxq_worker.pipeline.instant import InstantPipeline, Mark, read_mark, request_tag


def silent(stage: Stage, step: int, steps: int) -> None:
    """A report nobody listens to."""


REQUEST = VideoRequest(seed=42, prompt="a", width=64, height=96, num_frames=17)


def test_frames_have_the_shape_asked_for_and_say_who_they_are() -> None:
    clip = InstantPipeline().generate(REQUEST, silent)
    chunks = list(clip.frames)
    assert {(chunk.dtype, *chunk.shape[1:]) for chunk in chunks} == {(np.dtype("uint8"), 96, 64, 3)}
    marks = [read_mark(picture) for chunk in chunks for picture in chunk]
    assert marks == [Mark(request_tag(REQUEST), index) for index in range(17)]


@pytest.mark.parametrize("change", [{"prompt": "b"}, {"seed": 43}])
def test_other_prompt_or_seed_makes_another_clip(change: dict[str, object]) -> None:
    other = REQUEST.model_copy(update=change)
    assert request_tag(other) != request_tag(REQUEST)
    first, second = (
        np.concatenate(list(InstantPipeline().generate(request, silent).frames))
        for request in (REQUEST, other)
    )
    assert not np.array_equal(first[0, :16], second[0, :16])
    assert not np.array_equal(first[0, :16], first[1, :16])  # and it moves


def test_a_picture_without_a_mark_is_refused() -> None:
    with pytest.raises(ValueError, match="no readable mark"):
        read_mark(np.full((64, 64, 3), 200, np.uint8))


def test_sound_is_a_tone_as_long_as_the_picture_unless_not_wanted() -> None:
    sound = InstantPipeline().generate(REQUEST, silent).sound
    assert sound is not None
    assert (sound.samples.dtype, sound.samples.shape) == (np.float32, (2, 17_000))
    assert 0.25 < np.abs(sound.samples).max() <= 0.3
    quiet = REQUEST.model_copy(update={"audio": False})
    assert InstantPipeline().generate(quiet, silent).sound is None


def test_stages_are_reported_in_order() -> None:
    told: list[tuple[str, int, int]] = []
    clip = InstantPipeline().generate(REQUEST, lambda *step: told.append(step))
    assert told[:2] == [("encode_text", 0, 1), ("encode_text", 1, 1)]
    assert told[2:] == [("denoise", done, 8) for done in range(9)]
    told.clear()
    list(clip.frames)
    assert told == [("decode", done, 3) for done in range(4)]


@pytest.mark.parametrize(("stages", "steps"), [(1, 8), (2, 11)])
def test_it_takes_as_many_steps_as_the_real_one(stages: int, steps: int) -> None:
    told: list[tuple[str, int, int]] = []
    request = REQUEST.model_copy(update={"stages": stages})
    InstantPipeline().generate(request, lambda *step: told.append(step))
    assert told[-1] == ("denoise", steps, steps)


def test_report_that_raises_ends_a_long_wait() -> None:
    class Stop(Exception):
        pass

    calls = 0

    def stop(stage: Stage, step: int, steps: int) -> None:
        nonlocal calls
        calls += stage == "denoise"
        if calls == 3:
            raise Stop

    started = time.monotonic()
    with pytest.raises(Stop):
        InstantPipeline(denoise_seconds=600).generate(REQUEST, stop)
    assert time.monotonic() - started < 30


def test_denoising_takes_the_seconds_asked_for() -> None:
    started = time.monotonic()
    InstantPipeline(denoise_seconds=0.2).generate(REQUEST, silent)
    assert time.monotonic() - started >= 0.2


def test_torch_is_not_imported() -> None:
    code = (
        "import sys, ltxq_worker.pipeline.instant, ltxq_worker.encode.clip\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
