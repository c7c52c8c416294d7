"""The worker that forged things are thrown at, and how many inputs were made, told at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import typer

import generated
from fleet import Fleet, worker_environment
from hostile_worker import HostileWorker
from ltxq import cli
from ltxq_worker.embedded.servers import RedisServer, S3Server
from servers import start_or_skip


@pytest.fixture(scope="session")
def hostile(
    s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HostileWorker]:
    """For all tests of this process: leave it in order."""
    with start_or_skip(lambda: RedisServer.start(tmp_path_factory.mktemp("redis"))) as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        environment = worker_environment(url, s3_server, tmp_path_factory.mktemp("spool"))
        with Fleet(environment) as fleet:
            hostile = HostileWorker(
                fleet.wait_until_ready(), url, tmp_path_factory.mktemp("marks") / "loaded"
            )
            yield hostile
            hostile.close()


@pytest.fixture(scope="module", autouse=True)
def _command_line_built_once() -> Iterator[None]:
    """Building it takes longer than most inputs do. Undone before any other test runs."""
    command = typer.main.get_command(cli._app())
    with patch.object(cli, "_app", lambda: command):
        yield


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fuzzing is for `make test-all` and `make fuzz`."""
    for item in items:
        if "/fuzz/" in item.path.as_posix():
            item.add_marker(pytest.mark.extended)
