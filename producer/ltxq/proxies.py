"""The HTTP proxies that the environment names: never used for this machine, and checked before
httpx2 reads them, whose errors do not name the variable.
"""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ltxq.errors import ConfigurationError

EXAMPLE = "http://user:password@proxy.example:3128"
_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def is_here(url: str) -> bool:
    """Whether the URL's host is this machine, which no proxy can reach for us."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def trust_env(url: str) -> bool:
    """httpx2's `trust_env` for requests to this URL: use the environment's proxies?

    Raises:
        ConfigurationError: as `check_proxies`.
    """
    if is_here(url):
        return False
    check_proxies()
    return True


def is_proxied(url: str) -> bool:
    """Whether requests to this URL go through one of the environment's proxies."""
    parts, found = urlsplit(url), getproxies()
    named = found.get(parts.scheme) or found.get("all")
    return bool(named) and not is_here(url) and not proxy_bypass(parts.hostname or "")


def check_proxies() -> None:
    """Check the environment's proxies. None is shown: it may have a password.

    Raises:
        ConfigurationError: one of them cannot be used; with its variable.
    """
    for name in _VARIABLES:
        for spelling in (name, name.lower()):
            if value := os.environ.get(spelling):
                _check(spelling, value)


def _check(name: str, value: str) -> None:
    try:
        url = urlsplit(value if "://" in value else f"http://{value}")  # a scheme may be missing
        usable = bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        usable, url = False, urlsplit("")
    if url.scheme.startswith("socks"):
        raise ConfigurationError(
            f"{name} names a SOCKS proxy, which ltxq cannot use.",
            hint=f"Name an HTTP proxy: {EXAMPLE}, or unset it.",
        )
    if not usable or url.scheme not in ("http", "https") or any(c.isspace() for c in value):
        raise ConfigurationError(
            f"{name} is not a proxy's URL.",
            hint=f"Write it as {EXAMPLE}. Encode special characters of a password, as %2F for /.",
        )
