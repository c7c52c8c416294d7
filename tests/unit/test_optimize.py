"""What is optimised, and for which sizes: as the settings say, or refused with what there is."""

from __future__ import annotations

import pytest

from ltxq.errors import ConfigurationError
from ltxq_worker.pipeline.fast.options import Optimizations, parse_shapes

ALL = "hoist,attention,compile,graphs,decode,text,frames"


@pytest.mark.parametrize(
    ("setting", "device", "on"),
    [
        ("auto", "cuda", ALL),
        ("auto", "cpu", "hoist,text"),
        ("all", "cuda", ALL),
        ("none", "cuda", "none"),
        (" decode , text", "cuda", "decode,text"),
        ("compile", "cuda", "hoist,compile"),  # which is of hoist's blocks
        ("graphs", "cuda", "hoist,graphs"),
        ("all", "cpu", "hoist,compile,decode,text"),  # the others are CUDA's
    ],
)
def test_a_setting_says_what_is_on(setting: str, device: str, on: str) -> None:
    assert str(Optimizations.parse(setting, device)) == on


@pytest.mark.parametrize("setting", ["fast", "hoist,none", "auto,hoist", "", "hoist;text"])
def test_what_there_is_not_is_refused_with_what_there_is(setting: str) -> None:
    with pytest.raises(ConfigurationError, match="LTXQ_OPTIMIZE") as told:
        Optimizations.parse(setting, "cuda")
    assert ALL.replace(",", ", ") in str(told.value.hint)


def test_sizes_are_those_of_requests() -> None:
    first, second = parse_shapes("768x512x33, 512x768x121@30")
    assert (first.width, first.height, first.num_frames, first.frame_rate) == (768, 512, 33, 24)
    assert (second.width, second.height, second.num_frames, second.frame_rate) == (
        512,
        768,
        121,
        30,
    )


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("768x512", "'768x512' is not a size"),
        ("768x512x33x", "not a size"),
        ("770x512x33", "768"),  # the nearest width
        ("768x512x32", "8k"),
    ],
)
def test_a_size_that_cannot_be_made_is_refused(setting: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match="LTXQ_SHAPES") as told:
        parse_shapes(setting)
    assert says in str(told.value)
    with pytest.raises(ConfigurationError, match=r"^--size: ") as told:
        parse_shapes(setting, "--size")
    assert "LTXQ" not in str(told.value)
