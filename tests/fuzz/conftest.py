"""How many inputs the fuzz tests made, told at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import generated


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[Any]:
    before = generated.made
    try:
        return (yield)
    finally:
        item.user_properties.append(("inputs", generated.made - before))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        if report.when == "call"
    ]
    inputs = sum(n for r in reports for name, n in r.user_properties if name == "inputs")
    if inputs:
        terminalreporter.write_line(f"{inputs:,} inputs generated")
