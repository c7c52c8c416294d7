"""What a request carries, bounded before it is read: multipart forms (what OpenAI's SDK sends) and
JSON, as fields by name.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any
from urllib.parse import parse_qsl

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from ltxq.gateway.openai.errors import Refused, UnsupportedParameter
from ltxq.gateway.openai.request import invalid

BODY_MOST = (
    256 * 1024
)  # bytes; a request as long as VideoRequest allows, in \uXXXX, is under 200 KB
BODY_SECONDS = 30.0  # from the head of a request to the end of its body
FIELDS_MOST = 100


async def body_of(request: Request) -> bytes:
    """The whole body.

    Raises:
        Refused: it is too large (what came so far is its `body`), or takes too long.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_MOST:
                    raise _TooLarge(bytes(body))
    except TimeoutError:
        raise Refused(408, "timed_out", "The request did not arrive in time.") from None
    except ClientDisconnect:
        raise Refused(400, "invalid_request", "The request ended before its body did.") from None
    return bytes(body)


async def fields_of(request: Request) -> dict[str, Any]:
    """The fields of a form or of a JSON object.

    Raises:
        Refused, InvalidRequest: it is too large, or is neither.
        UnsupportedParameter: it has a file.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    try:
        body = await body_of(request)
    except _TooLarge as exc:
        if kind == b"multipart/form-data":  # its file is what makes it large: say that
            _form(exc.body, options.get(b"boundary", b""), whole=False)
        raise
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
    )


def json_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        InvalidRequest
    """
    try:
        fields = json.loads(body, parse_constant=_refused, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:
        twice = str(exc) if isinstance(exc, _Twice) else "must be JSON"
        raise invalid(("body", twice)) from None
    if not isinstance(fields, dict):
        raise invalid(("body", "must be a JSON object"))
    return fields


class _TooLarge(Refused):
    def __init__(self, body: bytes) -> None:
        super().__init__(413, "too_large", f"A request has at most {BODY_MOST // 1024} KiB.")
        self.body = body


class _Twice(ValueError):
    """A name that is given twice: which of them was meant?"""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _Twice("has a name twice")
    return fields


def _refused(constant: str) -> Any:
    raise ValueError(constant)


def _form(body: bytes, boundary: bytes, *, whole: bool = True) -> list[tuple[str, str]]:
    """Names and texts of a multipart form.

    Args:
        whole: False: the body was cut off, and only its files are looked for.
    """
    form = _Form()
    try:
        MultipartParser(boundary, form.callbacks()).write(body)
    except FormParserError:
        raise invalid(("body", "is no multipart form of its boundary")) from None
    if whole and not form.ended:
        raise invalid(("body", "is a multipart form that does not end"))
    return form.pairs


class _Form:
    """What the parser tells of a form, put together."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []
        self.ended = False
        self._header, self._value, self._text = bytearray(), bytearray(), bytearray()
        self._options: dict[bytes, bytes] = {}  # of the part's Content-Disposition

    def callbacks(self) -> Any:
        """By the names python-multipart calls them by."""
        return {
            "on_part_begin": self._part_begins,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": lambda data, start, end: self._text.extend(data[start:end]),
            "on_part_end": self._part_ends,
            "on_end": self._ends,
        }

    def _part_begins(self) -> None:
        self._options = {}
        self._text.clear()

    def _header_ends(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            _, self._options = parse_options_header(bytes(self._value))
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        if b"filename" in self._options or b"filename*" in self._options:
            name = self._options.get(b"name", b"file").decode(errors="replace")
            name = re.sub(r"\[.*|[^\w-]", "", name)[:60]
            raise UnsupportedParameter(
                f"{name} is a file, and files are not supported yet.",
                hint="Leave it out.",
                problems=((name, "not supported"),),
            )

    def _part_ends(self) -> None:
        if b"name" not in self._options:
            raise invalid(("body", "has a part without a name"))
        if len(self.pairs) >= FIELDS_MOST:
            raise invalid(("body", f"has more than {FIELDS_MOST} fields"))
        self.pairs.append((_text(self._options[b"name"]), _text(self._text)))

    def _ends(self) -> None:
        self.ended = True


def _pairs(body: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            body.decode(), keep_blank_values=True, max_num_fields=FIELDS_MOST, errors="strict"
        )
    except ValueError:
        raise invalid(("body", f"must be a UTF-8 form of at most {FIELDS_MOST} fields")) from None


def _text(data: bytes | bytearray) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise invalid(("body", "must be text in UTF-8")) from None


def _joined(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """`metadata[order]=7` and its like as `{"metadata": {"order": "7"}}`; the rest as it is."""
    fields: dict[str, Any] = {}
    for name, text in pairs:
        outer, _, rest = name.partition("[")
        if rest.endswith("]") and outer == "metadata" and isinstance(fields.get(outer, {}), dict):
            inner = fields.setdefault(outer, {})
            key = rest[:-1]
        else:
            inner, key = fields, outer if rest.endswith("]") else name
        if key in inner:
            raise invalid((outer, "is given twice"))
        inner[key] = text
    return fields
