"""Protection against other sites' web pages, and security headers on every answer.

Without API keys, anyone who can connect may use the gateway. A page of any site, open in a browser
on this machine, can connect. So without keys, the Host must be a name of this machine (this stops
DNS rebinding), and a browser's request must come from the gateway's own page (this stops CSRF).
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ltxq.gateway.openai.errors import Refused, answer
from ltxq.printable import one_line

PUBLIC = (
    "/page/",
    "/docs/static/",
)  # files without secrets: the page must load to show an error
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",  # URLs of clips give access to them
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",  # for all but pages
}


class Guard:
    """ASGI middleware around the application.

    Args:
        open_to_all: the gateway has no API keys.
        origins: sites whose pages may call the gateway.
    """

    def __init__(self, app: ASGIApp, *, open_to_all: bool, origins: frozenset[str]) -> None:
        self._app = app
        self._open_to_all = open_to_all
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, text in _HEADERS.items():
                    headers.setdefault(name, text)
            await send(message)

        refusal = self._refusal(scope["path"], Headers(scope=scope)) if self._open_to_all else None
        if refusal is not None:
            await answer(refusal)(scope, receive, send_on)
        else:
            await self._app(scope, receive, send_on)

    def _refusal(self, path: str, headers: Headers) -> Refused | None:
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not is_loopback(re.sub(r":\d*$", "", host)):  # without the port
            return Refused(
                403,
                "wrong_host",
                "Without API keys the gateway accepts only names of its own machine as Host, not "
                f"{_shown(host)}.",
                hint="On that machine use localhost or 127.0.0.1. For other machines the operator "
                "creates API keys: `ltxq key NAME`.",
            )
        if origin is None or origin in self._origins or _parts(origin).netloc == host:
            return None
        if path.startswith(PUBLIC) or _is_own_page(origin, headers):
            return None
        hint = (
            "The operator creates API keys: `ltxq key NAME`, or adds this origin to "
            "LTXQ_CORS_ORIGINS."
        )
        if _is_here(origin):
            hint = (
                f"A proxy must pass on the Host (nginx: proxy_set_header Host $http_host;). {hint}"
            )
        return Refused(
            403,
            "wrong_origin",
            f"Without API keys the gateway accepts only its own page. This page's origin is "
            f"{_shown(origin)}, and the gateway's Host is {_shown(host or 'missing')}.",
            hint=hint,
        )


def _is_own_page(origin: str, headers: Headers) -> bool:
    """Whether a page of this machine calls its own origin, according to the browser. A proxy may
    have changed the Host or its port.
    """
    return headers.get("sec-fetch-site") == "same-origin" and _is_here(origin)


def _is_here(origin: str) -> bool:
    """Whether the page has a name of this machine. A proxy that passes on another name gets the
    refusal of the Host.
    """
    return is_loopback(_parts(origin).hostname or "")


def _parts(origin: str) -> SplitResult:
    """The origin as a URL; an empty one if it is none, such as http://[."""
    try:
        return urlsplit(origin)
    except ValueError:
        return urlsplit("")


def _shown(text: str) -> str:
    return one_line(text[:100]) or "empty"


def is_loopback(host: str) -> bool:
    """Whether the name or address always means this machine."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name.strip("[]"))
    except ValueError:
        return False
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    return address.is_loopback
