"""Logs of workers, supervisors and the gateway: lines for people, or JSON for machines
(`LTXQ_LOG`), each with the job it is about.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

from ltxq.printable import one_line

LogForm = Literal["human", "json"]

_job: ContextVar[str | None] = ContextVar("ltxq_job", default=None)


@contextmanager
def about_job(job_id: str) -> Iterator[None]:
    """Lines that this thread logs inside name the job, those of libraries too."""
    token = _job.set(job_id)
    try:
        yield
    finally:
        _job.reset(token)


def set_up_logging(form: LogForm, part: str = "") -> None:
    """Log to standard error; of libraries only warnings and errors.

    Args:
        part: the name on every line: a worker's, or 'gateway'.
    """
    output = logging.StreamHandler()
    output.setFormatter(_Json(part) if form == "json" else _Human(part))
    logging.basicConfig(level=logging.WARNING, handlers=[output], force=True)
    logging.getLogger("ltxq").setLevel(logging.INFO)


class _Formatter(logging.Formatter):
    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part


class _Human(_Formatter):
    """`2026-11-24 07:10:00,123 WARNING gpu0@host video_…: what happened`

    A record is one line, and a traceback is indented below it, so a stranger's text cannot look
    like another record.
    """

    def format(self, record: logging.LogRecord) -> str:
        job, text = _job.get(), record.getMessage()
        if job is not None and job not in text:
            text = f"{job}: {text}"
        words = (self.formatTime(record), record.levelname, self._part, text)
        line = " ".join(filter(None, words))
        # Not record.exc_text: another formatter may have put it there, with nothing escaped.
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        below = "\n".join(filter(None, [trace, record.stack_info]))
        rows = below.split("\n") if below else []
        return "\n".join([one_line(line), *(f"    {one_line(row)}" for row in rows)])


class _Json(_Formatter):
    """One object on one line: time, level, part, logger, job_id (where there is one), message."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "part": self._part or "supervisor",
            "logger": record.name,
            "job_id": _job.get(),
            "message": record.getMessage(),
            "trace": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({name: text for name, text in fields.items() if text is not None})
