"""The application: what is mounted where, and what every request passes."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ltxq.errors import LtxqError
from ltxq.gateway import jobs, videos
from ltxq.gateway.failures import answer, not_known
from ltxq.gateway.fields import invalid
from ltxq.gateway.keys import ApiKeys
from ltxq.gateway.queue import Queue
from ltxq.gateway.state import State
from ltxq.gateway.static import PageFiles
from ltxq.settings import Settings
from ltxq.transport import RedisTransport, Transport

log = logging.getLogger("ltxq.gateway")


def make_app(settings: Settings, *, keys: ApiKeys, transport: Transport | None = None) -> FastAPI:
    """A gateway to the queue of the settings.

    Args:
        transport: another queue, as `ltxq.testing.MemoryTransport()`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        queue = Queue(transport or RedisTransport(settings))
        app.state.gateway = State(settings, keys, queue)
        yield
        await queue.close()

    app = FastAPI(
        title="ltxq",
        version=version("ltxq"),
        summary="A queue for LTX-2 video generation.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.include_router(videos.router, prefix="/v1")
    app.include_router(jobs.router, prefix="/v1")
    _answer_errors(app)

    @app.get("/healthz", tags=["probes"])
    async def healthz() -> dict[str, str]:
        """The gateway runs."""
        return {"status": "ok"}

    page = PageFiles()

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return await page.index(request.scope)

    app.mount("/page", page, name="page")
    return app


def _answer_errors(app: FastAPI) -> None:
    """Every error leaves as the envelope, FastAPI's own too."""

    @app.exception_handler(LtxqError)
    async def known(_: Request, exc: LtxqError) -> Response:
        return answer(exc)

    @app.exception_handler(HTTPException)
    async def routing(_: Request, exc: HTTPException) -> Response:
        return answer(not_known(exc.status_code))

    @app.exception_handler(RequestValidationError)
    async def parameters(_: Request, exc: RequestValidationError) -> Response:
        problems = tuple((str(e["loc"][-1]), str(e["msg"])) for e in exc.errors())
        return answer(invalid(*problems))

    @app.exception_handler(Exception)
    async def unknown(_: Request, exc: Exception) -> Response:
        return answer(LtxqError(f"{type(exc).__name__}"))
