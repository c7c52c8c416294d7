"""The FastAPI application: routes, middleware and error answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ltxq.errors import InvalidRequest, LtxqError
from ltxq.gateway.access.browser_guard import Guard
from ltxq.gateway.access.keys import ApiKeys
from ltxq.gateway.access.rates import Rates
from ltxq.gateway.models import GatewayTransport
from ltxq.gateway.openai import openapi
from ltxq.gateway.openai.errors import answer, routing_error
from ltxq.gateway.reads.clip_files import ClipFiles
from ltxq.gateway.reads.queue_reader import QueueReader
from ltxq.gateway.reads.readiness import Prober
from ltxq.gateway.routes import content, fast_get, jobs, page, probes, videos
from ltxq.gateway.state import State
from ltxq.reasons import reason_of
from ltxq.settings import Settings


def make_app(settings: Settings) -> FastAPI:
    """A gateway for the queue in the settings.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    keys = ApiKeys.from_settings(settings)
    transport = GatewayTransport(settings)
    rates = Rates(settings, transport.connection_pool)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        queue = QueueReader(transport)
        clips = ClipFiles(transport, queue)
        app.state.gateway = State(keys, queue, rates, Prober(queue), clips)
        yield
        await clips.close()
        await queue.close()

    app = FastAPI(
        title="ltxq",
        version=version("ltxq"),
        lifespan=lifespan,
        redirect_slashes=False,
        generate_unique_id_function=openapi.operation_id,
        docs_url=None,
        redoc_url=None,
        **openapi.ABOUT,
    )
    app.state.transport = transport
    app.include_router(videos.router, prefix="/v1")
    app.include_router(content.router, prefix="/v1")
    app.include_router(jobs.router, prefix="/v1")
    app.include_router(probes.router)
    openapi.mount(app)
    page.mount(app, settings)
    fast_get.mount(app)
    _answer_errors(app)
    app.add_middleware(Guard, open_to_all=not keys, origins=frozenset(settings.cors_origins))
    return app


def _answer_errors(app: FastAPI) -> None:
    """Answer every error with the envelope, FastAPI's own errors too."""

    @app.exception_handler(LtxqError)
    async def known(_: Request, exc: LtxqError) -> Response:
        return answer(exc)

    @app.exception_handler(HTTPException)
    async def routing(_: Request, exc: HTTPException) -> Response:
        return answer(routing_error(exc.status_code, dict(exc.headers or {})))

    @app.exception_handler(RequestValidationError)
    async def parameters(_: Request, exc: RequestValidationError) -> Response:
        return answer(InvalidRequest.of(*((str(e["loc"][-1]), reason_of(e)) for e in exc.errors())))

    @app.exception_handler(Exception)
    async def unknown(_: Request, exc: Exception) -> Response:
        return answer(LtxqError(type(exc).__name__))
