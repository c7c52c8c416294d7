"""A gateway from start to end: replicas, outages of Redis and storage, shutdown, secrets."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_client import LedgerWorker

from fleet import PATIENCE, Fleet, eventually, worker_environment
from gateways import Answer, Gateway
from ltxq.gateway.access.http_limits import HEAD_SECONDS
from ltxq.gateway.access.keys import new_key
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import RedisServer, S3Server
from servers import start_or_skip

FOX = {"prompt": "a fox"}
ALICE, BOB = new_key("alice"), new_key("bob")
PASSWORD = "pl4ntedPassword"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis with a password that the test may stop."""
    with start_or_skip(lambda: RedisServer.start(tmp_path, password=PASSWORD)) as running:
        yield running


def environment(server: RedisServer, **more: str) -> dict[str, str]:
    return {"LTXQ_URL": server.url, "LTXQ_DEFAULT_MODEL": "instant", **more}


def test_any_replica_answers_for_any_job(server: RedisServer) -> None:
    keys = {
        "LTXQ_API_KEYS": f"{ALICE.entry},{BOB.entry}",
        "LTXQ_RATE_LIMIT": "6/hour",
        "LTXQ_READ_LIMIT": "7/hour",
    }
    worker = LedgerWorker(Settings(url=server.url))
    with Gateway(environment(server, **keys)) as one, Gateway(environment(server, **keys)) as two:

        def ask(gateway: Gateway, method: str, path: str, **what: Any) -> Answer:
            return gateway.ask(method, path, key=ALICE.key, **what)

        once = {"Idempotency-Key": "order-7"}
        made = ask(one, "POST", "/v1/videos", json=FOX, headers=once).json()
        assert ask(two, "POST", "/v1/videos", json=FOX, headers=once).json()["id"] == made["id"]
        first = ask(one, "POST", "/v1/videos", json=FOX, headers={"x-stainless-retry-count": "0"})
        again = ask(two, "POST", "/v1/videos", json=FOX, headers={"x-stainless-retry-count": "1"})
        assert again.json()["id"] == first.json()["id"]
        assert ask(two, "GET", f"/v1/videos/{made['id']}").json()["status"] == "queued"
        worker.start(made["id"])
        assert ask(one, "GET", f"/v1/videos/{made['id']}").json()["status"] == "in_progress"
        assert ask(two, "POST", f"/v1/videos/{first.json()['id']}/cancel").is_success
        assert ask(one, "DELETE", f"/v1/videos/{first.json()['id']}").is_success
        assert ask(two, "GET", f"/v1/videos/{first.json()['id']}").status_code == 404
        # What changes the queue is counted in both together, what reads in each.
        refused = ask(two, "POST", "/v1/videos", json=FOX)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
        assert int(refused.headers["retry-after"]) > 60
        assert refused.json()["error"]["retryable"]
        assert two.ask("POST", "/v1/videos", json=FOX, key=BOB.key).is_success
        reads = [ask(one, "GET", "/v1/models").status_code for _ in range(7)]
        assert reads == [200] * 6 + [429]
        assert ask(two, "GET", "/v1/models").is_success
        assert one.ask("GET", "/v1/models", key=BOB.key).is_success
    worker.ledger.close()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_ends_it_after_the_requests_in_progress(
    server: RedisServer, number: signal.Signals
) -> None:
    with Gateway(environment(server)) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as slow:
            slow.putrequest("POST", "/v1/videos")
            slow.putheader("content-type", "application/json")
            slow.putheader("content-length", "19")
            slow.endheaders(b'{"prompt": ')
            eventually(lambda: gateway.ask("GET", "/healthz").is_success)
            for _ in range(2):
                gateway.process.send_signal(number)
            eventually(lambda: refuses(port))
            slow.send(b'"a fox"}')
            assert slow.getresponse().status in (200, 201)
        assert gateway.process.wait(PATIENCE) == 0


def refuses(port: int) -> bool:
    """Whether nobody listens on a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return True
    return False


def test_without_keys_there_are_no_rate_limits(server: RedisServer) -> None:
    limits = {"LTXQ_RATE_LIMIT": "1/hour", "LTXQ_READ_LIMIT": "1/hour"}
    with Gateway(environment(server, **limits)) as gateway:
        for _ in range(3):
            assert gateway.ask("POST", "/v1/videos", json=FOX).is_success
            assert gateway.ask("GET", "/v1/videos").is_success


def test_an_outage_of_redis_is_a_503_within_5_seconds_until_it_is_back(
    tmp_path: Path,
) -> None:
    server = start_or_skip(lambda: RedisServer.start(tmp_path, password=PASSWORD))
    with Gateway(environment(server, LTXQ_API_KEYS=ALICE.entry)) as gateway:
        video = gateway.ask("POST", "/v1/videos", json=FOX, key=ALICE.key).json()
        server.stop()
        for method, path, what in (
            ("POST", "/v1/videos", {"json": FOX}),
            ("GET", f"/v1/videos/{video['id']}", {}),
            ("GET", "/v1/videos", {}),
            ("GET", f"/v1/videos/{video['id']}/events", {}),
        ):
            began = time.monotonic()
            answer = gateway.ask(method, path, key=ALICE.key, **what)
            assert time.monotonic() - began < 8  # 5 of them Redis's, the rest a busy machine's
            told = answer.json()["error"]
            assert (answer.status_code, told["code"]) == (503, "queue_unavailable")
            assert int(answer.headers["retry-after"]) > 0
            assert told["retryable"]
            for secret in (PASSWORD, ALICE.key, f"127.0.0.1:{server.port}"):
                assert secret not in answer.text
        assert gateway.ask("GET", "/healthz").is_success
        assert gateway.ask("GET", "/readyz").status_code == 503
        with RedisServer.start(tmp_path, port=server.port, password=PASSWORD):
            again = gateway.ask("GET", f"/v1/videos/{video['id']}", key=ALICE.key)
            assert again.json()["status"] == "queued"
            assert gateway.ask("POST", "/v1/videos", json=FOX, key=ALICE.key).is_success
        gateway.stop()
        assert f"127.0.0.1:{server.port}" in gateway.log  # the operator is told which Redis
        for secret in (PASSWORD, ALICE.key):
            assert secret not in gateway.log


@pytest.mark.extended
def test_it_starts_during_an_outage_of_redis(tmp_path: Path) -> None:
    server = start_or_skip(lambda: RedisServer.start(tmp_path))
    server.stop()
    with Gateway(environment(server)) as gateway:
        assert gateway.ask("GET", "/readyz").status_code == 503
        with RedisServer.start(tmp_path, port=server.port):
            assert gateway.ask("GET", "/v1/videos").json()["data"] == []


def test_ready_means_a_ready_worker_and_a_writable_storage(
    server: RedisServer, tmp_path: Path
) -> None:
    s3 = start_or_skip(lambda: S3Server.start(tmp_path / "s3"))
    settings = worker_environment(server.url, s3, tmp_path / "spool")

    def found(gateway: Gateway) -> tuple[int, dict[str, bool]]:
        answer = gateway.ask("GET", "/readyz")
        return answer.status_code, answer.json()

    with s3, Gateway(settings) as gateway:
        assert found(gateway) == (503, {"queue": True, "worker": False, "storage": True})
        with Fleet(settings) as fleet:
            fleet.wait_until_ready()
            ready = (200, {"queue": True, "worker": True, "storage": True})
            eventually(lambda: found(gateway) == ready)
            s3.stop()
            eventually(lambda: found(gateway)[0] == 503)
        assert gateway.ask("GET", "/healthz").is_success


def test_a_request_in_progress_is_finished_after_sigterm(server: RedisServer) -> None:
    with Gateway(environment(server)) as gateway:
        with socket.create_connection(("127.0.0.1", _port(gateway.url))) as client:
            client.settimeout(PATIENCE)
            client.sendall(
                b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 19\r\n"
                b"Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n"
            )
            assert client.recv(1000).startswith(b"HTTP/1.1 100")  # it is inside
            gateway.process.terminate()
            eventually(lambda: not _listens(gateway.url))
            client.sendall(b'{"prompt": "a fox"}')
            answer = b"".join(iter(lambda: client.recv(65_536), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"status":"queued"' in answer
        assert gateway.process.wait(PATIENCE) == 0


@pytest.mark.extended
def test_an_idle_connection_stays_open(server: RedisServer) -> None:
    with Gateway(environment(server)) as gateway:
        connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"))
        with contextlib.closing(connection):
            for pause in (0, 7):  # httpx, and so the openai SDK, keeps a connection for 5 seconds
                time.sleep(pause)
                connection.request("GET", "/healthz")
                assert connection.getresponse().read()


@pytest.mark.extended
def test_a_client_with_an_unfinished_request_is_disconnected(server: RedisServer) -> None:
    began = time.monotonic()
    assert _answer_to(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n") == b""
    assert time.monotonic() - began > HEAD_SECONDS / 2


@pytest.mark.extended
def test_a_client_that_does_not_finish_a_refused_body_is_disconnected(server: RedisServer) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n"
    assert _answer_to(server, head + b" " * 300_000).startswith(b"HTTP/1.1 413 ")


def _answer_to(server: RedisServer, sent: bytes) -> bytes:
    """What a gateway says to these bytes until it disconnects."""
    with (
        Gateway(environment(server)) as gateway,
        socket.create_connection(("127.0.0.1", _port(gateway.url))) as slow,
    ):
        slow.settimeout(HEAD_SECONDS + PATIENCE)
        slow.sendall(sent)
        return b"".join(iter(lambda: slow.recv(10_000), b""))


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _listens(url: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", _port(url)), timeout=1):
            return True
    except OSError:
        return False
