"""The API description: `/openapi.json`, and Swagger UI at `/docs` without files of other hosts."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import APIRoute
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from ltxq.gateway.openai.errors import ErrorEnvelope

ABOUT: dict[str, Any] = {
    "summary": "A queue for LTX-2 video generation.",
    "description": """
`/v1/videos` works with OpenAI's SDKs. `/v1/jobs` is ltxq's own API: one route for each method of
the Python `Client`.

If the gateway has API keys, send one as `Authorization: Bearer ltxq_…`. A key sees only its own
videos.

Every error is `{"error": {message, type, param, code, hint, retryable, problems}}`. After 429 and
503, wait for the seconds in `retry-after`.

A POST may carry an `Idempotency-Key`. The same key with the same body returns the same video; with
another body it is a 409. A POST that ends with 503 may have been accepted: send the same body again
with the error's `idempotency_key`, and no second video is made.
""",
    "openapi_tags": [
        {"name": "videos", "description": "The video API of OpenAI's SDKs."},
        {"name": "jobs", "description": "ltxq's own API."},
        {
            "name": "probes",
            "description": "Health checks for container platforms. They need no API key.",
        },
    ],
}


def operation_id(route: APIRoute) -> str:
    """The name of a route's function as generated clients have it: create_video → createVideo."""
    first, *others = route.name.split("_")
    return first + "".join(word.capitalize() for word in others)


def mount(app: FastAPI) -> None:
    """Serve the description."""
    page = _swagger_ui()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return page

    app.mount("/docs/static", StaticFiles(packages=[("fastapi_offline", "static")]), name="docs")
    app.openapi = cache(lambda: _corrected(FastAPI.openapi(app)))  # type: ignore[method-assign]


def _swagger_ui() -> HTMLResponse:
    """Swagger UI. The Content-Security-Policy allows its one inline script by its hash."""
    html = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="ltxq API",
        swagger_js_url="docs/static/swagger-ui-bundle.js",
        swagger_css_url="docs/static/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    (script,) = re.findall(rb"<script>(.*?)</script>", bytes(html.body), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    html.headers["content-security-policy"] = (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; connect-src 'self'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """A route's `responses` for errors: the envelope, and what the status means."""
    meaning = {
        400: "A field is wrong or not supported; `param` names it.",
        401: "The API key is missing or unknown.",
        403: "Only without API keys: the request comes from another site's page, or its Host is "
        "not this machine.",
        404: "It does not exist, or belongs to another API key.",
        408: "The body arrived too slowly.",
        409: "Not possible in the current state, or the idempotency key was used for another "
        "request.",
        412: "The file is not the one that `if-match` names.",
        413: "The body is too large.",
        415: "The body is neither JSON nor a form.",
        416: "The range begins beyond the file's end; `content-range` has its size.",
        429: "Too many requests, or the queue is full. Wait for `retry-after` seconds.",
        500: "Internal error; the gateway's log has the reason.",
        503: "The gateway is overloaded, or cannot reach the queue or the storage. Wait for "
        "`retry-after` seconds.",
    }
    return {status: {"model": ErrorEnvelope, "description": meaning[status]} for status in statuses}


def request_body(schema: dict[str, Any], *kinds: str) -> dict[str, Any]:
    """A route's `openapi_extra`: the body, which the route reads itself."""
    content = {kind: {"schema": schema} for kind in kinds}
    return {"requestBody": {"required": True, "content": content}}


def event_responses(model: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with events; their data is a `model`."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": f"#/components/schemas/{model}"},
    }
    event = {
        "type": "object",
        "properties": {"data": data, "event": {"type": "string"}},
        "required": ["data"],
    }
    text = "An event at each change, with comments in between; an `error` event has the envelope."
    return {200: {"description": text, "content": {"text/event-stream": {"schema": event}}}}


READ = error_responses(400, 401, 403, 404, 429, 500, 503)
CHANGED = error_responses(400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503)


def _corrected(schema: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's description with four corrections: no 422 (this gateway answers 400), errors are
    always JSON, an event is an object, and paths are relative to the description's own URL, which
    may be behind a proxy's prefix.
    """
    schema["servers"] = [{"url": "."}]
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            for status, answer in operation["responses"].items():
                if events := answer.get("content", {}).get("text/event-stream"):
                    events["schema"]["type"] = "object"
                if status >= "400":
                    answer["content"] = {"application/json": answer["content"].popitem()[1]}
    for name in ("HTTPValidationError", "ValidationError"):
        del schema["components"]["schemas"][name]
    return schema
