"""`/v1/videos`: the video API of OpenAI's SDKs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from ltxq.errors import InvalidRequest
from ltxq.gateway.openai.errors import UnsupportedParameter
from ltxq.gateway.openai.forms import body_of, fields_of, json_object
from ltxq.gateway.openai.openapi import CHANGED, READ, request_body
from ltxq.gateway.openai.request import CreateVideo, in_callers_words, request_of
from ltxq.gateway.openai.response import (
    REMIXED_FROM,
    Video,
    VideoDeleted,
    VideoPage,
    page_of,
    video_of,
)
from ltxq.gateway.routes.events import EventStream, stream
from ltxq.gateway.state import AsCaller, Caller
from ltxq.job import Order, VideoRequest

router = APIRouter(tags=["videos"])

POLL_AFTER = {"openai-poll-after-ms": "1000"}

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]
RetryCount = Annotated[
    int | None,
    Header(
        alias="x-stainless-retry-count",
        ge=0,
        description="Number of retries; sent by OpenAI's SDKs.",
    ),
]
Limit = Annotated[int, Query(ge=1, le=100)]


def as_json(value: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The value as a JSON answer that no cache stores."""
    return Response(
        value.model_dump_json(),
        status,
        {"cache-control": "no-store", **(headers or {})},
        media_type="application/json",
    )


class RemixVideo(BaseModel):
    """What a remix changes."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=5000)


@router.post(
    "/videos",
    response_model=Video,
    responses=CHANGED,
    openapi_extra=request_body(
        CreateVideo.model_json_schema(), "application/json", "multipart/form-data"
    ),
)
async def create_video(
    request: Request,
    caller: AsCaller,
    idempotency_key: IdempotencyKey = None,
    retry_count: RetryCount = None,
) -> Response:
    """Queue a video. The answer comes at once; poll the video, or follow its events."""
    fields = await fields_of(request)
    # Checked first: another service's model name may not even be a valid name for ltxq.
    if isinstance(model := fields.get("model"), str):
        await caller.queue.check_model(model)
    wanted = request_of(fields)
    try:
        return await _submit(caller, wanted, idempotency_key, retry_count)
    except InvalidRequest as exc:
        raise in_callers_words(exc, fields) from None


@router.get("/videos", response_model=VideoPage, responses=READ)
async def list_videos(
    caller: AsCaller, after: str | None = None, limit: Limit = 20, order: Order = "desc"
) -> Response:
    """List the caller's videos, finished or not."""
    page = await caller.queue.call(caller.client.list, limit=limit, after=after, order=order)
    return as_json(page_of(page))


@router.get("/videos/{video_id}", response_model=Video, responses=READ)
async def get_video(video_id: str, caller: AsCaller) -> Response:
    """Read a video's current status."""
    job = await caller.queue.get(caller.owner, video_id)
    return as_json(video_of(job), headers=POLL_AFTER)


@router.delete("/videos/{video_id}", response_model=VideoDeleted, responses=CHANGED)
async def delete_video(video_id: str, caller: AsCaller) -> Response:
    """Delete a video. An unfinished video is cancelled, without a webhook."""
    await caller.queue.call(caller.client.delete, video_id)
    return as_json(VideoDeleted(id=video_id))


@router.post("/videos/{video_id}/cancel", response_model=Video, responses=CHANGED)
async def cancel_video(video_id: str, caller: AsCaller) -> Response:
    """Cancel an unfinished video. A finished one does not change."""
    return as_json(video_of(await caller.queue.call(caller.client.cancel, video_id)))


@router.post(
    "/videos/{video_id}/remix",
    response_model=Video,
    responses=CHANGED,
    openapi_extra=request_body(RemixVideo.model_json_schema(), "application/json"),
)
async def remix_video(
    video_id: str,
    request: Request,
    caller: AsCaller,
    idempotency_key: IdempotencyKey = None,
    retry_count: RetryCount = None,
) -> Response:
    """Queue a video with the settings of this one and another prompt."""
    fields = json_object(await body_of(request))
    if others := set(fields) - {"prompt"}:
        name = min(others)[:60]
        raise UnsupportedParameter(
            name,
            f"A remix takes only a prompt, not {name}.",
            hint="To change more, create a new video.",
        )
    if not isinstance(fields.get("prompt"), str):
        raise InvalidRequest.of(("prompt", "is required, as text"))
    source = (await caller.queue.get(caller.owner, video_id)).request
    metadata = {**source.metadata, REMIXED_FROM: video_id}
    changed = {"prompt": fields["prompt"], "metadata": metadata}
    remixed = VideoRequest.parse({**source.model_dump(), **changed})
    return await _submit(caller, remixed, idempotency_key, retry_count)


@router.get(
    "/videos/{video_id}/events", status_code=200, response_class=EventStream, responses=READ
)
async def follow_video(video_id: str, caller: AsCaller) -> Response:
    """Server-sent events: the video now and at each change, until it is finished."""
    return await stream(caller, video_id, video_of)


async def _submit(
    caller: Caller, request: VideoRequest, idempotency_key: str | None, retry_count: int | None
) -> Response:
    job = await caller.queue.call(
        caller.client.submit,
        request,
        idempotency_key=idempotency_key,
        # OpenAI's SDK sends no idempotency key, but a count: 0 in its first attempt.
        resent=None if retry_count is None else retry_count > 0,
    )
    return as_json(video_of(job), headers=POLL_AFTER)
