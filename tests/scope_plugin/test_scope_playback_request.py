"""Scope's parameters, made a request."""

from __future__ import annotations

from typing import Any

import pytest

from ltxq import VideoRequest
from ltxq.errors import InvalidRequest
from ltxq.scope_plugin.playback_request import PlaybackRequests


def request(sent: dict[str, Any], **loaded: Any) -> VideoRequest:
    wish = PlaybackRequests(loaded).read({"prompts": "a fox", **sent})
    assert wish is not None
    return wish.request


def prompt(prompts: Any) -> str | None:
    wish = PlaybackRequests({}).read({"prompts": prompts})
    return wish and wish.request.prompt


@pytest.mark.parametrize(
    ("asked", "made"),
    [(1, 1), (2, 1), (9, 9), (12, 9), (13, 9), (14, 17), (30, 33), (120, 121), (0, 1), (9999, 473)],
)
def test_num_frames_becomes_the_nearest_and_the_log_says_so(
    asked: int, made: int, caplog: Any
) -> None:
    wishes = PlaybackRequests({"num_frames": asked})
    for _ in range(3):
        wish = wishes.read({"prompts": "a fox"})
        assert wish is not None
        assert wish.request.num_frames == made
    assert caplog.text.count(f"num_frames is {made}") == (asked != made)


def test_what_the_client_sends_comes_before_what_was_loaded() -> None:
    loaded = {"num_frames": 9, "frame_rate": 30.0, "base_seed": 7}
    assert request({}, **loaded).model_dump(include=set(loaded)) == {
        "num_frames": 9,
        "frame_rate": 30.0,
    }
    assert request({}, **loaded).seed == 7
    sent = request({"base_seed": 8, "num_frames": 17, "frame_rate": 12}, **loaded)
    assert (sent.seed, sent.num_frames, sent.frame_rate) == (8, 17, 12)
    assert request({"base_seed": None}, **loaded).seed == 7


def test_a_random_seed_is_left_to_the_queue() -> None:
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
def test_every_size_is_made_even_and_exact(
    width: int, stages: int, made: int, crop: int | None
) -> None:
    asked = request({}, width=width, stages=stages)
    assert (asked.width, asked.crop_width) == (made, crop)


@pytest.mark.parametrize("wrong", ["many", float("nan"), float("inf"), [], {}, object(), 10**400])
@pytest.mark.parametrize("name", ["num_frames", "frame_rate", "base_seed", "stages", "prefetch"])
def test_what_is_no_number_is_the_default(name: str, wrong: Any) -> None:
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
def test_prompts_are_read_as_scope_sends_them(prompts: Any, text: str | None) -> None:
    assert prompt(prompts) == text


def test_a_wish_is_the_same_object_until_something_changes() -> None:
    wishes, sent = PlaybackRequests({}), {"prompts": [{"text": "a fox", "weight": 1}]}
    first = wishes.read(sent)
    assert wishes.read({**sent, "init_cache": True, "bpm": 120}) is first
    assert wishes.read({**sent, "base_seed": 43}) is not first


def test_a_prompt_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        PlaybackRequests({}).read({"prompts": "x" * 5001})


def test_an_image_is_told_of_once_for_it_cannot_be_used(caplog: Any) -> None:
    wishes = PlaybackRequests({})
    for _ in range(3):
        wishes.read({"prompts": "a fox", "first_frame_image": "fox.png"})
    assert caplog.text.count("from text alone") == 1


def test_a_new_session_forgets_a_transition() -> None:
    wishes, prompts = PlaybackRequests({}), [{"text": "a fox"}]
    sent = {"prompts": prompts, "transition": {"target_prompts": [{"text": "an owl"}]}}
    read = wishes.read(sent)
    assert read is not None
    assert read.request.prompt == "an owl"
    wishes.start_session()
    read = wishes.read({"prompts": prompts})
    assert read is not None
    assert read.request.prompt == "a fox"
