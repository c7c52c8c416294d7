"""Server-sent events of a real gateway: each change at once, many streams, and their end."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import redis
from test_client import LedgerWorker

from fleet import PATIENCE, eventually
from gateways import Gateway
from ltxq.errors import JobError
from ltxq.gateway.access.keys import new_key
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import RedisServer
from servers import start_or_skip

FOX = {"prompt": "a fox"}
ALICE, BOB = new_key("alice"), new_key("bob")


class Events:
    """An open stream; iterates over its events."""

    def __init__(self, gateway: Gateway, path: str, *, key: str = "") -> None:
        self._http = httpx2.Client(timeout=PATIENCE, trust_env=False)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        request = self._http.build_request("GET", f"{gateway.url}{path}", headers=headers)
        self.answer = self._http.send(request, stream=True)
        self._lines = self.answer.iter_lines() if self.answer.status_code == 200 else iter(())

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *exc: object) -> None:
        self.answer.close()
        self._http.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Its events: {"data": …}, and {"event": "error", …} with it. No keep-alives."""
        return (said for said in self.everything() if "comment" not in said)

    def everything(self) -> Iterator[dict[str, Any]]:
        """Events, and the keep-alives as {"comment": …}."""
        fields: dict[str, Any] = {}
        for line in self._lines:
            name, _, text = line.partition(": ")
            if line and name != "retry":
                fields[name or "comment"] = json.loads(text) if name == "data" else text
            elif not line and fields:
                yield fields
                fields = {}


@pytest.fixture(scope="module")
def url(redis_server: RedisServer) -> str:
    return f"redis://127.0.0.1:{redis_server.port}/13"


@pytest.fixture(scope="module")
def gateway(url: str) -> Iterator[Gateway]:
    with Gateway({"LTXQ_URL": url, "LTXQ_DEFAULT_MODEL": "instant"}) as running:
        yield running


@pytest.fixture
def worker(url: str) -> Iterator[LedgerWorker]:
    """Plays the worker of an empty queue."""
    with redis.Redis.from_url(url, socket_timeout=5) as connection:
        connection.flushdb()
    worker = LedgerWorker(Settings(url=url))
    yield worker
    worker.ledger.close()


def submitted(gateway: Gateway, **what: Any) -> str:
    return str(gateway.ask("POST", "/v1/videos", json=FOX, **what).json()["id"])


@pytest.mark.parametrize("tongue", ["videos", "jobs"])
def test_each_change_is_an_event_and_the_final_one_ends_the_stream(
    gateway: Gateway, worker: LedgerWorker, tongue: str
) -> None:
    job_id = submitted(gateway)
    seen = []
    with Events(gateway, f"/v1/{tongue}/{job_id}/events") as events:
        assert events.answer.headers["content-type"].startswith("text/event-stream")
        assert events.answer.headers["cache-control"] == "no-store"
        for event in events:
            now = event["data"]
            state = now["status"] if tongue == "videos" else now["state"]
            seen.append((state, now["progress"] if tongue == "videos" else now["attempts"]))
            match len(seen):
                case 1:
                    worker.start(job_id)
                case 2:
                    worker.report(job_id, "denoise", 1, 8, 0.25)
                case 3:
                    worker.succeed(job_id)
    if tongue == "videos":
        assert seen == [("queued", 0), ("in_progress", 0), ("in_progress", 25), ("completed", 100)]
    else:
        assert seen == [("queued", 0), ("running", 1), ("running", 1), ("succeeded", 1)]


def test_a_finished_job_is_one_event(gateway: Gateway, worker: LedgerWorker) -> None:
    job_id = submitted(gateway)
    worker.fail(job_id, JobError(code="internal", message="no"))
    with Events(gateway, f"/v1/videos/{job_id}/events") as events:
        assert [event["data"]["status"] for event in events] == ["failed"]


def test_a_change_is_sent_at_once(gateway: Gateway, worker: LedgerWorker) -> None:
    took = []
    for _ in range(5):
        job_id = submitted(gateway)
        with Events(gateway, f"/v1/videos/{job_id}/events") as events:
            told = iter(events)
            assert next(told)["data"]["status"] == "queued"
            began = time.monotonic()
            worker.start(job_id)
            assert next(told)["data"]["status"] == "in_progress"
            took.append(time.monotonic() - began)
    assert sorted(took)[2] < 1  # without news it is looked at every two seconds


def test_a_client_of_http_1_0_gets_events_without_chunks(gateway: Gateway) -> None:
    """As old proxies and load balancers' probes ask."""
    job_id = gateway.ask("POST", "/v1/jobs", json={"prompt": "a fox"}).json()["id"]
    port = int(gateway.url.rpartition(":")[2])
    ask = f"GET /v1/jobs/{job_id}/events HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(ask)
        gateway.ask("POST", f"/v1/jobs/{job_id}/cancel")  # ends the stream
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body.startswith(b"retry: 2000\n\ndata: {")
    assert b'"state":"cancelled"' in body
    assert body.endswith(b"}\n\n")


def test_the_stream_of_a_deleted_job_ends_with_an_error(
    gateway: Gateway, worker: LedgerWorker, url: str
) -> None:
    job_id = submitted(gateway)
    with Events(gateway, f"/v1/videos/{job_id}/events") as events:
        told = iter(events)
        next(told)
        with redis.Redis.from_url(url, socket_timeout=5) as connection:
            connection.delete(f"ltxq:3:job:{job_id}")
        last = next(told)
        assert (last["event"], last["data"]["error"]["code"]) == ("error", "job_not_found")
        assert list(told) == []


def test_a_hundred_streams_need_no_thread_each(gateway: Gateway, worker: LedgerWorker) -> None:
    job_ids = [submitted(gateway) for _ in range(5)]
    process = psutil.Process(gateway.process.pid)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(100) as pool:
        streams = [
            stack.enter_context(Events(gateway, f"/v1/videos/{job_ids[number % 5]}/events"))
            for number in range(100)
        ]
        first = [next(iter(events))["data"]["status"] for events in streams]
        assert first == ["queued"] * 100
        assert process.num_threads() < 40
        ends = [pool.submit(lambda e: [x["data"]["status"] for x in e][-1], e) for e in streams]
        for job_id in job_ids:
            worker.succeed(job_id)
        assert {end.result(PATIENCE) for end in ends} == {"completed"}


def test_open_streams_of_a_key_are_limited_and_a_closed_one_makes_room(
    url: str, worker: LedgerWorker
) -> None:
    environment = {
        "LTXQ_URL": url,
        "LTXQ_API_KEYS": f"{ALICE.entry},{BOB.entry}",
        "LTXQ_MAX_STREAMS_PER_KEY": "2",
    }
    with Gateway(environment) as gateway:
        paths = {
            who.name: f"/v1/videos/{submitted(gateway, key=who.key)}/events" for who in (ALICE, BOB)
        }

        def status(who: Any) -> int:
            with Events(gateway, paths[who.name], key=who.key) as events:
                return events.answer.status_code

        with (
            Events(gateway, paths["alice"], key=ALICE.key) as one,
            Events(gateway, paths["alice"], key=ALICE.key) as two,
        ):
            assert (one.answer.status_code, two.answer.status_code) == (200, 200)
            with Events(gateway, paths["alice"], key=ALICE.key) as three:
                assert three.answer.status_code == 429
                assert int(three.answer.headers["retry-after"]) > 0
                assert json.loads(three.answer.read())["error"]["code"] == "too_many_streams"
            assert status(BOB) == 200
        eventually(lambda: status(ALICE) == 200)  # when it has noticed that they are gone


@pytest.mark.extended
def test_a_silent_stream_is_kept_alive(gateway: Gateway, worker: LedgerWorker) -> None:
    job_id = submitted(gateway)
    with Events(gateway, f"/v1/videos/{job_id}/events") as events:
        told = events.everything()
        next(told)
        assert next(told) == {"comment": "keep-alive"}


def test_streams_end_with_the_gateway(url: str, worker: LedgerWorker) -> None:
    with Gateway({"LTXQ_URL": url, "LTXQ_DEFAULT_MODEL": "instant"}) as gateway:
        job_id = submitted(gateway)
        with Events(gateway, f"/v1/videos/{job_id}/events") as events:
            told = iter(events)
            next(told)
            began = time.monotonic()
            assert gateway.stop() == 0
            assert list(told) == []  # a whole answer: nothing was cut off
            assert time.monotonic() - began < 10


def test_a_stream_survives_a_restart_of_redis(tmp_path: Path) -> None:
    first = start_or_skip(lambda: RedisServer.start(tmp_path))
    worker = LedgerWorker(Settings(url=first.url))
    with Gateway({"LTXQ_URL": first.url, "LTXQ_DEFAULT_MODEL": "instant"}) as gateway:
        job_id = submitted(gateway)
        with Events(gateway, f"/v1/videos/{job_id}/events") as events:
            told = iter(events)
            assert next(told)["data"]["status"] == "queued"
            first.stop()
            silence = threading.Event()
            silence.wait(1)
            with RedisServer.start(tmp_path, port=first.port):
                worker.start(job_id)
                assert next(told)["data"]["status"] == "in_progress"
                worker.succeed(job_id)
                assert next(told)["data"]["status"] == "completed"
    worker.ledger.close()
