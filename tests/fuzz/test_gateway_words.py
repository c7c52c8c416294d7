"""The gateway's own reading of what strangers send: forms, JSON, the field's words for a clip. Over
HTTP schemathesis does the like: tests/integration/test_gateway_spec.py.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import strategies as st
from starlette.requests import Request

from generated import (
    count,
    fuzzed,
    json_values,
    mutated,
    nested,
    numbers,
    scalars,
    surrogates,
    texts,
)
from ltxq.errors import InvalidRequest, LtxqError
from ltxq.gateway.openai.errors import Refused, answer
from ltxq.gateway.openai.forms import fields_of
from ltxq.gateway.openai.request import NAMES, NEUTRAL, request_of

WORDS = (*NAMES, *NEUTRAL, "size", "seconds")
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na fox\r\n'
    b'--x\r\nContent-Disposition: form-data; name="metadata[order]"\r\n\r\n7\r\n'
    b'--x\r\nContent-Disposition: form-data; name="f"; filename="f.png"\r\n\r\n\x89PNG\r\n--x--\r\n'
)
KINDS = (
    "multipart/form-data; boundary=x", "multipart/form-data",
    'multipart/form-data; boundary="\xff"',
    "application/json", "application/x-www-form-urlencoded", "text/plain", "",
)  # fmt: skip

wishes = st.one_of(
    st.fixed_dictionaries(
        {"prompt": texts},
        optional={
            "size": st.sampled_from(["1280x720", "0x0", "99999x64", "64x", "٦٤x٦٤"]) | scalars,
            "seconds": numbers | st.sampled_from(["4", "1e9", "-0", "nan", "0x4"]) | texts,
            "fps": numbers | texts,
            "stages": numbers | st.sampled_from(["2", "2.0"]),
            "metadata": json_values() | st.integers(1, 300).map(lambda depth: "[" * depth),
        },
    ),
    st.dictionaries(st.sampled_from(WORDS) | texts | surrogates, json_values(), max_size=6),
    st.integers(1, 300).map(lambda depth: {"prompt": nested(depth), "metadata": nested(depth)}),
)


def told(error: LtxqError) -> dict[str, Any]:
    """The error as the stranger gets it, which must be fit for JSON and for a line of a log."""
    response = answer(error)
    assert 400 <= response.status_code < 500
    body: dict[str, Any] = json.loads(bytes(response.body))["error"]
    assert "\n" not in body["message"]
    assert len(body["message"]) < 20_000
    return body


@fuzzed(0.1, fields=wishes)
def test_a_wish_becomes_a_request_or_a_refusal_by_name(fields: dict[str, Any]) -> None:
    count()
    try:
        request = request_of(fields)
    except InvalidRequest as exc:
        assert told(exc)["problems"]
        return
    request.model_dump_json()
    assert request.prompt == fields["prompt"]


@fuzzed(
    0.1,
    body=mutated(FORM) | st.binary(max_size=200) | mutated(b'{"prompt": "a", "metadata": {}}'),
    kind=st.sampled_from(KINDS),
)
def test_a_body_becomes_fields_or_a_refusal(body: bytes, kind: str) -> None:
    count()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    head = [(b"content-type", kind.encode("latin-1"))]
    request = Request({"type": "http", "method": "POST", "headers": head}, receive)
    try:
        fields = asyncio.run(fields_of(request))
    except (InvalidRequest, Refused) as exc:
        told(exc)
    else:
        assert isinstance(fields, dict)
