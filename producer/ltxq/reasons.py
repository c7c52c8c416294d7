"""Why a value is refused, in ltxq's words: for each of pydantic's errors, at every door.

A reason follows the field's name: "width: must be a whole number". It never repeats the value,
which may be a secret, and names no option, variable or Python argument: each door shows the name of
the field as its own reader writes it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from json import JSONDecodeError
from typing import Any

from pydantic import AfterValidator, WithJsonSchema

from ltxq.printable import one_line

NAMED_MOST = 20  # models in a message
_A_TIME = "must be a time with its zone, as 2026-12-24T18:00:00Z"
_WORDS = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "none_required": "must be left out",
    "finite_number": "must be a finite number",
    "multiple_of": "must be a multiple of {multiple_of}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length}",
    "too_long": "must have at most {max_length}",
    "string_unicode": "must be text that UTF-8 can hold",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "has characters or a form that are not allowed",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "int_parsing_size": "must be a whole number of fewer digits",
    "timezone_aware": _A_TIME,
    "timezone_naive": "must be a time without a zone",
    "json_invalid": "must be JSON",
    "json_type": "must be JSON",
}
# By the first word of the error's type.
_KINDS = {
    "string": "must be text",
    "bytes": "must be bytes",
    "int": "must be a whole number",
    "float": "must be a number",
    "decimal": "must be a number",
    "bool": "must be true or false",
    "dict": "must be names with values",
    "mapping": "must be names with values",
    "model": "must be names with values",
    "list": "must be a list",
    "tuple": "must be a list",
    "set": "must be a list",
    "frozen": "must be a list",
    "iterable": "must be a list",
    "datetime": _A_TIME,
    "date": "must be a date, as 2026-12-24",
    "time": "must be a time of day, as 18:00:00",
    "path": "must be a path",
    "url": "must be a URL",
    "uuid": "must be a UUID",
    "ip": "must be an IP address or network",
}
_OTHER = "has a value that is not allowed"


def reason_of(error: Mapping[str, Any], names: Collection[str] = ()) -> str:
    """One of `ValidationError.errors()` in our words.

    Args:
        names: of the fields there are: an unknown one is told with the nearest.
    """
    kind = str(error["type"])
    if kind in ("value_error", "assertion_error"):  # a validator's of ltxq, in our words already
        return re.sub("^(Value|Assertion) error, ", "", str(error["msg"]))
    context = {name: _plain(value) for name, value in error.get("ctx", {}).items()}
    if kind == "string_too_short" and context.get("min_length") == "1":
        return "must not be empty"
    words = _WORDS.get(kind) or _KINDS.get(kind.partition("_")[0], _OTHER)
    if kind == "extra_forbidden":
        words += nearest_name(str(error["loc"][-1]), names)
    return words.format_map(context)


def why_not_json(exc: ValueError | RecursionError) -> str:
    """What is wrong with a text that `json.loads` refused."""
    if isinstance(exc, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(exc, RecursionError):
        return "it is nested too deeply"
    if isinstance(exc, JSONDecodeError):
        if not exc.doc.strip():
            return "it is empty"
        return f"character {exc.pos + 1} is wrong, or something before it is missing"
    return "a number in it is too long"


def one_of(choices: Sequence[object]) -> str:
    """'high, normal or low'"""
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}" if others else last


def nearest_name(name: str, names: Collection[str]) -> str:
    """'; nearest: num_frames', or nothing where no name is near."""
    near = get_close_matches(name[:100], names, n=1)
    return f"; nearest: {near[0]}" if near else ""


def which_are_served(model: str, names: Collection[str]) -> str:
    """The models there are instead of an unknown one, the nearest name first of all."""
    if not names:
        return "No model is served."
    first, *more = sorted(names)
    shown = ", ".join([first, *more[: NAMED_MOST - 1]])
    rest = f" and {len(names) - NAMED_MOST} more" if len(names) > NAMED_MOST else ""
    near = nearest_name(model, names).removeprefix("; nearest: ")
    return one_line(f"{f'Did you mean {near}? ' if near else ''}Served are: {shown}{rest}.")


def matching(pattern: str, reason: str) -> tuple[AfterValidator, WithJsonSchema]:
    """Metadata of a text that must match: unpack it into `Annotated[str, …]`."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(reason)
        return text

    return AfterValidator(check), WithJsonSchema({"type": "string", "pattern": f"^{pattern}$"})


def _plain(value: object) -> str:
    """A bound as people write it: 3600, not 3600.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
