"""The `ltxq` command: its list of commands, and the exit code of every error.

Starting must stay quick: nothing here imports Celery, Redis, boto3 or torch.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ltxq import stopping
from ltxq.cli import batch, fleet, gateway, jobs, machine, screen, streams, usage
from ltxq.errors import (
    ConfigurationError,
    IdempotencyConflict,
    InvalidRequest,
    JobNotFinished,
    JobNotFound,
    LtxqError,
    MissingExtra,
    RetryableError,
    UnknownModel,
    WaitTimeout,
)

_HELP = """
A queue for LTX-2 video generation: a prompt goes in, an MP4 comes out.

Try it on this machine with `ltxq demo`. LTXQ_URL names the queue: a Redis server or, with
LTXQ_API_KEY, a gateway. LTXQ_S3_ENDPOINT and LTXQ_S3_BUCKET name the storage. With --json every
command prints one JSON object, an error as {"error": {code, message, hint, retryable}}.

Exit codes: 0 done · 1 the command failed, or the job failed or was cancelled · 2 wrong request,
option or setting · 3 no such job · 4 queue or storage unavailable or full: try again later ·
5 not finished within --wait-timeout · 70 a bug in ltxq · 128 + N stopped by signal N, as 130 by
Ctrl-C and 143 by SIGTERM. LTXQ_DEBUG=1 prints the traceback of an error.
"""
_BUG, _CTRL_C = 70, 130

_WRONG_USE = (
    InvalidRequest,
    UnknownModel,
    ConfigurationError,
    MissingExtra,
    IdempotencyConflict,
    JobNotFinished,
)


def exit_code(error: LtxqError) -> int:
    """The command's exit code for this error; the list is in `ltxq --help`."""
    if isinstance(error, JobNotFound):
        return 3
    if isinstance(error, WaitTimeout):
        return 5
    if isinstance(error, RetryableError):
        return 4
    return 2 if isinstance(error, _WRONG_USE) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Raises nothing: errors are shown.

    Args:
        arguments: without the program's name; default the process's.
    """
    streams.open_missing()
    streams.name_user()
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Known before the command line is parsed, so that an error in it is JSON too.
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    with stopping.interrupting() as interrupts:
        try:
            code = int(_app()(args=words, prog_name="ltxq", standalone_mode=False) or 0)
            if error := streams.flush_output():
                raise error
        except KeyboardInterrupt:
            code = _CTRL_C
        except Exception as exc:
            if os.environ.get("LTXQ_DEBUG"):
                raise
            code = _CTRL_C if isinstance(exc, typer.Abort) else _shown(exc, as_json)
    if code != _CTRL_C:  # which typer makes of any interrupt
        return code
    by = f" by {interrupts.last.name}" if interrupts.last else ""
    screen.error({"code": "interrupted", "message": f"Interrupted{by}."}, as_json=as_json)
    return interrupts.exit_code


def _shown(exc: Exception, as_json: bool) -> int:
    fields: dict[str, Any]
    if isinstance(exc, LtxqError):
        code, fields = exit_code(exc), screen.error_fields(exc)
    elif hasattr(exc, "format_message"):  # typer's own, whose class moves between its versions
        message, hint = usage.explained(exc)
        code, fields = 2, {"code": "usage", "message": message, "hint": hint}
    elif isinstance(exc, BrokenPipeError):  # for example `ltxq list | head -1`
        streams.flush_output()
        return streams.READ_BY_NOBODY
    elif isinstance(exc, OSError):
        code, fields = 1, {"message": _about_system(exc)}
    else:
        hint = "Run the command with LTXQ_DEBUG=1 for a traceback, and please report it."
        message = f"ltxq has a bug: {type(exc).__name__}: {exc}."
        code, fields = _BUG, {"message": message, "hint": hint}
    screen.error(fields, as_json=as_json)
    return code


def _about_system(exc: OSError) -> str:
    try:
        Path.cwd()
    except OSError:
        return "The working directory no longer exists."
    if exc.filename is None and exc.errno == errno.ENOSPC:
        return "Standard output cannot be written: no space is left on its device."
    return f"{exc}."


def _app() -> typer.Typer:
    app = typer.Typer(
        help=_HELP,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback(invoke_without_command=True)(_start)
    for command in (jobs.submit, jobs.status, jobs.watch, jobs.cancel, jobs.retry, jobs.delete):
        app.command()(command)
    app.command("list")(jobs.list_jobs)
    app.command()(batch.batch)
    for command in (fleet.workers, fleet.queue, fleet.drain, fleet.clean):
        app.command()(command)
    for command in (machine.demo, machine.up, machine.worker, machine.generate, machine.doctor):
        app.command()(command)
    for command in (gateway.gateway, gateway.key):
        app.command()(command)
    app.add_typer(machine.models, name="model")
    return app


def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        screen.say(f"ltxq {installed('ltxq')}")
    elif context.invoked_subcommand is None:
        screen.say(*context.get_help().splitlines())
