"""`Client` over HTTP against a server that is slow, broken, or no gateway. The real gateway is in
tests/integration.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ltxq import Client, errors
from ltxq.client.http import HttpTransport
from ltxq.client.http_connection import MOST_BYTES
from ltxq.errors import ConfigurationError, JobNotFound, QueueFull, QueueUnavailable
from ltxq.settings import Settings
from ltxq.testing import MemoryTransport
from proxy import Proxy
from tls import certificate_for, serving

KEY = "sk-Pl4ntedSecret"


class Stranger:
    """An HTTP server that sends `replies` in turn and records the requests in `asked`.

    The last reply is repeated. A reply is (status, headers, body), or a function of the handler.
    """

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        stranger = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): text for name, text in self.headers.items()}
                stranger.asked.append((f"{self.command} {self.path}", headers, body))
                replies = stranger.replies
                reply = replies.pop(0) if len(replies) > 1 else replies[0]
                if callable(reply):
                    reply(self)
                    return
                status, extra, content = reply
                self.send_response(status)
                for name, text in {"Content-Length": str(len(content)), **extra}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    made = Stranger()
    yield made
    made.stop()


@pytest.fixture
def client(stranger: Stranger) -> Iterator[Client]:
    with Client(stranger.url, api_key=KEY) as made:
        yield made


def job_reply() -> tuple[int, dict[str, str], bytes]:
    job = Client(transport=MemoryTransport()).submit("a fox")
    return 201, {}, job.model_dump_json().encode()


def refused(status: int, **fields: Any) -> tuple[int, dict[str, str], bytes]:
    return status, {}, json.dumps({"error": fields}).encode()


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.close()


@pytest.mark.parametrize("lost", [hang_up, (502, {}, b"<html>"), (504, {}, b"")])
def test_a_submission_whose_answer_is_lost_is_sent_again_under_the_same_key(
    stranger: Stranger, client: Client, lost: Any
) -> None:
    stranger.replies = [lost, lost, job_reply()]
    client.submit("a fox")
    client.submit("a fox", idempotency_key="order-7")
    keys = [headers["idempotency-key"] for _, headers, _ in stranger.asked]
    assert keys[:3] == [keys[0]] * 3
    assert keys[3] == "order-7"


def test_a_retry_has_a_key_too(stranger: Stranger, client: Client) -> None:
    stranger.replies = [job_reply(), hang_up, job_reply()]
    client.retry("video_1")
    asked = [(line, headers.get("idempotency-key")) for line, headers, _ in stranger.asked]
    assert [line for line, _ in asked[1:]] == ["POST /v1/jobs/video_1/retry"] * 2
    assert asked[1][1] == asked[2][1] is not None


def test_a_deletion_whose_answer_is_lost_is_no_error(stranger: Stranger, client: Client) -> None:
    gone = refused(404, code="job_not_found", message="There is no job video_1.")
    stranger.replies = [hang_up, gone]
    client.delete("video_1")
    with pytest.raises(JobNotFound):
        client.delete("video_1")


def test_an_unreachable_gateway_is_a_clear_error_within_5_seconds(stranger: Stranger) -> None:
    stranger.stop()
    with Client(stranger.url, api_key=KEY) as client:
        began = time.monotonic()
        with pytest.raises(QueueUnavailable, match="Is it running, and is LTXQ_URL right") as away:
            client.submit("a fox")
        assert 1 < time.monotonic() - began < 5
    assert KEY not in repr(away.value) + str(away.value)
    assert is_not_accepted(away.value)


def test_a_rate_limited_client_waits_for_retry_after(stranger: Stranger, client: Client) -> None:
    status, _, body = refused(429, code="rate_limited", message="Too often.", retryable=True)
    stranger.replies = [(status, {"retry-after": "1"}, body), job_reply()]
    began = time.monotonic()
    client.submit("a fox")
    assert time.monotonic() - began >= 1
    stranger.replies = [(status, {"retry-after": "60"}, body)]
    began = time.monotonic()
    with pytest.raises(QueueUnavailable, match="Too often") as refusal:
        client.submit("a fox")
    assert time.monotonic() - began < 1
    assert is_not_accepted(refusal.value)
    stranger.replies = [(503, {"retry-after": "60"}, b"")]
    with pytest.raises(QueueUnavailable) as unknown:
        client.submit("a fox")
    assert not is_not_accepted(unknown.value)


def is_not_accepted(error: QueueUnavailable) -> bool:
    """Whether the error excludes that the job was accepted: no idempotency key, no such text."""
    return error.idempotency_key is None and "accepted" not in f"{error} {error.hint}"


def test_a_full_queue_is_not_retried(stranger: Stranger, client: Client) -> None:
    stranger.replies = [refused(429, code="queue_full", message="100 wait.", retryable=True)]
    with pytest.raises(QueueFull, match="100 wait"):
        client.submit("a fox")
    assert len(stranger.asked) == 1


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(2 * MOST_BYTES // 65536):
            handler.wfile.write(b" " * 65536)
    except OSError:
        pass  # cut off by then
    hang_up(handler)


@pytest.mark.parametrize(
    ("reply", "kind", "says"),
    [
        ((200, {}, b"<html>Welcome to nginx!"), ConfigurationError, "not an ltxq gateway"),
        ((404, {}, b"<html>"), ConfigurationError, "not an ltxq gateway"),
        ((200, {}, b'{"id": 7}'), ConfigurationError, "not an ltxq gateway, or is a newer one"),
        ((200, {}, b"[" * 100_000), ConfigurationError, "not an ltxq gateway"),
        ((400, {}, b"[" * 100_000), ConfigurationError, "not an ltxq gateway"),
        ((401, {}, b""), ConfigurationError, "LTXQ_API_KEY"),
        (refused(404, code="not_found", message="x", hint="/docs"), ConfigurationError,
         r"no such path\. Set LTXQ_URL to .*, without /v1\.$"),
        ((302, {"Location": "https://else.invalid/"}, b""), ConfigurationError, "else.invalid"),
        (refused(418, code="new", message="x" * 9999), errors.LtxqError, "^x{2000}$"),
        (endless, QueueUnavailable, "does not end"),
    ],
)  # fmt: skip
def test_a_server_that_is_no_gateway_is_a_clear_error(
    stranger: Stranger, client: Client, reply: Any, kind: type[Exception], says: str
) -> None:
    stranger.replies = [reply]
    with pytest.raises(kind, match=says) as told:
        client.get("video_1")
    assert len(stranger.asked) == 1, "a redirect is not followed: it would get the key"
    assert KEY not in repr(told.value) + str(told.value)


def test_a_change_that_no_gateway_confirms_is_an_error(stranger: Stranger, client: Client) -> None:
    """As a proxy that wants a login answers with status 200."""
    for change in (client.delete, client.cancel, client.retry):
        stranger.replies = [(200, {}, b"<html>Log in")]
        with pytest.raises(ConfigurationError, match="not an ltxq gateway"):
            change("video_1")


def test_an_invalid_id_sends_no_request(stranger: Stranger, client: Client) -> None:
    for ask in (client.get, client.cancel, client.delete, client.retry):
        with pytest.raises(JobNotFound, match="no job id"):
            ask("../videos")
    assert client.get_many(["..", "a/b"]) == {}
    assert stranger.asked == []


def test_an_idempotency_key_that_fits_no_header_is_refused(client: Client) -> None:
    for key in ("clé", "a\r\nb: c", " a", "a\tb"):
        with pytest.raises(errors.InvalidRequest, match="idempotency_key: must be ASCII"):
            client.submit("a fox", idempotency_key=key)


def test_without_events_a_job_is_polled_as_often_as_the_gateway_advises(
    stranger: Stranger, client: Client
) -> None:
    _, _, queued = job_reply()
    done = json.loads(queued) | {"state": "cancelled"}

    def reply(state: bytes) -> tuple[int, dict[str, str], bytes]:
        return 200, {"openai-poll-after-ms": "300"}, state

    looks = iter([reply(queued)] * 8 + [reply(json.dumps(done).encode())])

    def answer(handler: Any) -> None:
        status, headers, body = (404, {}, b"") if handler.path.endswith("/events") else next(looks)
        handler.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, text)
        handler.end_headers()
        handler.wfile.write(body)

    stranger.replies = [answer]
    began = time.monotonic()
    assert client.wait("video_1", timeout=30).state == "cancelled"
    assert time.monotonic() - began < 12, "without the advice it is looked at every 2 seconds"


@pytest.mark.parametrize("ca", ["its own", "another's", "the system's"])
def test_only_a_gateway_with_a_trusted_certificate_gets_requests(
    stranger: Stranger, ca: str, tmp_path: Path
) -> None:
    certificate = certificate_for("127.0.0.1", tmp_path / "own")
    other = certificate_for("127.0.0.1", tmp_path / "other")
    trusted = {"its own": certificate, "another's": other, "the system's": None}[ca]
    stranger.replies = [job_reply()]
    with Proxy(stranger.port, tls=serving(certificate)) as proxy:
        settings = Settings(url=f"https://127.0.0.1:{proxy.port}", api_key=KEY, https_ca=trusted)
        with Client(settings=settings) as client:
            if ca == "its own":
                assert client.get("video_1").state == "queued"
                return
            with pytest.raises(ConfigurationError, match="LTXQ_HTTPS_CA"):
                client.get("video_1")
    assert stranger.asked == []


def test_a_key_sent_unencrypted_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    for url, warned in (
        ("http://gateway:8000", True),
        ("https://gateway", False),
        ("http://127.0.0.1:8000", False),
        ("http://[::1]:8000", False),
        ("http://localhost", False),
    ):
        caplog.clear()
        HttpTransport(Settings(url=url, api_key=KEY)).close()
        assert ("unencrypted" in caplog.text) is warned, url
        assert KEY not in caplog.text
    caplog.clear()
    HttpTransport(Settings(url="http://gateway:8000")).close()
    assert caplog.text == ""


def test_a_key_is_in_no_log_and_no_repr(
    stranger: Stranger, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    stranger.replies = [job_reply()]
    client.submit("a fox")
    assert stranger.asked[0][1]["authorization"] == f"Bearer {KEY}"
    assert KEY not in caplog.text
    assert KEY not in repr(Settings(api_key=KEY)) + repr(vars(client._transport._gateway))


@pytest.mark.parametrize("key", ["", "two words", "clé", "line\nbreak", "x" * 513])
def test_an_invalid_key_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigurationError, match="API key must be") as refused:
        Client("https://gateway", api_key=key)
    assert not key or key not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["https://", "https://user:s3cret@host", "https://host?key=s3cret", "http://host:port",
     "https://host/#s3cret", "https://ho st", "https://host:99999", "ftp://host"],
)  # fmt: skip
def test_an_invalid_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Client(url)
    assert "s3cret" not in str(refused.value)


def test_an_owner_beside_an_api_key_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="API key"):
        Client("https://gateway", api_key=KEY, owner="alice")


def test_the_ledger_refuses_a_gateways_url() -> None:
    from ltxq.ledger import Ledger

    with pytest.raises(ConfigurationError, match=r"operators take redis://"):
        Ledger(Settings(url="https://gateway"))
