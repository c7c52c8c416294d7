"""The routes that clients poll, `videos.get_video` and `jobs.get_job`, without FastAPI's routing.
Most requests are polls, and FastAPI's routing takes as much time as the answer itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ltxq.gateway.routes import jobs, videos
from ltxq.gateway.state import Caller, caller_of

Read = Callable[[str, Caller], Awaitable[Response]]


def mount(app: FastAPI) -> None:
    """Put both routes before FastAPI's; FastAPI's stay for the description."""
    for router, read in ((videos.router, videos.get_video), (jobs.router, jobs.get_job)):
        described = next(
            route
            for route in router.routes
            if isinstance(route, APIRoute) and route.endpoint is read
        )
        route = Route(f"/v1{described.path}", _answering(read, described))
        route.methods = {"GET"}  # without HEAD, which Starlette adds
        app.router.routes.insert(0, route)


def _answering(read: Read, described: APIRoute) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        scope: Any = request.scope
        scope["route"] = described  # the metrics count by route
        (job_id,) = request.path_params.values()
        return await read(job_id, await caller_of(request))

    return answer
