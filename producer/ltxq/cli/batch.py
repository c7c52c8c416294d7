"""Submits many requests from a file: reports invalid lines, submits the others."""

from __future__ import annotations

import json
import secrets
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

import ltxq
from ltxq.cli import screen
from ltxq.cli.options import AsJson, RequireWorker
from ltxq.errors import InvalidRequest, LtxqError, QueueUnavailable, RetryableError
from ltxq.job import Job, VideoRequest
from ltxq.reasons import why_not_json

LONGEST_KEY = 240  # characters of a file's key: the number of a line is added
MAX_LINE = 128 * 1024  # bytes; the longest valid request takes about 100,000 as JSON


def batch(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="One JSON object a line; - is standard input."),
    ],
    from_line: Annotated[int, typer.Option(min=1, help="Skip the lines before this one.")] = 1,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            help="Key of the whole file: with the same key no line makes a second job "
            "[default: random]"
        ),
    ] = None,
    require_worker: RequireWorker = False,
    as_json: AsJson = False,
) -> None:
    """Submit every line of a JSONL file.

    A line has the fields of a request, as {"prompt": "…", "num_frames": 121}, and optionally its
    own idempotency_key. Prints the jobs' ids in order. Reports invalid lines by number, submits
    the others, and exits with 2.
    If the queue becomes unavailable, the error says how to continue without making a job twice.
    """
    file_key = idempotency_key
    if file_key is None:
        file_key = f"batch-{secrets.token_hex(8)}"
    elif not 1 <= len(file_key) <= LONGEST_KEY:
        raise InvalidRequest.of(
            ("idempotency_key", f"must be text of 1 to {LONGEST_KEY} characters")
        )
    submitted: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    with ExitStack() as stack:
        source = _opened(file, stack)
        client = stack.enter_context(ltxq.Client())
        bar = stack.enter_context(screen.Bar()) if sys.stderr.isatty() else None
        number = from_line
        try:
            for number, line in _numbered(source):
                if number < from_line:
                    continue
                try:
                    job = _submit(client, line, f"{file_key}-{number}", require_worker)
                except RetryableError as exc:
                    _stopped(exc, number, file, file_key, submitted, refused, as_json)
                    raise typer.Exit(4) from None
                except LtxqError as exc:
                    refused.append({"line": number, **screen.error_fields(exc)})
                    screen.note(f"line {number}: {exc}")
                else:
                    submitted.append({"line": number, "id": job.id})
                    if not as_json:
                        screen.say(job.id)
                if bar:
                    bar.at("submitting", 0, f"line {number}")
        except (KeyboardInterrupt, OSError):  # OSError: standard output is gone
            screen.note(
                f"Line {number} may have been submitted.", _how_to_go_on(number, file, file_key)
            )
            raise
    if as_json:
        screen.emit({"submitted": submitted, "refused": refused})
    screen.note(f"{len(submitted)} submitted, {len(refused)} refused.")
    if refused:
        raise typer.Exit(2)


def _submit(client: ltxq.Client, line: bytes, key: str, require_worker: bool) -> Job:
    fields = _fields(line)
    own = fields.pop("idempotency_key", None)
    return client.submit(
        VideoRequest.parse(fields),
        idempotency_key=key if own is None else own,
        require_worker=require_worker,
    )


def _opened(file: Path, stack: ExitStack) -> BinaryIO:
    if str(file) == "-":
        if sys.stdin.isatty():
            screen.note("Type one JSON object on each line. Ctrl-D ends the input.")
        return sys.stdin.buffer
    try:
        return stack.enter_context(file.open("rb"))
    except OSError as exc:
        raise InvalidRequest(
            f"{file} cannot be read: {exc.strerror}.", hint="Name a JSONL file, or - for input."
        ) from None


def _numbered(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1; too long ones are cut."""
    number = 0
    while line := source.readline(MAX_LINE + 1):
        number += 1
        rest = line
        while not rest.endswith(b"\n") and (rest := source.readline(MAX_LINE)):
            pass  # the rest is skipped, so that no line fills the memory
        if line.strip():
            yield number, line


def _fields(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE:
        raise InvalidRequest(f"The line is longer than {MAX_LINE} bytes.")
    try:
        fields = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_once)
    except InvalidRequest:
        raise
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(f"The line is not JSON: {why_not_json(exc)}.") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(
            "The line is not a JSON object.", hint='It looks like {"prompt": "a red fox"}'
        )
    return fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; refuses one in which a name occurs twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1)
        raise InvalidRequest(f"{twice[:100]!r} occurs twice.", problems=((twice[:100], "twice"),))
    return fields


def _stopped(
    exc: LtxqError,
    number: int,
    file: Path,
    file_key: str,
    submitted: list[dict[str, Any]],
    refused: list[dict[str, Any]],
    as_json: bool,
) -> None:
    """The error of a queue that is away or full, with what was submitted and how to continue."""
    error = screen.error_fields(exc)
    error.pop("idempotency_key", None)  # the line's key; continuing needs the file's
    if as_json:
        stopped = {"stopped_at": number, "idempotency_key": file_key, "error": error}
        screen.emit({"submitted": submitted, "refused": refused, **stopped})
        return
    screen.note(f"Error: {exc.message}")
    line = "may have been" if isinstance(exc, QueueUnavailable) else "was not"
    screen.note(
        f"{len(submitted)} submitted, {len(refused)} refused. Line {number} {line} submitted; "
        "later lines were not.",
        _how_to_go_on(number, file, file_key),
    )


def _how_to_go_on(number: int, file: Path, file_key: str) -> str:
    command = ["ltxq", "batch", str(file), "--from-line", str(number), "--idempotency-key"]
    return f"Continue with: {shlex.join([*command, file_key])}"
