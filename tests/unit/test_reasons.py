"""Refusals are in ltxq's words, whatever is wrong and whichever door it comes to."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import pytest
from pydantic_core.core_schema import ErrorType

from foreign_words import WRONG, foreign
from ltxq.cli import main
from ltxq.client import client as client_module
from ltxq.errors import ConfigurationError, InvalidRequest, LtxqError
from ltxq.gateway.openai.errors import answer
from ltxq.gateway.openai.forms import json_object
from ltxq.gateway.openai.request import CreateVideo, request_of
from ltxq.job import VideoRequest
from ltxq.reasons import reason_of
from ltxq.settings import Settings
from ltxq.testing import MemoryTransport

FIELDS = tuple(VideoRequest.model_fields)
OURS = ("value_error", "assertion_error")  # what a validator of ltxq says


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> MemoryTransport:
    queue = MemoryTransport()
    monkeypatch.setattr(client_module, "RedisTransport", lambda settings: queue)
    return queue


def refusal(call: Callable[[], object]) -> str:
    """Its message; '' if there is none."""
    try:
        call()
    except LtxqError as exc:
        return str(exc)
    return ""


@pytest.mark.parametrize("kind", [kind for kind in get_args(ErrorType) if kind not in OURS])
def test_every_kind_of_error_has_words(kind: str) -> None:
    bounds = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "expected")
    error = {"type": kind, "loc": ("x",), "msg": "Input should", "ctx": dict.fromkeys(bounds, 7.0)}
    reason = reason_of(error)
    assert re.match("(must|is|has) ", reason)
    assert "{" not in reason
    assert not foreign(reason)


def test_a_kind_of_error_that_is_not_known_has_words_too() -> None:
    assert reason_of({"type": "new_in_2030", "loc": (), "msg": "Input should"}).startswith("has ")


@pytest.mark.parametrize("name", [*FIELDS, "num_frame", "lora"])
def test_a_wrong_field_in_python(name: str) -> None:
    for value in WRONG:
        told = refusal(lambda value=value: VideoRequest.parse({"prompt": "a fox", name: value}))
        assert not foreign(told), (value, told)


def test_a_request_that_is_made_in_python_is_refused_as_one_that_is_sent() -> None:
    for name in FIELDS:
        for value in WRONG:
            made = refusal(lambda n=name, v=value: VideoRequest(**{"prompt": "a fox", n: v}))
            sent = refusal(lambda n=name, v=value: VideoRequest.parse({"prompt": "a fox", n: v}))
            assert made == sent
    with pytest.raises(InvalidRequest, match="num_frame: is not a known field; nearest: num_f"):
        VideoRequest(prompt="a fox", num_frame=9)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", [*CreateVideo.model_fields, "num_frame", "guidance_scale"])
def test_a_wrong_field_over_http(name: str) -> None:
    for value in WRONG:
        try:
            request_of({"prompt": "a fox", name: value})
        except InvalidRequest as exc:
            body = bytes(answer(exc).body).decode()
            assert not foreign(body), (value, body)
            problem = json.loads(body)["error"]["problems"][0]
            assert problem["field"].partition(".")[0] in (
                name,
                "num_frames",
                "width",
                "height",
                "size",
            ), body


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"a": 1,}', b'{"a": "\n"}', b"\xff", b"[" * 9999, b"1" * 9999]
)
def test_a_body_that_is_not_json(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        json_object(body)
    assert not foreign(str(caught.value))


def options() -> Iterator[list[str]]:
    """An option of each type with every wrong value, and the ways to get a command line wrong."""
    for name in ("width", "frame_rate", "seed", "audio", "priority", "not_before", "metadata"):
        for value in dict.fromkeys(str(value)[:100] for value in WRONG):
            if "\0" not in value and value.isprintable():
                yield ["submit", "a fox", f"--{name.replace('_', '-')}", value]
    yield from (
        ["submit"], ["submit", ""], ["submit", " "], ["submit", "a", "fox"], ["sumbit", "a fox"],
        ["submit", "a", "--widht", "64"], ["submit", "a", "--width"], ["submit", "a", "--wait=1"],
        ["submit", "a", "--metadata", "x"], ["submit", "a", "--idempotency-key", ""], ["-x"],
        ["submit", "a", "--wait-timeout", "-1"], ["submit", "a", "--wait-timeout", "x"], ["drain"],
        ["list", "--state", "lost"], ["list", "--limit", "0"], ["list", "--limit", "x"],
        ["list", "--after", ""], ["gateway", "--port", "99999"], ["key"], ["key", "A b"], ["batch"],
        ["batch", "f", "--from-line", "0"], ["model", "tny"], ["model", "tiny"], ["status"],
        ["generate", "a"], ["generate", "a", "-o"], ["up", "--redis-port", "x"], ["--verson"],
    )  # fmt: skip


def test_a_wrong_command_line(queue: MemoryTransport, capsys: pytest.CaptureFixture[str]) -> None:
    for words in options():
        main(words)
        shown = capsys.readouterr().err
        assert not foreign(shown), (words, shown)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["submit"], "PROMPT is missing"),
        (["submit", ""], "PROMPT: must not be empty"),
        (["submit", "a", "fox"], "Put quotes around a prompt"),
        (["submit", "a", "--widht", "64"], "Did you mean --width?"),
        (["submit", "a", "--width", "x"], "--width must be a whole number."),
        (["submit", "a", "--num-frames", "32"], "--num-frames: must be 8k+1, not 32"),
        (["submit", "a", "--metadata", "x"], "--metadata: must be KEY=VALUE"),
        (["submit", "a", "--wait-timeout"], "--wait-timeout needs a value."),
        (["submit", "a", "--wait=1"], "--wait takes no value."),
        (["submit", "a", "--seed", "-1"], "--seed: must be from 0 to 2^53-1; nearest: 0, or leave"),
        (["sumbit"], "There is no command 'sumbit'.\nDid you mean submit?"),
        (["list", "--state", "lost"], "--state must be queued, running, succeeded, failed or c"),
        (["generate", "a"], "--output is missing: the MP4 to write."),
    ],
)
def test_a_command_line_is_told_what_is_right(
    words: list[str], told: str, queue: MemoryTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_wrong_lines_of_a_batch(
    queue: MemoryTransport, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = [
        json.dumps({"prompt": "a fox", name: value})
        for name in (*FIELDS, "num_frame")
        for value in WRONG
    ]
    lines += ['{"prompt": ', "[1]", "x", '{"a": 1 "b"}', '{"a": "\x01"}', '{"seed": ' + "1" * 5000]
    file = tmp_path / "lines.jsonl"
    file.write_text("\n".join(lines), "utf-8")
    assert main(["batch", str(file)]) in (2, 4)
    shown = capsys.readouterr().err
    assert not foreign(shown), foreign(shown)


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_a_wrong_setting(name: str) -> None:
    variable = f"LTXQ_{name.upper()}"
    for value in dict.fromkeys(str(value)[:100] for value in WRONG):
        if "\0" in value or not value.isprintable():
            continue
        with patch.dict(os.environ, {variable: value}):
            told = refusal(Settings.read)
        assert not foreign(told), (value, told)
        assert not told or variable in told
    for value in ("hunter2", "https://u:hunter2@x/?q#f", "a=1,hunter2=b", "hunter2 "):
        with patch.dict(os.environ, {variable: value}):
            assert "hunter2" not in refusal(Settings.read)


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_an_empty_setting_is_unset(name: str) -> None:
    unset = Settings.read()
    with patch.dict(os.environ, {f"LTXQ_{name.upper()}": ""}):
        assert Settings.read() == unset


def test_a_wrong_url_or_key_of_a_client() -> None:
    for given in ({"url": "x"}, {"url": "redis://["}, {"api_key": "a b"}, {"api_key": ""}):
        with pytest.raises(ConfigurationError) as caught:
            Settings().pointed(**given)
        assert not foreign(str(caught.value))


def seeds(field: Any) -> list[int | None]:
    return [VideoRequest.parse({"prompt": "a fox", **field}).seed for _ in range(2)]


def test_without_a_seed_none_is_chosen_before_the_submission() -> None:
    assert seeds({}) == seeds({"seed": None}) == [None, None]
    assert seeds({"seed": 42}) == [42, 42]
