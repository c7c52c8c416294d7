"""HTTP to URLs that strangers choose, and never into the operator's own network.

The connection goes to the address that was checked, so a name that resolves to another address a
moment later changes nothing. No proxy, cookie or credential of this machine is used.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import quote, urljoin, urlsplit

from ltxq.settings import Receiver

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0  # of one delivery with all its redirects, after names are resolved
MOST_REDIRECTS = 3
REDIRECTS = frozenset({301, 302, 307, 308})  # not 303, which asks for a GET without the body

# Networks that Python 3.11's `is_global` wrongly accepts. All are in IANA's special-purpose
# registries except the first, Azure's metadata server, which answers machines with their secrets.
NOT_PUBLIC = tuple(
    ip_network(network)
    for network in (
        *("168.63.129.16", "192.0.0.0/24", "192.88.99.0/24"),
        *("2001::/23", "2002::/16", "3fff::/20", "fec0::/10"),
    )
)

Address = IPv4Address | IPv6Address


class NotSent(Exception):
    """The receiver did not accept it. The text names hosts, never a path, query or password."""


@dataclass(frozen=True)
class Target:
    """A URL, parsed once, so that the checked parts are the used ones."""

    secure: bool
    host: str  # ASCII, without brackets
    port: int
    path: str  # with the query, quoted for HTTP
    url: str  # the base of redirects from here

    @classmethod
    def parse(cls, url: str, *, base: str = "") -> Target:
        """Raises: NotSent, if it is no http(s) URL or contains a user or password."""
        try:
            url = urljoin(base, url)
            parts = urlsplit(url)
            host, port = (parts.hostname or "").encode("idna").decode(), parts.port
        except ValueError:  # UnicodeError is one
            raise NotSent("The URL is malformed.") from None
        if parts.scheme not in ("http", "https") or not host:
            raise NotSent("The URL is not http:// or https:// with a host.")
        if parts.username is not None:
            raise NotSent("The URL has a user or password in it, and none are sent on.")
        secure = parts.scheme == "https"
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        query = f"?{quote(parts.query, safe='/?%:@!$&()*+,;=~')}" if parts.query else ""
        default = 443 if secure else 80
        return cls(secure, host, default if port is None else port, path + query, url)

    @property
    def host_header(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def is_public(address: Address) -> bool:
    """Whether `address` is on the open internet: not private, shared, loopback, link-local,
    multicast, reserved, unspecified, a cloud's metadata server, nor mapped to one of those.
    """
    address = _unmapped(address)
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in NOT_PUBLIC)
    )


def _unmapped(address: Address) -> Address:
    """::ffff:10.0.0.1 is 10.0.0.1."""
    return getattr(address, "ipv4_mapped", None) or address


class Outbound:
    """Posts to public hosts, and to those private ones that the operator allows."""

    def __init__(
        self,
        allow: Sequence[Receiver] = (),
        *,
        total_seconds: float = TOTAL_SECONDS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts = {receiver for receiver in allow if isinstance(receiver, str)}
        self._networks = [receiver for receiver in allow if not isinstance(receiver, str)]
        self._total_seconds = total_seconds
        self._tls = tls or ssl.create_default_context()

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Send `body`, following redirects, until a host answers 2xx.

        Raises:
            NotSent: refused, unreachable, too slow, or another answer.
        """
        end = time.monotonic() + self._total_seconds
        target = Target.parse(url)
        for _ in range(1 + MOST_REDIRECTS):
            status, location = self._post_once(target, body, headers, end)
            if 200 <= status < 300:
                return
            if status not in REDIRECTS or location is None:
                raise NotSent(f"{target.host} answered {status}.")
            onward = Target.parse(location, base=target.url)
            if target.secure and not onward.secure:
                raise NotSent(f"{target.host} redirects from https to http.")
            target = onward
        raise NotSent(f"There are more than {MOST_REDIRECTS} redirects.")

    def addresses(self, target: Target) -> list[str]:
        """The addresses of the host, after checking each.

        Raises:
            NotSent: the name is unknown, or one of its addresses is forbidden.
        """
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise NotSent(f"{target.host} is not a known host.") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if target.host not in self._hosts:
            for address in addresses:
                if not self._may_reach(ip_address(address)):
                    raise NotSent(
                        f"{target.host} is at a private or reserved address. An operator may "
                        "allow it with LTXQ_WEBHOOK_ALLOW."
                    )
        return addresses

    def _may_reach(self, address: Address) -> bool:
        address = _unmapped(address)
        return is_public(address) or any(address in network for network in self._networks)

    def _post_once(
        self, target: Target, body: bytes, headers: Mapping[str, str], end: float
    ) -> tuple[int, str | None]:
        """The answer's status and Location. Its body is not read."""
        addresses = self.addresses(target)
        try:
            with self._connected(target, addresses, end) as connection:
                connection.request(
                    "POST", target.path, body, {"Host": target.host_header, **headers}
                )
                with connection.getresponse() as answer:
                    return answer.status, answer.headers.get("Location")
        except (OSError, http.client.HTTPException, ValueError) as exc:
            if time.monotonic() >= end:
                raise NotSent(f"{target.host} took too long.") from None
            raise NotSent(f"{target.host} cannot be reached ({type(exc).__name__}).") from exc

    @contextmanager
    def _connected(
        self, target: Target, addresses: list[str], end: float
    ) -> Iterator[http.client.HTTPConnection]:
        """A connection to one of the checked addresses. A timer cuts it at `end`, since a receiver
        could send single bytes, each within the socket's timeout, for ever.
        """
        sock = _connect(addresses, target.port, end)
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.auto_open = 0  # else it would resolve the name again
        # The plain socket's shutdown: SSLSocket's is not safe beside a read in another thread.
        cut = threading.Timer(max(0.0, end - time.monotonic()), lambda: _shut(sock))
        try:
            if target.secure:
                sock = self._tls.wrap_socket(
                    sock, server_hostname=target.host, do_handshake_on_connect=False
                )
            connection.sock = sock
            cut.start()
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            yield connection
        finally:
            cut.cancel()
            connection.close()
            sock.close()


def _connect(addresses: list[str], port: int, end: float) -> socket.socket:
    """A socket to the first address that answers."""
    failure: OSError = TimeoutError()
    for address in addresses:
        left = end - time.monotonic()
        if left <= 0:
            break
        try:
            sock = socket.create_connection((address, port), timeout=min(CONNECT_SECONDS, left))
        except OSError as exc:
            failure = exc
        else:
            sock.settimeout(TOTAL_SECONDS)
            return sock
    raise failure


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):  # it has ended already
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
