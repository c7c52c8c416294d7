"""Request bodies as fields by name: JSON, and forms (OpenAI's SDK sends multipart). The size and
the time of a body are limited while it is read.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, parse_options_header
from starlette.requests import ClientDisconnect, Request

from ltxq.errors import InvalidRequest
from ltxq.gateway.openai.errors import Refused, UnsupportedParameter
from ltxq.printable import one_line
from ltxq.reasons import why_not_json

BODY_MOST = 256 * 1024  # bytes; the longest VideoRequest, written in \uXXXX, is under 200 KB
BODY_SECONDS = 30.0  # from the end of the request's head to the end of its body
FIELDS_MOST = 100
_FORMS = (b"multipart/form-data", b"application/x-www-form-urlencoded")


async def body_of(request: Request) -> bytes:
    """The whole body.

    Raises:
        Refused: 413 too large, 408 too slow, or 400 cut off.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_MOST:
                    raise _TooLarge(bytes(body))
    except TimeoutError:
        raise Refused(
            408,
            "timed_out",
            f"The body did not arrive within {BODY_SECONDS:g} s.",
            hint="Send the request again.",
        ) from None
    except ClientDisconnect:
        raise Refused(400, "invalid_request", "The connection closed inside the body.") from None
    return bytes(body)


async def fields_of(request: Request) -> dict[str, Any]:
    """The fields of a form or of a JSON object.

    Raises:
        Refused: as `body_of`, and 415 for other media types.
        InvalidRequest: the body is broken.
        UnsupportedParameter: the form has a file.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    try:
        body = await body_of(request)
    except _TooLarge as exc:
        if kind == b"multipart/form-data":
            _refuse_files_of(exc.body, options.get(b"boundary", b""))
        raise
    _check_kind(kind, body)
    match kind:
        case b"multipart/form-data":
            return _joined(_form(body, options.get(b"boundary", b"")))
        case b"application/x-www-form-urlencoded":
            return _joined(_pairs(body))
        case b"application/json" | b"":
            return json_object(body)
    raise Refused(
        415,
        "unsupported_media_type",
        "The body must be application/json or multipart/form-data.",
        hint="Set the content-type header to the body's type.",
    )


def _check_kind(kind: bytes, body: bytes) -> None:
    """Refuse a body of another kind than its header says: without a header from the caller, curl
    and urllib call everything a form.
    """
    start = body.lstrip()[:2]
    if kind in _FORMS and start[:1] == b"{":
        is_kind, want = "JSON", "application/json"
    elif kind not in _FORMS and start == b"--":
        is_kind, want = "a multipart form", "multipart/form-data, with its boundary"
    else:
        return
    said = one_line(kind[:100].decode("latin-1")) or "missing"
    raise Refused(
        415,
        "unsupported_media_type",
        f"The body is {is_kind}, but its content-type header is {said}.",
        hint=f"Set content-type: {want}.",
    )


def json_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        InvalidRequest
    """
    try:
        fields = json.loads(body, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except InvalidRequest:
        raise
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest.of(("body", f"is not JSON: {why_not_json(exc)}")) from None
    if not isinstance(fields, dict):
        raise InvalidRequest.of(("body", "must be a JSON object"))
    return fields


class _TooLarge(Refused):
    """`body`: the part that was read."""

    def __init__(self, body: bytes) -> None:
        super().__init__(
            413,
            "too_large",
            f"The body is larger than {BODY_MOST // 1024} KiB.",
            hint="Shorten it.",
        )
        self.body = body


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise InvalidRequest.of(("body", "has a name twice"))
    return fields


def _refuse_constant(constant: str) -> Any:
    """NaN and Infinity: Python reads them, but JSON has no such numbers."""
    raise InvalidRequest.of(("body", f"is not JSON: it has no number {constant}"))


def _form(body: bytes, boundary: bytes) -> list[tuple[str, str]]:
    """Names and texts of a multipart form."""
    pairs: list[tuple[str, str]] = []
    ended = False

    def add(part: Field) -> None:
        if len(pairs) >= FIELDS_MOST:
            raise InvalidRequest.of(("body", f"has more than {FIELDS_MOST} fields"))
        pairs.append((_text(part.field_name or b""), _text(part.value or b"")))

    def end() -> None:
        nonlocal ended
        ended = True

    try:
        _parse(body, boundary, add, end)
    except FormParserError:
        raise InvalidRequest.of(
            ("body", "is not multipart/form-data with this boundary and a name for each part")
        ) from None
    if not ended:
        raise InvalidRequest.of(("body", "is a multipart form without an end"))
    return pairs


def _refuse_files_of(cut: bytes, boundary: bytes) -> None:
    """Refuse a form that is too large by the name of its file, if the part read has one."""
    with suppress(FormParserError):
        _parse(cut + b"\r\n--" + boundary + b"--\r\n", boundary, lambda _: None, lambda: None)


# Not Starlette's request.form(): it names no refused file and takes other encodings for Latin-1.
def _parse(
    body: bytes, boundary: bytes, on_field: Callable[[Field], None], on_end: Callable[[], None]
) -> None:
    in_memory = {"MAX_MEMORY_FILE_SIZE": math.inf}  # the body is bounded: no file on disk
    parser = FormParser(
        "multipart/form-data", on_field, _refuse_file, on_end, boundary, config=in_memory
    )
    parser.write(body)


def _refuse_file(file: File) -> None:
    name = (file.field_name or b"file").decode(errors="replace")
    name = re.sub(r"\[.*|[^\w-]", "", name)[:60]
    raise UnsupportedParameter(name, f"{name} is a file, and files are not supported yet.")


def _pairs(body: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            body.decode(), keep_blank_values=True, max_num_fields=FIELDS_MOST, errors="strict"
        )
    except ValueError:
        raise InvalidRequest.of(
            ("body", f"must be a UTF-8 form of at most {FIELDS_MOST} fields")
        ) from None


def _text(data: bytes | bytearray) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidRequest.of(("body", "must be text in UTF-8")) from None


def _joined(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """The pairs as fields; `metadata[order]=7` becomes `{"metadata": {"order": "7"}}`."""
    fields: dict[str, Any] = {}
    for name, text in pairs:
        outer, _, rest = name.partition("[")
        if rest.endswith("]") and outer == "metadata" and isinstance(fields.get(outer, {}), dict):
            inner = fields.setdefault(outer, {})
            key = rest[:-1]
        else:
            inner, key = fields, outer if rest.endswith("]") else name
        if key in inner:
            raise InvalidRequest.of((outer, "is given twice"))
        inner[key] = text
    return fields
