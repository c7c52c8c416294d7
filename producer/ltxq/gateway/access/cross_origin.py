"""Answers for pages of other origins: those of `LTXQ_CORS_ORIGINS`, and never with cookies."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from ltxq.gateway.openai.errors import Refused, answer

METHODS = ("GET", "HEAD", "POST", "DELETE")
PREFLIGHT_SECONDS = 600  # for which a browser may keep an answer to a preflight


def open_to_pages(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """`app`, also for pages of these origins. It must be the outermost layer: a page can read an
    error only with these headers.
    """
    if not origins:
        return app
    return _CrossOrigin(
        app,
        allow_origins=sorted(origins),
        allow_methods=METHODS,
        allow_headers=("*",),  # SDKs send many of their own (x-stainless-…); no cookies, no harm
        allow_private_network=True,  # the origins were chosen, wherever the gateway is
        expose_headers=("*",),
        max_age=PREFLIGHT_SECONDS,
    )


class _CrossOrigin(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        refusal = Refused(
            403,
            "wrong_origin",
            "This gateway does not allow calls from this origin, or not with this method.",
            hint="The gateway's operator allows an origin with LTXQ_CORS_ORIGINS.",
        )
        return answer(refusal)
