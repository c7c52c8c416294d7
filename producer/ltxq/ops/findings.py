"""What a check of `ltxq doctor` finds: one line of its report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ltxq.settings import Settings

Status = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    status: Status
    message: str
    hint: str = ""  # what to do; empty if all is well
    about: str = ""  # "Redis", "S3 storage"; empty: what the check is about


ok = partial(Finding, "ok")
skipped = partial(Finding, "skipped")
warning = partial(Finding, "warning")
problem = partial(Finding, "problem")

Check = Callable[[Settings], Iterator[Finding]]
