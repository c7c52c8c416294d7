"""Where a gateway listens: each address of its host, on one port; without keys on this machine."""

from __future__ import annotations

import socket

import pytest

from gateways import has_ipv6
from ltxq.errors import ConfigurationError
from ltxq.gateway.access.listening import listening, shown

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def answers(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
        return client.connect_ex((address, port)) == 0


def taken(family: socket.AddressFamily, address: str) -> socket.socket:
    return socket.create_server((address, 0), family=family)


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        pytest.param("localhost", ("127.0.0.1", "::1"), marks=needs_ipv6),
        ("127.0.0.1", ("127.0.0.1",)),
        ("127.0.0.2", ("127.0.0.2",)),
        ("::ffff:127.0.0.1", ("127.0.0.1",)),
        pytest.param("::1", ("::1",), marks=needs_ipv6),
    ],
)
def test_without_keys_it_listens_on_this_machine(host: str, reached: tuple[str, ...]) -> None:
    with listening(host, 0, only_here=True) as sockets:
        port = sockets[0].getsockname()[1]
        assert {one.getsockname()[0] for one in sockets} == set(reached)
        assert all(answers(address, port) for address in reached)
    assert not answers(reached[0], port)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0", "0", "[::]", ""])  # noqa: S104
def test_without_keys_it_listens_nowhere_else(host: str) -> None:
    with pytest.raises(ConfigurationError), listening(host, 0, only_here=True):
        pass


def test_a_name_counts_by_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is in /etc/hosts for another machine's address, or for several."""

    def resolved(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, 0, 0, "", (ip, 0)) for ip in ("127.0.0.1", "192.0.2.7")]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with (
        pytest.raises(ConfigurationError, match=r"not on studio \(192.0.2.7\)") as caught,
        listening("studio", 0, only_here=True),
    ):
        pass
    assert "ltxq key NAME" in caught.value.hint


@needs_ipv6
def test_the_double_colon_is_ipv4_too() -> None:
    with listening("::", 0, only_here=False) as sockets:
        port = sockets[0].getsockname()[1]
        assert answers("::1", port)
        assert answers("127.0.0.1", port)


@needs_ipv6
def test_a_port_must_be_free_at_every_address() -> None:
    with taken(socket.AF_INET6, "::1") as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(ConfigurationError, match=f"cannot listen on ::1, port {port}"),
            listening("localhost", port, only_here=True),
        ):
            pass
        assert not answers("127.0.0.1", port)


def test_without_ipv6_localhost_is_ipv4_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltxq.gateway.access.listening.LOCALHOST", ("127.0.0.1", "2001:db8::1"))
    with listening("localhost", 0, only_here=False) as sockets:
        assert [one.getsockname()[0] for one in sockets] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("host", "why", "hint"),
    [
        ("127.0.0.1", "Address already in use", "another port"),
        ("203.0.113.9", "Cannot assign requested address", "an address of this machine"),
    ],
)
def test_why_it_cannot_listen_is_told_with_what_to_do(host: str, why: str, hint: str) -> None:
    with taken(socket.AF_INET, "127.0.0.1") as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError) as told, listening(host, port, only_here=False):
            pass
    assert told.value.message == f"The gateway cannot listen on {host}, port {port}: {why}."
    assert hint in told.value.hint


@pytest.mark.parametrize("host", ["no-such-host.invalid", "", "a b", "1.2.3.4.5", "x" * 300])
def test_a_host_that_is_none_is_told(host: str) -> None:
    with (
        pytest.raises(ConfigurationError, match="is unknown"),
        listening(host, 0, only_here=False),
    ):
        pass


def test_a_url_has_brackets_around_an_ipv6_address() -> None:
    assert shown("::1") == "[::1]"
    assert shown("localhost") == "localhost"
