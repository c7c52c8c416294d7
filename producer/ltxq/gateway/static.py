"""The page at `/`: files as they are, with headers that let nothing else run beside them."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

# Pictures and clips come from the storage, wherever that is; all else from here alone.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src * data:",
        "media-src *",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # asked for again each time, and not sent again if unchanged
}


class PageFiles(StaticFiles):
    """The folder `page`; what is there of a name, or 404."""

    def __init__(self) -> None:
        super().__init__(directory=str(files("ltxq.gateway").joinpath("page")))

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """The file, or 304 to who has it."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response

    async def index(self, scope: Scope) -> Response:
        """The page itself."""
        return await self.get_response("index.html", scope)
