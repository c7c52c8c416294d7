"""What may be asked for, and how what may not is refused."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltxq.errors import InvalidRequest
from ltxq.job import MAX_SEED, VideoRequest


def refusal(**fields: Any) -> tuple[str, str]:
    """The field and the reason of a request that must be refused for one thing."""
    with pytest.raises(InvalidRequest) as caught:
        VideoRequest.parse({"prompt": "a fox", **fields})
    ((field, reason),) = caught.value.problems
    assert str(caught.value).startswith(f"{field}: {reason}")
    return field, reason


def test_defaults_are_the_first_users() -> None:
    request = VideoRequest(prompt="a fox")
    assert (request.height, request.width, request.num_frames) == (512, 768, 33)
    assert (request.frame_rate, request.seed, request.audio) == (24.0, None, True)
    assert (request.priority, request.model, request.stages) == ("normal", None, 1)


@pytest.mark.parametrize(
    ("fields", "field", "nearest"),
    [
        ({"height": 500}, "height", "480 or 512"),
        ({"width": 63}, "width", "64"),
        ({"width": 2049}, "width", "2048"),
        ({"height": -5}, "height", "64"),
        ({"num_frames": 32}, "num_frames", "25 or 33"),
        ({"num_frames": 0}, "num_frames", "1"),
        ({"num_frames": 489}, "num_frames", "473"),
        ({"num_frames": 10**9}, "num_frames", "473"),
        ({"num_frames": 2000, "frame_rate": 60}, "num_frames", "1193"),
        ({"num_frames": 25, "frame_rate": 1}, "num_frames", "17"),
        ({"frame_rate": 0.5, "num_frames": 9}, "frame_rate", "1"),
        ({"frame_rate": 61}, "frame_rate", "60"),
        ({"seed": -1}, "seed", "0"),
        ({"seed": MAX_SEED + 1}, "seed", str(MAX_SEED)),
        ({"crop_width": 767}, "crop_width", "766 or 768"),
        ({"crop_height": 400}, "crop_height", "482"),
        ({"stages": 2, "height": 480}, "height", "448 or 512"),
        ({"stages": 2, "width": 2016}, "width", "1984 or 2048"),
        ({"stages": 2, "crop_width": 704}, "crop_width", "706"),
    ],
)
def test_what_cannot_be_made_is_refused_with_the_nearest_that_can(
    fields: dict[str, Any], field: str, nearest: str
) -> None:
    refused, reason = refusal(**fields)
    assert refused == field
    assert f"nearest: {nearest}" in reason
    for value in nearest.split(" or "):
        VideoRequest.parse({"prompt": "a fox", **fields, field: int(value)})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n\t"}, "prompt"),
        ({"prompt": "x" * 5001}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"model": "../etc"}, "model"),
        ({"model": "A b"}, "model"),
        ({"priority": "urgent"}, "priority"),
        ({"expires_in": 7 * 24 * 3600 + 1}, "expires_in"),
        ({"timeout": 0}, "timeout"),
        ({"stages": 0}, "stages"),
        ({"stages": 3}, "stages"),
        ({"frame_rate": float("nan")}, "frame_rate"),
        ({"frame_rate": float("inf")}, "frame_rate"),
        ({"webhook_url": "file:///etc/passwd"}, "webhook_url"),
        ({"webhook_url": "http://"}, "webhook_url"),
        ({"webhook_url": "http://["}, "webhook_url"),
        ({"webhook_url": "http://:80/"}, "webhook_url"),
        ({"webhook_url": "http://a:port/"}, "webhook_url"),
        ({"webhook_url": "http://a:99999/"}, "webhook_url"),
        ({"webhook_url": "http://a/b c"}, "webhook_url"),
        ({"webhook_url": "http://a/\0"}, "webhook_url"),
        ({"webhook_url": "http://a/\ud800"}, "webhook_url"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"lora": []}, "lora"),
    ],
)
def test_wrong_fields_are_refused_by_name(fields: dict[str, Any], field: str) -> None:
    assert refusal(**fields)[0] == field


NUMBERS = [
    name
    for name, field in VideoRequest.model_fields.items()
    if {int, float} & {field.annotation, *get_args(field.annotation)}
]


@pytest.mark.parametrize("name", NUMBERS)
def test_true_is_no_number(name: str) -> None:
    assert refusal(**{name: True}) == (name, "must be a number")


@pytest.mark.parametrize("who", ["user:S3cret@", "S3cret@", ":S3cret@", "@"])
def test_a_webhook_url_with_a_password_is_refused_and_not_repeated(who: str) -> None:
    field, reason = refusal(webhook_url=f"https://{who}hooks.example/done?token=S3cret")
    assert field == "webhook_url"
    assert "must have no user or password in it" in reason
    assert "S3cret" not in reason


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example/done?token=a@b",
        "http://[2001:db8::1]:8080/ü",
        "https://bücher.example",
    ],
)
def test_a_webhook_url_of_any_other_form_is_kept_as_it_came(url: str) -> None:
    assert VideoRequest(prompt="a fox", webhook_url=url).webhook_url == url


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        VideoRequest.parse({"prompt": "", "height": 1, "num_frames": 2, "colour": "red"})
    assert {field for field, _ in caught.value.problems} == {
        "prompt", "height", "num_frames", "colour",
    }  # fmt: skip


def test_limits_themselves_are_allowed() -> None:
    request = VideoRequest(
        prompt="x" * 5000,
        width=2048,
        height=64,
        num_frames=1193,
        frame_rate=60,
        seed=MAX_SEED,
        metadata={f"{i:064d}": "v" * 512 for i in range(16)},
    )
    assert request.duration <= 20


def test_a_settled_request_has_a_model_and_a_seed_and_keeps_its_own() -> None:
    settled = VideoRequest(prompt="a fox", seed=None).settled("instant")
    assert settled.model == "instant"
    assert settled.seed is not None
    assert 0 <= settled.seed <= MAX_SEED
    own = VideoRequest(prompt="a fox", seed=0, model="mine")
    assert own.settled("instant") == own


def test_a_size_that_is_no_multiple_of_32_is_cropped_from_one_that_is() -> None:
    request = VideoRequest(prompt="a fox", width=1280, height=736, crop_height=720)
    assert request.output_size == (1280, 720)
    in_two = VideoRequest(prompt="a fox", stages=2, width=1920, height=1088, crop_height=1026)
    assert in_two.output_size == (1920, 1026)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_garbage_is_refused_as_an_invalid_request(garbage: Any) -> None:
    with pytest.raises(InvalidRequest):
        VideoRequest.parse(garbage)


@given(
    st.fixed_dictionaries(
        {"prompt": st.text()},
        optional={
            name: st.none() | st.integers() | st.floats() | st.text() | st.booleans()
            for name in VideoRequest.model_fields
            if name != "prompt"
        },
    )
)
def test_a_request_is_refused_or_survives_json_unchanged(fields: dict[str, Any]) -> None:
    try:
        request = VideoRequest.parse(fields)
    except InvalidRequest:
        return
    assert VideoRequest.parse(json.loads(request.model_dump_json())) == request


@given(st.text(min_size=1, max_size=5000).filter(str.strip))
def test_a_prompt_is_kept_to_the_letter(prompt: str) -> None:
    try:
        kept = VideoRequest.parse({"prompt": prompt}).prompt
    except InvalidRequest:
        assert any("\ud800" <= c <= "\udfff" for c in prompt)
    else:
        assert kept == prompt
