"""`/v1/jobs`: ltxq's own API, one route for each method of `Client`; and `/v1/models`."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from ltxq.client.http import MOST_IDS
from ltxq.errors import InvalidRequest
from ltxq.gateway.openai.errors import public_job
from ltxq.gateway.openai.forms import body_of, json_object
from ltxq.gateway.openai.openapi import CHANGED, READ, event_responses, request_body
from ltxq.gateway.routes.events import EventStream, stream
from ltxq.gateway.routes.videos import POLL_AFTER, IdempotencyKey, Limit, as_json
from ltxq.gateway.state import AsCaller
from ltxq.job import Job, JobPage, JobState, Order, VideoRequest
from ltxq.limits import ServedModel

router = APIRouter(tags=["jobs"])

Resent = Annotated[
    Literal["true", "false"] | None,
    Header(
        alias="ltxq-resent", description="Whether this repeats a submission whose answer was lost."
    ),
]


class Model(ServedModel):
    """A model, in OpenAI's form, and what ltxq says of it."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "ltxq"


class ModelList(BaseModel):
    """The models that have, or had within a week, a worker."""

    object: Literal["list"] = "list"
    data: tuple[Model, ...]


@router.post(
    "/jobs",
    status_code=201,
    response_model=Job,
    responses=CHANGED,
    openapi_extra=request_body(VideoRequest.model_json_schema(), "application/json"),
)
async def create_job(
    request: Request,
    caller: AsCaller,
    idempotency_key: IdempotencyKey = None,
    resent: Resent = None,
) -> Response:
    """Queue a job. The body is a VideoRequest."""
    wanted = VideoRequest.parse(json_object(await body_of(request)))
    job = await caller.queue.call(
        caller.client.submit,
        wanted,
        idempotency_key=idempotency_key,
        resent=None if resent is None else resent == "true",
    )
    return as_json(public_job(job), 201)


@router.get("/jobs", response_model=JobPage, responses=READ)
async def list_jobs(
    caller: AsCaller,
    state: JobState | None = None,
    limit: Limit = 20,
    after: str | None = None,
    order: Order = "desc",
    ids: Annotated[
        list[str] | None,
        Query(alias="id", description=f"Return only these jobs; at most {MOST_IDS} ids."),
    ] = None,
) -> Response:
    """List jobs in order of submission, or the existing jobs of the given ids."""
    if ids is not None:
        if len(ids) > MOST_IDS:
            raise InvalidRequest.of(("id", f"must be at most {MOST_IDS}, not {len(ids)}"))
        found = await caller.queue.call(caller.client.get_many, ids)
        return _page(JobPage(jobs=tuple(found.values()), after=None))
    page = await caller.queue.call(
        caller.client.list, state=state, limit=limit, after=after, order=order
    )
    return _page(page)


@router.get("/jobs/{job_id}", response_model=Job, responses=READ)
async def get_job(job_id: str, caller: AsCaller) -> Response:
    """Read a job's current state."""
    return as_json(public_job(await caller.queue.get(caller.owner, job_id)), headers=POLL_AFTER)


@router.post("/jobs/{job_id}/cancel", response_model=Job, responses=CHANGED)
async def cancel_job(job_id: str, caller: AsCaller) -> Response:
    """Cancel a queued job at once; ask a running one to stop."""
    return as_json(public_job(await caller.queue.call(caller.client.cancel, job_id)))


@router.post("/jobs/{job_id}/retry", status_code=201, response_model=Job, responses=CHANGED)
async def retry_job(
    job_id: str, caller: AsCaller, idempotency_key: IdempotencyKey = None
) -> Response:
    """Submit the same request again, as a new job."""
    job = await caller.queue.call(caller.client.retry, job_id, idempotency_key=idempotency_key)
    return as_json(public_job(job), 201)


@router.delete("/jobs/{job_id}", status_code=204, responses=CHANGED)
async def delete_job(job_id: str, caller: AsCaller) -> Response:
    """Delete a job and its clip. An unfinished job is cancelled, without a webhook."""
    await caller.queue.call(caller.client.delete, job_id)
    return Response(status_code=204)


@router.get(
    "/jobs/{job_id}/events",
    status_code=200,
    response_class=EventStream,
    responses={**READ, **event_responses("Job")},
)
async def follow_job(job_id: str, caller: AsCaller) -> Response:
    """Server-sent events: the job now and at each change, until it is final."""
    return await stream(caller, job_id, public_job)


@router.get("/models", response_model=ModelList, responses=READ)
async def list_models(caller: AsCaller) -> Response:
    """The models served: how many workers of each are ready, and which clips it can make."""
    served = await caller.queue.call(caller.client.models)
    listed = tuple(Model(id=name, **dict(model)) for name, model in sorted(served.items()))
    return as_json(ModelList(data=listed))


def _page(page: JobPage) -> Response:
    return as_json(page.model_copy(update={"jobs": tuple(map(public_job, page.jobs))}))
