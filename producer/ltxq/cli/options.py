"""Command-line options made from `VideoRequest`, so that the two never differ.

Here text becomes numbers, pairs and None; `VideoRequest` checks the values.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo

from ltxq.cli import screen
from ltxq.errors import InvalidRequest
from ltxq.job import VideoRequest

AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on standard output and nothing else."),
]
IdempotencyKey = Annotated[
    str | None,
    typer.Option(help="Submitting the same request again with this key makes no second job."),
]
RequireWorker = Annotated[
    bool,
    typer.Option(
        "--require-worker", help="Refuse a model for which no worker is ready, instead of waiting."
    ),
]
WaitTimeoutSeconds = Annotated[
    float | None,
    typer.Option(min=0, help="Seconds to wait before giving up (exit code 5); the work goes on."),
]


MOST_INPUT = 64 * 1024  # bytes of a prompt on standard input; the longest valid one takes 20,000


def _has_escapes(text: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in text)


def _from_input(prompt: str) -> str:
    """The prompt, read from standard input if it is '-'.

    Raises:
        InvalidRequest: standard input is empty, too long or not UTF-8.
    """
    if prompt != "-":
        with suppress(UnicodeError):  # under an ASCII locale, Python escapes other bytes
            return os.fsencode(prompt).decode("utf-8") if _has_escapes(prompt) else prompt
        return prompt
    if sys.stdin.isatty():
        screen.note("Type the prompt, then Ctrl-D on a line of its own.")
    read = sys.stdin.buffer.read(MOST_INPUT + 1)
    if len(read) > MOST_INPUT:
        raise InvalidRequest.of(
            ("prompt", f"standard input holds more than {MOST_INPUT} bytes"),
            hint="For many prompts use `ltxq batch`.",
        )
    try:
        text = read.decode("utf-8-sig").strip()
    except UnicodeDecodeError as exc:
        raise InvalidRequest.of(
            ("prompt", f"standard input is not UTF-8, from byte {exc.start + 1} on")
        ) from None
    if not text:
        raise InvalidRequest.of(
            ("prompt", "standard input is empty"), hint='Example: echo "a red fox" | ltxq submit -'
        )
    return text


Prompt = Annotated[
    str,
    typer.Argument(
        help="What the clip shows; - reads it from standard input.", callback=_from_input
    ),
]


def request_options(
    *, without: Collection[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command every field of `VideoRequest` but the prompt as an option.

    The command takes them as one argument, `fields`: those that were given, as
    `VideoRequest.parse` takes them.
    """
    chosen = {
        name: field
        for name, field in VideoRequest.model_fields.items()
        if name != "prompt" and name not in without
    }

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(**given: Any) -> Any:
            fields = {name: given.pop(name) for name in chosen}
            return command(fields=_parsed(fields), **given)

        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(annotation=hints[name])
            for name, parameter in inspect.signature(command).parameters.items()
            if name != "fields"
        ]
        options = [_option(name, field) for name, field in chosen.items()]
        signature = inspect.Signature([*own, *options])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return run

    return decorate


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    kind, flags = _plain(field.annotation), [f"--{name.replace('_', '-')}"]
    default = "" if field.default is None else f" [default: {field.default}]"
    text = field.description or ""
    if name == "seed":  # a command line has "none" as a word
        kind, text = str, "0 to 2^53-1; the same seed makes the same clip. Default: random."
    elif name == "not_before":
        kind = str
    elif name == "metadata":
        kind, flags, default = list[str], ["--metadata"], ""
        text = "KEY=VALUE, stored with the job; at most 16 times."
    elif kind is bool:
        flags, default = [f"{flags[0]}/--no-{name}"], f" [default: {name}]"
    option = typer.Option(*flags, help=f"{text}{default}".strip(), show_default=False)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _plain(annotation: Any) -> Any:
    """A field's type without None and without constraints."""
    if get_origin(annotation) in (UnionType, Union):
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0]
    return annotation


def _parsed(fields: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in fields.items() if value not in (None, [])}
    if given.get("seed") == "random":
        given["seed"] = None
    if "metadata" in given:
        pairs = [pair.partition("=") for pair in given["metadata"]]
        if wrong := [key for key, equals, _ in pairs if not equals]:
            raise InvalidRequest.of(("metadata", f"must be KEY=VALUE, not {wrong[0][:100]!r}"))
        given["metadata"] = {key: value for key, _, value in pairs}
        if len(given["metadata"]) < len(pairs):
            raise InvalidRequest.of(("metadata", "must have each key once"))
    return given
