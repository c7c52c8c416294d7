"""Reading Scope's parameters into a request."""

from __future__ import annotations

from typing import Any

import pytest

from ltxq import VideoRequest
from ltxq.errors import InvalidRequest
from ltxq.scope_plugin.playback_request import ParameterReader


def request(sent: dict[str, Any], **loaded: Any) -> VideoRequest:
    requested = ParameterReader(loaded).read({"prompts": "a fox", **sent})
    assert requested is not None
    return requested.video


def prompt(prompts: Any) -> str | None:
    requested = ParameterReader({}).read({"prompts": prompts})
    return requested and requested.video.prompt


@pytest.mark.parametrize(
    ("given", "used"),
    [(1, 1), (2, 1), (9, 9), (12, 9), (13, 9), (14, 17), (30, 33), (120, 121), (0, 1), (9999, 473)],
)
def test_num_frames_becomes_the_nearest_with_one_warning(
    given: int, used: int, caplog: Any
) -> None:
    reader = ParameterReader({"num_frames": given})
    for _ in range(3):
        requested = reader.read({"prompts": "a fox"})
        assert requested is not None
        assert requested.video.num_frames == used
    assert caplog.text.count(f"num_frames: using {used}") == (given != used)


def test_a_clients_parameters_override_the_load_parameters() -> None:
    loaded = {"num_frames": 9, "frame_rate": 30.0, "base_seed": 7}
    assert request({}, **loaded).model_dump(include=set(loaded)) == {
        "num_frames": 9,
        "frame_rate": 30.0,
    }
    assert request({}, **loaded).seed == 7
    sent = request({"base_seed": 8, "num_frames": 17, "frame_rate": 12}, **loaded)
    assert (sent.seed, sent.num_frames, sent.frame_rate) == (8, 17, 12)
    assert request({"base_seed": None}, **loaded).seed == 7


def test_the_queue_draws_a_random_seed() -> None:
    assert request({"randomize_seed": True}).seed is None
    assert request({"randomize_seed": False}, randomize_seed=True).seed == 42


@pytest.mark.parametrize(
    ("width", "stages", "made", "crop"),
    [
        (768, 1, 768, None),
        (500, 1, 512, 500),
        (501, 1, 512, 500),
        (10, 1, 64, None),
        (9999, 1, 2048, None),
        (800, 2, 832, 800),
    ],
)
def test_sizes_are_even_and_cropped_to_the_pixel(
    width: int, stages: int, made: int, crop: int | None
) -> None:
    video = request({}, width=width, stages=stages)
    assert (video.width, video.crop_width) == (made, crop)


@pytest.mark.parametrize("wrong", ["many", float("nan"), float("inf"), [], {}, object(), 10**400])
@pytest.mark.parametrize("name", ["num_frames", "frame_rate", "base_seed", "stages", "prefetch"])
def test_a_value_that_is_no_number_becomes_the_default(name: str, wrong: Any) -> None:
    assert request({name: wrong}) == request({})


@pytest.mark.parametrize(
    ("prompts", "text"),
    [
        ("a fox", "a fox"),
        (" a fox ", "a fox"),
        ([{"text": "a fox", "weight": 1.0}], "a fox"),
        ([{"text": "a fox", "weight": 60}, {"text": "snow", "weight": 40}], "a fox\nsnow"),
        ([{"text": "a fox", "weight": 100}, {"text": "snow", "weight": 0}], "a fox"),
        ([{"text": "a fox"}], "a fox"),
        ([], None),
        ([{"text": "  ", "weight": 1}], None),
        (None, None),
        ("", None),
    ],
)
def test_prompts_are_read_in_scopes_formats(prompts: Any, text: str | None) -> None:
    assert prompt(prompts) == text


def test_a_request_is_the_same_object_until_a_parameter_changes() -> None:
    reader, sent = ParameterReader({}), {"prompts": [{"text": "a fox", "weight": 1}]}
    first = reader.read(sent)
    assert reader.read({**sent, "init_cache": True, "bpm": 120}) is first
    assert reader.read({**sent, "base_seed": 43}) is not first


def test_a_too_long_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        ParameterReader({}).read({"prompts": "x" * 5001})


def test_an_image_is_ignored_with_one_warning(caplog: Any) -> None:
    reader = ParameterReader({})
    for _ in range(3):
        reader.read({"prompts": "a fox", "first_frame_image": "fox.png"})
    assert caplog.text.count("first_frame_image is ignored") == 1


def test_a_new_session_forgets_a_transition() -> None:
    reader, prompts = ParameterReader({}), [{"text": "a fox"}]
    sent = {"prompts": prompts, "transition": {"target_prompts": [{"text": "an owl"}]}}
    requested = reader.read(sent)
    assert requested is not None
    assert requested.video.prompt == "an owl"
    reader.start_session()
    requested = reader.read({"prompts": prompts})
    assert requested is not None
    assert requested.video.prompt == "a fox"
