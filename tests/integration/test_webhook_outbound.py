"""How a webhook reaches its receiver: the checked address and no other, redirects, TLS, receivers
that hang, drip or pour. Which addresses are public is tests/unit/test_webhook_addresses.py's.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from fleet import PATIENCE
from ltxq.settings import Settings
from ltxq_worker.webhooks.safe_http import NotSent, Outbound
from receiver import LOOPBACK, Handler, Receiver
from tls import certificate_for, serving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.stop()


def post(url: str, **options: Any) -> None:
    allow = Settings(webhook_allow=options.pop("allow", LOOPBACK)).webhook_allow
    Outbound(allow, **options).post(url, b"{}", {})


def test_a_private_receiver_is_refused_unless_allowed(receiver: Receiver) -> None:
    for allow in (None, "10.0.0.0/8", "example.com"):
        with pytest.raises(NotSent, match="LTXQ_WEBHOOK_ALLOW"):
            post(receiver.url, allow=allow)
    assert not receiver.calls
    for allow in ("127.0.0.1", "::1, 127.0.0.1/8", "example.com,127.0.0.1"):
        post(receiver.url, allow=allow)
    assert len(receiver.calls) == 3


def test_a_host_is_allowed_by_its_name(receiver: Receiver) -> None:
    post(f"http://LocalHost:{receiver.port}/", allow="localhost")
    assert len(receiver.calls) == 1
    assert receiver.calls[0].headers["Host"] == f"localhost:{receiver.port}"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_followed_with_the_same_body(receiver: Receiver, status: int) -> None:
    receiver.answers = [(status, "/elsewhere?x=ö"), 200]
    post(receiver.url)
    assert [call.path for call in receiver.calls] == ["/done", "/elsewhere?x=%C3%B6"]
    assert {call.body for call in receiver.calls} == {b"{}"}


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest/", "http://[::ffff:10.0.0.1]/", "http://0/", "http://2130706434/"],
)  # fmt: skip
def test_a_redirect_to_a_private_address_is_refused(receiver: Receiver, location: str) -> None:
    receiver.answers = [(307, location)]
    with pytest.raises(NotSent, match="private"):
        post(receiver.url, allow="127.0.0.1")


@pytest.mark.parametrize("location", ["file:///etc/passwd", "gopher://x/", "http://[x"])
def test_a_redirect_to_what_is_no_http_is_refused(receiver: Receiver, location: str) -> None:
    receiver.answers = [(307, location)]
    with pytest.raises(NotSent, match=r"not http|malformed"):
        post(receiver.url)


def test_three_redirects_are_followed_and_no_more(receiver: Receiver) -> None:
    receiver.answers = [(307, "/")] * 3
    post(receiver.url)
    receiver.answers = [(307, "/")] * 9
    with pytest.raises(NotSent, match="more than 3 redirects"):
        post(receiver.url)
    assert len(receiver.calls) == 4 + 4


def test_a_receiver_that_hangs_or_drips_is_left_when_time_is_up(receiver: Receiver) -> None:
    done = threading.Event()

    def drip(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 ")
        while not done.wait(0.02):
            try:
                handler.wfile.write(b"2")
            except OSError:
                return

    receiver.answers = [lambda _: done.wait(PATIENCE) and None, drip]
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(NotSent, match="took too long"):
            post(receiver.url, total_seconds=0.4)
        assert time.monotonic() - start < 5
    done.set()


def test_an_endless_answer_is_not_read(receiver: Receiver) -> None:
    sent = [0]

    def pour(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                sent[0] += handler.connection.send(b"x" * 65536)
        except OSError:
            return

    receiver.answers = [pour]
    post(receiver.url)
    receiver.stop()
    assert sent[0] < 64 * 2**20  # what the sockets' buffers hold


def test_the_name_is_looked_up_once_and_the_checked_address_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answers(monkeypatch, ["127.0.0.1"], ["10.0.0.1"])
    post(f"http://rebinding.example:{receiver.port}/")
    assert asked == ["rebinding.example"]
    assert receiver.calls[0].headers["Host"] == f"rebinding.example:{receiver.port}"
    with pytest.raises(NotSent, match="private"):  # the name's second answer
        post(f"http://rebinding.example:{receiver.port}/")


def test_one_private_address_among_public_ones_is_enough_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers(monkeypatch, ["93.184.215.14", "10.0.0.1"])
    with pytest.raises(NotSent, match="private"):
        post("http://both.example/")


def test_tls_is_for_the_name_though_the_address_is_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = certificate_for("hooks.example", tmp_path)
    trusting = ssl.create_default_context(cafile=certificate)
    secure = Receiver(serving(certificate))
    try:
        answers(monkeypatch, *[["127.0.0.1"]] * 3)
        post(f"https://hooks.example:{secure.port}/", tls=trusting)
        for name, tls in (("other.example", trusting), ("hooks.example", None)):
            with pytest.raises(NotSent, match="SSLCertVerificationError"):
                post(f"https://{name}:{secure.port}/", tls=tls)
        secure.answers = [(307, "http://hooks.example/")]
        answers(monkeypatch, ["127.0.0.1"])
        with pytest.raises(NotSent, match="from https to http"):
            post(f"https://hooks.example:{secure.port}/", tls=trusting)
    finally:
        secure.stop()
    assert len(secure.calls) == 2


def answers(monkeypatch: pytest.MonkeyPatch, *in_turn: list[str]) -> list[str]:
    """A resolver that gives these addresses, one list after the other. Returns what it is asked."""
    left, asked, real = list(in_turn), [], socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *rest: Any, **named: Any) -> Any:
        if not host.endswith(".example"):
            return real(host, port, *rest, **named)
        asked.append(host)
        kind = socket.SOCK_STREAM
        return [(socket.AF_INET, kind, 6, "", (str(ip_address(a)), port)) for a in left.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked
