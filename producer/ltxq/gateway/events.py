"""Server-sent events: a job's changes as they happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from pydantic import BaseModel
from starlette.responses import StreamingResponse

from ltxq.errors import LtxqError
from ltxq.gateway.failures import ErrorEnvelope, body_of
from ltxq.gateway.state import Caller
from ltxq.job import Job

HEARTBEAT_SECONDS = 15.0  # proxies close what is silent for a minute
RECONNECT_MS = 2000


async def stream(
    caller: Caller, job_id: str, shown: Callable[[Job], BaseModel]
) -> StreamingResponse:
    """`data:` with what `shown` makes of the job at each change; ends after the final state.

    What goes wrong once it has begun is an event named `error` with the envelope.

    Raises:
        JobNotFound and the like, before it begins.
    """
    await caller.queue.get(caller.owner, job_id)
    return StreamingResponse(
        _events(caller, job_id, shown),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


async def _events(
    caller: Caller, job_id: str, shown: Callable[[Job], BaseModel]
) -> AsyncIterator[str]:
    yield f"retry: {RECONNECT_MS}\n\n"
    jobs = caller.queue.follow(caller.owner, job_id)
    following = asyncio.ensure_future(anext(jobs, None))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=HEARTBEAT_SECONDS)
            if not done:
                yield ": still here\n\n"
                continue
            job = following.result()
            if job is None:
                return
            yield f"data: {shown(job).model_dump_json()}\n\n"
            following = asyncio.ensure_future(anext(jobs, None))
    except LtxqError as exc:
        envelope = ErrorEnvelope(error=body_of(exc)[0])
        yield f"event: error\ndata: {envelope.model_dump_json()}\n\n"
    finally:
        following.cancel()
