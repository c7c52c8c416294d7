"""The logs of a real worker: one JSON object a line if asked for, each with its job, and nothing in
them that is nobody's business.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet import PATIENCE, SMALL, Fleet, eventually, wait_until_running, worker_environment
from ltxq import Client
from ltxq.errors import ConfigurationError
from ltxq.logs import about_job, set_up_logging
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import RedisServer, S3Server, free_port
from scrape import Scrape
from servers import S3, start_or_skip

PROMPT = "pl4nted words of a prompt"
PASSWORD = "Pl4ntedRedisWord"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that asks for a password."""
    folder = tmp_path / "redis"
    with start_or_skip(lambda: RedisServer.start(folder, password=PASSWORD)) as server:
        yield server


def test_every_line_of_a_workers_log_is_json_and_names_its_job(
    guarded: RedisServer, s3_server: S3Server, s3: S3, tmp_path: Path
) -> None:
    hook = "http://127.0.0.1:9/Pl4ntedHook?token=Pl4ntedHook"
    environment = {
        **worker_environment(guarded.url, s3_server, tmp_path / "spool"),
        "LTXQ_LOG": "json",
        "LTXQ_INSTANT_SECONDS": "1",
        "LTXQ_WEBHOOK_ALLOW": "127.0.0.1",
        "LTXQ_WEBHOOK_SECRET": "whsec_" + "c2l4dGVlbiBieXRlcyBhbmQgdGhlbiBzb21l",
        "HF_TOKEN": "hf_Pl4ntedToken",
    }
    settings = s3.settings(url=guarded.url, default_model="instant")
    with Fleet(environment) as fleet, Client(settings=settings) as client:
        fleet.wait_until_ready()
        done = client.submit(PROMPT, webhook_url=hook, **SMALL)
        client.wait(done.id, PATIENCE).result_or_raise()
        fleet.wait_for(r"The webhook of")
        killed = client.submit(PROMPT, **SMALL)
        wait_until_running(client, killed)
        fleet.worker("cpu0@host").kill()
        client.wait(killed.id, PATIENCE).result_or_raise()
        cancelled = client.submit(PROMPT, **SMALL)
        wait_until_running(client, cancelled)
        client.cancel(cancelled.id)
        client.wait(cancelled.id, PATIENCE)
        eventually(lambda: "cancelled" in fleet.log)
        fleet.stop()
    lines = [json.loads(line) for line in fleet.log.splitlines()]
    assert {"time", "level", "part", "logger", "message"} <= set(lines[0])
    for job in (done, killed, cancelled):
        about = [line for line in lines if job.id in line["message"]]
        assert about
        assert {line.get("job_id") for line in about} == {job.id}
    assert {line["part"] for line in lines} == {"supervisor", "cpu0@host"}
    assert not [line for line in lines if "job_id" in line and line["job_id"] is None]
    for planted in (PROMPT, PASSWORD, "Pl4ntedHook", "hf_Pl4ntedToken", s3_server.secret_key):
        assert planted not in fleet.log


@pytest.mark.extended
def test_what_a_jobs_own_threads_say_while_redis_is_away_names_it_and_is_counted(
    s3_server: S3Server, s3: S3, tmp_path: Path
) -> None:
    folder, port = tmp_path / "redis", free_port()
    server = start_or_skip(lambda: RedisServer.start(folder))
    environment = {
        **worker_environment(server.url, s3_server, tmp_path / "spool"),
        "LTXQ_LOG": "json",
        "LTXQ_LEASE": "2",
        "LTXQ_INSTANT_SECONDS": "60",
        "LTXQ_METRICS_ADDRESS": f"127.0.0.1:{port}",
    }
    settings = s3.settings(url=server.url, default_model="instant")
    with Fleet(environment) as fleet, Client(settings=settings) as client:
        fleet.wait_until_ready()
        job = client.submit(PROMPT, **SMALL)
        wait_until_running(client, job)
        server.process.kill()
        server.stop()
        fleet.wait_for("the lease is not renewed")
        fleet.wait_for("progress is not reported")
        eventually(lambda: (Scrape.of(port).value("ltxq_worker_lease_failures_total") or 0) > 0)
        with RedisServer.start(folder, port=server.port):
            client.cancel(job.id)
            client.wait(job.id, PATIENCE)
            fleet.stop()
    lines = [json.loads(line) for line in fleet.log.splitlines()]
    said = [line for line in lines if "is not re" in line["message"]]
    assert {line["job_id"] for line in said} == {job.id}
    assert PROMPT not in fleet.log


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("ltxq")
    before, level, ours_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    ours.setLevel(ours_level)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines, as everything that counts them does: a log viewer, a terminal, str.splitlines."""
    return capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("_logging_as_before")
def test_a_line_for_people_has_the_job_once(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("human", "gpu0@host")
    with about_job("video_1"):
        logging.getLogger("ltxq.worker").info("video_1 claimed")
        logging.getLogger("botocore").warning("slow")
    logging.getLogger("ltxq.worker").info("no job")
    first, library, none = said(capsys)
    assert first.endswith(" INFO gpu0@host video_1 claimed")
    assert library.endswith(" WARNING gpu0@host video_1: slow")
    assert none.endswith(" INFO gpu0@host no job")


FORGED = "a\r\n2026-01-01 00:00:00,000 INFO forged \x1b[2J\x9b31m\u2028\u202e\u0085\x0b é"


@pytest.mark.usefixtures("_logging_as_before")
@pytest.mark.parametrize("form", ["human", "json"])
def test_a_strangers_text_makes_no_second_line(
    form: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging(form)
    with about_job(FORGED):
        logging.getLogger("ltxq").info("it said %s", FORGED)
        logging.getLogger("ltxq").info("it said nothing")
    for line, text in zip(said(capsys), (f"it said {FORGED}", "it said nothing"), strict=True):
        assert line.isprintable()
        assert "forged" in line
        if form == "json":
            read = json.loads(line)
            assert (read["message"], read["job_id"]) == (text, FORGED)


@pytest.mark.usefixtures("_logging_as_before")
@pytest.mark.parametrize("form", ["human", "json"])
def test_a_strangers_text_in_a_trace_is_no_line_of_its_own(
    form: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging(form)
    log = logging.getLogger("ltxq")
    try:
        try:
            raise ValueError(FORGED)
        except ValueError as exc:
            raise KeyError("what broke") from exc
    except KeyError:
        log.exception("it broke", stack_info=True)
    lines = said(capsys)
    assert all(line.isprintable() for line in lines)
    if form == "json":
        assert FORGED in json.loads(lines.pop())["trace"]
        assert not lines
        return
    first, *trace = lines
    assert first.endswith("ERROR it broke")
    assert all(line.startswith("    ") for line in trace)
    assert "    Traceback (most recent call last):" in trace
    assert "    KeyError: 'what broke'" in trace
    assert '        log.exception("it broke", stack_info=True)' in trace
    assert r"    ValueError: a\r" in trace
    assert any(line.startswith("    2026-01-01") and r"\x1b[2J" in line for line in trace)


@pytest.mark.usefixtures("_logging_as_before")
def test_a_trace_that_another_formatter_kept_is_not_taken_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging("human", "50%@host")
    try:
        raise ValueError(FORGED)
    except ValueError as exc:
        record = logging.LogRecord(
            "x", logging.ERROR, "", 0, "broke", None, (ValueError, exc, None)
        )
    logging.Formatter().format(record)
    logging.getLogger("ltxq").handle(record)
    first, *trace = said(capsys)
    assert first.endswith(" ERROR 50%@host broke")
    assert trace
    assert all(line.isprintable() and line.startswith("    ") for line in trace)


@pytest.mark.usefixtures("_logging_as_before")
def test_an_error_with_its_trace_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("json")
    try:
        raise ValueError("what broke")
    except ValueError:
        logging.getLogger("ltxq").exception("it broke")
    (line,) = said(capsys)
    assert "ValueError: what broke" in json.loads(line)["trace"]


def test_a_form_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTXQ_LOG", "xml")
    with pytest.raises(ConfigurationError, match="LTXQ_LOG"):
        Settings.read()
