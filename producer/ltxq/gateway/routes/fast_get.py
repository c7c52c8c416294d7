"""The routes that clients poll, `videos.get_video` and `jobs.get_job`, without FastAPI's routing.
Most requests are polls, and FastAPI's routing takes as much time as the answer itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ltxq.gateway.routes import jobs, videos
from ltxq.gateway.state import caller_of


def mount(app: FastAPI) -> None:
    """Put both routes before FastAPI's; FastAPI's stay for the description."""
    polled = (videos.get_video, jobs.get_job)
    for described in (*videos.router.routes, *jobs.router.routes):
        if isinstance(described, APIRoute) and described.endpoint in polled:
            route = Route(f"/v1{described.path}", _answering(described))
            route.methods = {"GET"}  # without HEAD, which Starlette adds
            app.router.routes.insert(0, route)


def _answering(described: APIRoute) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        request.scope["route"] = described  # the metrics count by route
        (job_id,) = request.path_params.values()
        response: Response = await described.endpoint(job_id, await caller_of(request))
        return response

    return answer
