"""The sockets that a gateway listens on: all addresses of its host, IPv4 and IPv6, on one port."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv6Address, ip_address

from ltxq.errors import ConfigurationError
from ltxq.gateway.access.browser_guard import is_loopback
from ltxq.printable import one_line

LOCALHOST = ("127.0.0.1", "::1")  # browsers and SDKs take `localhost` for either
BACKLOG = 2048  # connections that wait to be accepted
PORTS_TRIED = 20  # free ports of the first address until one is free at the others too
_HINTS = {
    errno.EADDRINUSE: "Stop the program on this port, or choose another port with --port.",
    errno.EADDRNOTAVAIL: "Give --host an address of this machine, localhost, 0.0.0.0 or ::.",
    errno.EACCES: "Only root may use ports below 1024: choose another port with --port.",
}
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)  # no IPv6 here, say


@contextmanager
def listening(host: str, port: int, *, only_here: bool) -> Iterator[list[socket.socket]]:
    """Listening sockets on every address of `host`, and on the same port.

    Args:
        port: 0: any free port.
        only_here: refuse addresses that other machines can reach.

    Raises:
        ConfigurationError: the host is unknown, public, or its port is taken.
    """
    addresses = _addresses(host)
    if only_here and (public := [address for address in addresses if not is_loopback(address)]):
        also = "" if public[0] == host else f" ({public[0]})"
        raise ConfigurationError(
            f"Without API keys the gateway listens only on this machine, not on {host}{also}.",
            hint="Make a key with `ltxq key NAME` and set LTXQ_API_KEYS.",
        )
    with ExitStack() as opened:
        yield _opened(addresses, port, opened)


def shown(host: str) -> str:
    """The host in the form of a URL."""
    return f"[{host}]" if ":" in host else host


def _addresses(host: str) -> list[str]:
    if host == "localhost":
        return list(LOCALHOST)
    try:
        found = socket.getaddrinfo(host or "\0", None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        raise ConfigurationError(
            f"The host {one_line(host[:100])!r} is unknown.",
            hint="Give --host an address of this machine, localhost, 0.0.0.0 or ::.",
        ) from None
    return list(dict.fromkeys(_plain(str(sockaddr[0])) for *_, sockaddr in found))


def _plain(address: str) -> str:
    """::ffff:127.0.0.1 as 127.0.0.1, which is the same."""
    parsed = ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped or parsed)


def _opened(addresses: list[str], port: int, opened: ExitStack) -> list[socket.socket]:
    for tries_left in reversed(range(PORTS_TRIED)):
        with ExitStack() as attempt:
            try:
                sockets = _attempted(addresses, port, attempt)
            except OSError as exc:
                if port == 0 and tries_left and exc.errno == errno.EADDRINUSE:
                    continue
                raise ConfigurationError(
                    f"The gateway cannot listen on {exc.filename}: {os.strerror(exc.errno or 0)}.",
                    hint=_HINTS.get(exc.errno or 0, "Choose another --host or --port."),
                ) from None
            opened.enter_context(attempt.pop_all())
            return sockets
    raise AssertionError("the last try returns or raises")


def _attempted(addresses: list[str], port: int, opened: ExitStack) -> list[socket.socket]:
    """A socket for each address that this machine has; the first one's port if `port` is 0."""
    sockets: list[socket.socket] = []
    for address in addresses:
        try:
            sockets.append(opened.enter_context(_socket(address, port)))
        except OSError as exc:
            if (
                exc.errno in _ABSENT
                and len(addresses) > 1
                and (sockets or address != addresses[-1])
            ):
                continue
            exc.filename = f"{address}, port {port}"
            raise
        port = sockets[0].getsockname()[1]
    return sockets


def _socket(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    where = socket.getaddrinfo(address, port, family, socket.SOCK_STREAM)[0][4]
    everywhere = address == "::" and socket.has_dualstack_ipv6()  # IPv4 too
    return socket.create_server(where, family=family, backlog=BACKLOG, dualstack_ipv6=everywhere)
