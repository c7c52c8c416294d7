"""Prepares standard input, output and error for a command, and its user's name.

A stream may be closed, on a full disk, a pipe without a reader, or in an encoding that lacks a
prompt's characters. The user may have no name.
"""

from __future__ import annotations

import getpass
import io
import os
import signal
import sys
from contextlib import suppress

READ_BY_NOBODY = 128 + getattr(signal, "SIGPIPE", 13)  # the usual exit code of a command


def name_user() -> None:
    """Give a user without an entry in /etc/passwd a name, since torch asks for one when it is
    imported.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def open_missing() -> None:
    """Connect closed streams to the null device, so that no file or connection gets their numbers.
    Characters that an encoding lacks are written as escapes.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_output() -> OSError | None:
    """Flush standard output. After an error, which is returned, nothing more is written, not even
    when Python ends.
    """
    try:
        sys.stdout.flush()
    except OSError as exc:
        with suppress(OSError, ValueError):  # tests have no file there
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exc
    return None
