"""The page at `/`: static files, with headers that allow no other scripts."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from ltxq.settings import Settings

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data: {clips}",
        "media-src {clips}",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # the browser revalidates each time; an unchanged file is a 304
}


def mount(app: FastAPI, settings: Settings) -> None:
    """Serve the page."""
    page = PageFiles(storage_origin(settings))

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return await page.get_response("index.html", request.scope)

    app.mount("/page", page, name="page")


def storage_origin(settings: Settings) -> str:
    """The origin of clips' URLs, as a source of a Content-Security-Policy."""
    if settings.content == "proxy":
        return ""
    if not settings.s3_bucket:  # only the workers know the origin
        return "http: https:"
    base = settings.s3_public_base_url or settings.s3_public_endpoint or settings.s3_endpoint
    if base is None:
        return "https://*.amazonaws.com https://*.amazonaws.com.cn"
    parts = urlsplit(base)
    virtual = settings.s3_addressing == "virtual" and not settings.s3_public_base_url
    host = f"{settings.s3_bucket}.{parts.netloc}" if virtual else parts.netloc
    return f"{parts.scheme}://{host}"


class PageFiles(StaticFiles):
    """The files of the folder `page`.

    Args:
        clips: allowed sources of pictures and clips in the Content-Security-Policy. Everything
            else may come only from the gateway.
    """

    def __init__(self, clips: str) -> None:
        super().__init__(packages=[("ltxq.gateway", "page")])
        self._clips = clips

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """The file, or 304 if the browser has it."""
        response = super().file_response(*args, **kwargs)
        policy = _POLICY.format(clips=f"'self' {self._clips}".strip())
        response.headers.update({**_HEADERS, "content-security-policy": policy})
        return response
