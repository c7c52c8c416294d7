"""Errors of a command line in ltxq's words. typer's exceptions are recognised by their names,
because the classes move between its versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from ltxq.printable import one_line
from ltxq.reasons import nearest_name, one_of, reason_of


def explained(exc: Any) -> tuple[str, str]:
    """Message and hint of an error that typer raised about the command line."""
    message, nearest = _message(exc)
    context = getattr(exc, "ctx", None)
    command = context.command_path if context else "the command's"
    return message, f"{nearest}See {command} --help."


def _message(exc: Any) -> tuple[str, str]:
    kind, text = type(exc).__name__, str(getattr(exc, "message", ""))
    param: Any = getattr(exc, "param", None)
    context: Any = getattr(exc, "ctx", None)
    if kind == "MissingParameter" and param is not None:
        return f"{_name(param)} is missing: {_help(param)}", ""
    if kind == "BadParameter":
        if param is None:  # raised by ltxq, in its own words
            return f"{text[:1].upper()}{text[1:]}.", ""
        return f"{_name(param)} {_reason(exc, param)}.", ""
    if kind == "NoSuchOption":
        option = str(exc.option_name)
        known = [flag for p in context.command.params for flag in (*p.opts, *p.secondary_opts)]
        return f"This command has no option {one_line(option)}.", _did_you_mean(option, known)
    if kind == "BadOptionUsage":
        needs = "needs a value" if "requires" in text else "takes no value"
        return f"{exc.option_name} {needs}.", ""
    if match := re.match(r"No such command '([^']*)'", text):
        known = context.command.list_commands(context)
        return f"There is no command {one_line(match[1])!r}.", _did_you_mean(match[1], known)
    if match := re.match(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", text, re.DOTALL):
        quotes = "Put quotes around a prompt of several words. " if _has_prompt(context) else ""
        return f"This command does not take the argument {one_line(match[1])!r}.", quotes
    if text == "Missing command.":
        return "A command is missing.", ""
    return "This command line is not understood.", ""


def _reason(exc: Any, param: Any) -> str:
    choices = getattr(getattr(param, "type_descriptor", None), "choices", None)
    if choices:
        return f"must be {one_of(choices)}"
    cause = exc.__cause__
    if isinstance(cause, ValidationError):
        error = cause.errors()[0]
        if error["type"] != "value_error":  # its message would be typer's
            return reason_of(error)
    return "has a value that is not allowed"


def _name(param: Any) -> str:
    """'--output', or 'PROMPT'."""
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    return str(max(param.opts, key=len))


def _help(param: Any) -> str:
    text = str(getattr(param, "help", None) or "it is required.")
    return text if text[1:2].isupper() else text[0].lower() + text[1:]


def _has_prompt(context: Any) -> bool:
    return any(param.name == "prompt" for param in context.command.params)


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    near = nearest_name(given, list(known)).removeprefix("; nearest: ")
    return f"Did you mean {near}? " if near else ""
