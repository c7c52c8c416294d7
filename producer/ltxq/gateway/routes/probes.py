"""`/healthz` and `/readyz`: whether this process runs, and whether a clip can be made now."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from ltxq.gateway.reads.readiness import Readiness

router = APIRouter(tags=["probes"])


class Health(BaseModel):
    """The gateway process runs."""

    status: Literal["ok"] = "ok"


@router.get("/healthz")
async def get_health() -> Health:
    """The gateway process runs."""
    return Health()


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
async def get_readiness(request: Request) -> Response:
    """200: a worker is ready, and the storage can be written and read. 503: not so."""
    found = await request.app.state.gateway.prober.readiness()
    return Response(
        found.model_dump_json(), 200 if found.ready else 503, media_type="application/json"
    )
