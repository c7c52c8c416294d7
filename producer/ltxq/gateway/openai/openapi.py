"""The API description: `/openapi.json`, and Swagger UI at `/docs`, from no other host."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from ltxq.gateway.openai.errors import ErrorEnvelope

SWAGGER = Path(fastapi_offline.__file__).parent / "static"

ABOUT: dict[str, Any] = {
    "summary": "A queue for LTX-2 video generation.",
    "description": """
`/v1/videos` is what OpenAI's SDKs speak; `/v1/jobs` is ltxq's own, one route for each method of
its Python `Client`.

Send an API key as `Authorization: Bearer ltxq_…`, where the gateway has keys. A key sees its own
clips alone.

Every error is `{"error": {message, type, param, code, hint, retryable, problems}}`. After 429 and
503, `retry-after` says how many seconds to wait. A POST may carry an `Idempotency-Key`: the same
key with the same body is the same clip, with another body a 409. A POST that ends with 503 may have
been accepted: the error's `idempotency_key`, sent with the same body, makes no second clip.
""",
    "openapi_tags": [
        {"name": "videos", "description": "The tongue of OpenAI's SDKs."},
        {"name": "jobs", "description": "ltxq's own."},
        {"name": "probes", "description": "For who starts containers. No key is needed."},
    ],
}

_STRICT = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def mount(app: FastAPI) -> None:
    """Serve the description."""
    described = _description()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return described

    app.mount("/docs/static", StaticFiles(directory=SWAGGER), name="docs")
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]


def _description() -> HTMLResponse:
    """Swagger UI from our own host; its one inline script is allowed by its hash."""
    html = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="ltxq's API",
        swagger_js_url="docs/static/swagger-ui-bundle.js",
        swagger_css_url="docs/static/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    (script,) = re.findall(rb"<script>(.*?)</script>", bytes(html.body), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    html.headers["content-security-policy"] = (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; connect-src 'self'; "
        f"style-src 'self' 'unsafe-inline'; img-src 'self' data:; {_STRICT}"
    )
    return html


def failing(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """A route's `responses`: the envelope, with what it is for."""
    said = {
        400: "A field is wrong, or not supported; `param` names it.",
        401: "The API key is missing or not known.",
        403: "Another site's page, or a name that is not this machine's; only without API keys.",
        404: "There is none, or not of this key.",
        408: "The request did not arrive in time.",
        409: "Not in this state; or the idempotency key was used for another request.",
        413: "The request is too large.",
        415: "The body is neither JSON nor a form.",
        429: "Too many requests, or the queue is full: wait for `retry-after`.",
        500: "The gateway's log says why.",
        503: "The queue or the storage is away: wait for `retry-after`.",
    }
    return {status: {"model": ErrorEnvelope, "description": said[status]} for status in statuses}


def taking(schema: dict[str, Any], *kinds: str) -> dict[str, Any]:
    """A route's `openapi_extra`: the body it reads by itself."""
    content = {kind: {"schema": schema} for kind in kinds}
    return {"requestBody": {"required": True, "content": content}}


def telling(model: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with events, a `model` as their data."""
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
    said = "An event at each change, and comments between; one named `error` has the envelope."
    return {200: {"description": said, "content": {"text/event-stream": {"schema": event}}}}


READ = failing(400, 401, 403, 404, 429, 500, 503)
CHANGED = failing(400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, but for what it takes for granted: the 422 that this gateway never
    answers, errors in the media type of the answer hoped for, and events as mere text.
    """
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, routes=app.routes, tags=app.openapi_tags,
            summary=app.summary, description=app.description,
        )  # fmt: skip
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                for status, answer in operation["responses"].items():
                    if events := answer.get("content", {}).get("text/event-stream"):
                        events["schema"]["type"] = "object"
                    if status >= "400":
                        answer["content"] = {"application/json": answer["content"].popitem()[1]}
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema
