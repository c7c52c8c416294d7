"""Ranges and preconditions of a GET, by RFC 9110."""

from __future__ import annotations

import re

from starlette.datastructures import Headers

_ONE = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.IGNORECASE)


class Unsatisfiable(Exception):
    """The range begins beyond the end of the file."""


def wanted_part(headers: Headers, etag: str, size: int) -> tuple[int, int] | None:
    """The first and the last byte that a GET asks for; None: the whole file.

    Several ranges, other units and mistakes are ignored, as the RFC allows: the whole file comes.

    Raises:
        Unsatisfiable
    """
    condition = headers.get("if-range")
    if condition is not None and condition.strip() != etag:  # another version, or a date
        return None
    match = _ONE.fullmatch(headers.get("range", ""))
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:  # the last so many bytes
        if int(last) == 0 or size == 0:
            raise Unsatisfiable
        return max(0, size - int(last)), size - 1
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise Unsatisfiable
    return int(first), min(int(last or size), size - 1)


def asks_for_range(headers: Headers) -> bool:
    """Whether `wanted_part` may answer a part."""
    return _ONE.fullmatch(headers.get("range", "")) is not None


def is_known(headers: Headers, etag: str) -> bool:
    """Whether the client has this version: If-None-Match."""
    return _names(headers.get("if-none-match"), etag, weak=True)


def is_another(headers: Headers, etag: str) -> bool:
    """Whether the client wants another version only: If-Match."""
    wanted = headers.get("if-match")
    return wanted is not None and not _names(wanted, etag, weak=False)


def _names(tags: str | None, etag: str, *, weak: bool) -> bool:
    if tags is None:
        return False
    each = [tag.strip() for tag in tags.split(",")]
    return "*" in each or any((tag.removeprefix("W/") if weak else tag) == etag for tag in each)
