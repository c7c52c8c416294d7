"""How far a clip is: asked more often than all else together, so answered without FastAPI's way to
a route, which costs as much as the answer. Path, caller and answer are those of `videos.retrieve`
and `jobs.get`, which stay in the description.
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
    """Take the two routes before FastAPI sees them."""
    for router, read in ((videos.router, videos.retrieve), (jobs.router, jobs.get)):
        described = next(
            route
            for route in router.routes
            if isinstance(route, APIRoute) and route.endpoint is read
        )
        route = Route(f"/v1{described.path}", _answering(read, described))
        route.methods = {"GET"}  # Starlette adds HEAD, which no other route takes
        app.router.routes.insert(0, route)


def _answering(read: Read, described: APIRoute) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        scope: Any = request.scope
        scope["route"] = described  # as it is counted
        (job_id,) = request.path_params.values()
        return await read(job_id, await caller_of(request))

    return answer
