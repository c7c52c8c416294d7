"""The memory a clip is thought to need: near what was computed, and advice that itself fits."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltxq_worker.pipeline.memory import (
    FEW_FRAMES,
    Shape,
    available_ram,
    bytes_needed,
    largest_that_fits,
    tiles_in_space,
    tiles_in_time,
)


def config(name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((files("ltxq_worker.models") / f"{name}.json").read_text())
    return parsed


BIG = config("ltx-2.3-22b")
SHAPES = st.builds(
    Shape,
    st.integers(2, 64).map(lambda n: n * 32),
    st.integers(2, 64).map(lambda n: n * 32),
    st.integers(0, 149).map(lambda n: n * 8 + 1),
)


def in_two_stages(shape: Shape) -> Shape:
    return replace(shape, height=shape.height * 2, width=shape.width * 2, stages=2)


@pytest.mark.parametrize(
    ("shape", "gigabytes"),
    [
        (Shape(512, 768, 1), 2.5),  # the prompt's
        (Shape(512, 768, 33), 2.5),
        (Shape(768, 512, 121), 4.0),  # the decoder's
    ],
)
def test_what_fits_untiled_needs_about_what_was_computed(shape: Shape, gigabytes: float) -> None:
    assert not tiles_in_time(shape)
    assert bytes_needed(BIG, shape) / 1e9 == pytest.approx(gigabytes, rel=0.1)


def test_tiles_keep_a_large_clip_far_below_its_decoding_in_one_piece() -> None:
    shape = Shape(1024, 1536, 121)
    assert tiles_in_time(shape)
    assert tiles_in_space(shape)
    assert bytes_needed(BIG, shape) < 10e9 < 15.3e9


@given(SHAPES | SHAPES.map(in_two_stages), st.integers(8, 40))
def test_advice_fits_and_is_smaller(shape: Shape, gigabytes: int) -> None:
    budget = gigabytes * 10**8
    fits = largest_that_fits(BIG, shape, budget)
    if fits is None:
        assert budget < 2_500_000_000  # what a prompt alone needs
        return
    assert bytes_needed(BIG, fits) <= budget
    assert fits.num_frames <= shape.num_frames
    assert fits.num_frames % 8 == 1
    assert fits.height <= shape.height
    assert fits.width <= shape.width
    assert fits.stages == shape.stages
    assert fits.height % (32 * fits.stages) == fits.width % (32 * fits.stages) == 0


@given(SHAPES)
def test_advice_takes_frames_away_before_it_takes_size(shape: Shape) -> None:
    fits = largest_that_fits(BIG, shape, 4 * 10**9)
    if fits and fits.num_frames > FEW_FRAMES:
        assert (fits.height, fits.width) == (shape.height, shape.width)


def test_there_is_no_advice_where_nothing_fits() -> None:
    assert largest_that_fits(BIG, Shape(512, 768, 33), 10**6) is None


def test_a_cpus_memory_is_read_from_the_system() -> None:
    assert 10**8 < available_ram() < 10**14
