"""A request with OpenAI's field names becomes a VideoRequest, or an error naming the field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltxq.errors import InvalidRequest
from ltxq.gateway.openai.errors import UnsupportedParameter
from ltxq.gateway.openai.request import NAMES, request_of
from ltxq.job import VideoRequest

FOX = {"prompt": "a fox"}


def problems(fields: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        request_of({**FOX, **fields})
    return dict(caught.value.problems)


def test_a_prompt_alone_is_the_default_clip() -> None:
    assert request_of(FOX) == VideoRequest(prompt="a fox")
    assert request_of({**FOX, "seconds": None, "size": None, "model": None}).num_frames == 33


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"),
    [("4", 24, 97), ("8", 24, 193), ("12", 24, 289), (4, 24, 97), ("5", "25", 121), ("20", 24, 473),
     ("0.01", 24, 1), ("1.0", 60, 57), ("0.5", 1, 1), ("19.9", 59.9, 1193)],
)  # fmt: skip
def test_seconds_become_the_nearest_frames_that_can_be_made(
    seconds: Any, fps: Any, frames: int
) -> None:
    assert request_of({**FOX, "seconds": seconds, "fps": fps}).num_frames == frames


@settings(deadline=None)
@given(st.floats(0.001, 20), st.floats(1, 60))
def test_any_length_within_the_limits_is_accepted(seconds: float, fps: float) -> None:
    request = request_of({**FOX, "seconds": str(seconds), "fps": fps})
    assert abs(request.duration - seconds) <= 8 / fps  # half a step, or the last one that fits


@pytest.mark.parametrize(
    ("size", "made", "cropped"),
    [
        ("1280x720", (1280, 736), (1280, 720)),
        ("720x1280", (736, 1280), (720, 1280)),
        ("1024x1792", (1024, 1792), (1024, 1792)),
        ("1792x1024", (1792, 1024), (1792, 1024)),
        ("768X512", (768, 512), (768, 512)),
        ("854×480", (864, 480), (854, 480)),
    ],
)
def test_a_size_is_rounded_up_and_cropped(
    size: str, made: tuple[int, int], cropped: tuple[int, int]
) -> None:
    request = request_of({**FOX, "size": size})
    assert ((request.width, request.height), request.output_size) == (made, cropped)


def test_two_stages_round_up_to_multiples_of_64() -> None:
    request = request_of({**FOX, "size": "1280x720", "stages": 2})
    assert (request.width, request.height, request.output_size) == (1280, 768, (1280, 720))
    assert request_of({**FOX, "width": "1000", "height": 600}).output_size == (1000, 600)


@settings(deadline=None)
@given(st.integers(64, 2048), st.integers(64, 2048))
def test_every_even_size_can_be_made(width: int, height: int) -> None:
    size = f"{width}x{height}"
    if width % 2 or height % 2:
        assert set(problems({"size": size})) == {"size"}
    else:
        assert request_of({**FOX, "size": size}).output_size == (width, height)


def test_every_api_name_is_translated() -> None:
    request = request_of(
        {"prompt": "a fox", "fps": "25", "generate_audio": "false", "seed": "7", "model": "instant",
         "num_frames": "17", "metadata": '{"order": "7"}', "priority": "high", "timeout": "60",
         "expires_in": "3600", "webhook_url": "https://example.com/hook"}
    )  # fmt: skip
    assert request == VideoRequest(
        prompt="a fox", frame_rate=25, audio=False, seed=7, model="instant", num_frames=17,
        metadata={"order": "7"}, priority="high", timeout=60, expires_in=3600,
        webhook_url="https://example.com/hook",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [("input_reference", "https://example.com/fox.png"), ("input_reference", {"image_url": "x"}),
     ("lora", '[{"path": "x"}]'), ("lora", [{"path": "x"}]), ("guidance_scale", "3.5"),
     ("negative_prompt", "blurry"), ("num_inference_steps", 20), ("resolution", "720p"),
     ("crop_width", 700), ("frame_rate", 25), ("n", 2)],
)  # fmt: skip
def test_an_unsupported_field_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedParameter, match=name) as caught:
        request_of({**FOX, name: value})
    assert caught.value.problems[0][0] == name


@pytest.mark.parametrize(
    ("name", "value"),
    [("lora", []), ("lora", "[]"), ("guidance_scale", 1), ("guidance_scale", "1.0"),
     ("negative_prompt", ""), ("num_inference_steps", "8"), ("input_reference", None)],
)  # fmt: skip
def test_an_unsupported_field_that_changes_nothing_is_accepted(name: str, value: Any) -> None:
    assert request_of({**FOX, name: value}) == VideoRequest(prompt="a fox")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"prompt": ""}, {"prompt"}),
        ({"prompt": 7}, {"prompt"}),
        ({"seconds": "0"}, {"seconds"}),
        ({"seconds": "21"}, {"seconds"}),
        ({"seconds": "nan"}, {"seconds"}),
        ({"seconds": "four"}, {"seconds"}),
        ({"seconds": True}, {"seconds"}),
        ({"seconds": "4", "num_frames": 97}, {"seconds"}),
        ({"size": "1280x720", "width": 1280}, {"size"}),
        ({"size": "720p"}, {"size"}),
        ({"size": "1281x720"}, {"size"}),
        ({"size": "4096x64"}, {"size"}),
        ({"size": "0x0"}, {"size"}),
        ({"width": 2**70}, {"width"}),
        ({"height": 721}, {"height"}),
        ({"fps": 0, "seconds": "4"}, {"fps"}),
        ({"fps": 500}, {"fps"}),
        ({"generate_audio": "perhaps"}, {"generate_audio"}),
        ({"num_frames": 100}, {"num_frames"}),
        ({"metadata": "{"}, {"metadata"}),
        ({"metadata": "[]"}, {"metadata"}),
        ({"metadata": "[" * 100_000}, {"metadata"}),
        ({"priority": "urgent"}, {"priority"}),
        ({"stages": 3}, {"stages"}),
    ],
)
def test_a_wrong_field_is_reported_by_the_name_that_was_sent(
    fields: dict[str, Any], names: set[str]
) -> None:
    assert {name.partition(".")[0] for name in problems(fields)} == names


def test_a_wrong_number_of_frames_reports_the_two_nearest() -> None:
    assert "97 or 105" in problems({"num_frames": 100})["num_frames"]


def test_every_field_but_the_crop_can_be_sent() -> None:
    assert {*NAMES.values(), "crop_width", "crop_height"} == set(VideoRequest.model_fields)
