"""Protection against other sites' web pages, and security headers on every answer.

Without API keys, anyone who can connect may use the gateway. A page of any site, open in a browser
on this machine, can connect. So without keys, the Host must be a name of this machine (this stops
DNS rebinding), and a browser's request must come from the gateway's own page (this stops CSRF).
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ltxq.gateway.openai.errors import Refused, answer

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

        refusal = self._refusal(Headers(scope=scope)) if self._open_to_all else None
        if refusal is not None:
            await answer(refusal)(scope, receive, send_on)
        else:
            await self._app(scope, receive, send_on)

    def _refusal(self, headers: Headers) -> Refused | None:
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not is_loopback(re.sub(r":\d*$", "", host)):  # without the port
            return Refused(
                403,
                "wrong_host",
                "Without API keys the gateway accepts only this machine's own names as Host.",
                hint="Use localhost or 127.0.0.1, or make API keys: `ltxq key NAME`.",
            )
        if origin is None or origin in self._origins or urlsplit(origin).netloc == host:
            return None
        return Refused(
            403,
            "wrong_origin",
            "A page of another site may not use this gateway.",
            hint="Add the site's origin to LTXQ_CORS_ORIGINS.",
        )


def is_loopback(host: str) -> bool:
    """Whether the name or address always means this machine."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
