"""Server-sent events: a job's changes as they happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress

from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ltxq.errors import LtxqError
from ltxq.gateway.openai.errors import ErrorEnvelope, body_of
from ltxq.gateway.state import Caller
from ltxq.job import Job

HEARTBEAT_SECONDS = 15.0  # many proxies close a connection after a silent minute
RECONNECT_MS = 2000  # a browser reconnects after this, if the stream ends early

Shown = Callable[[Job], BaseModel]


async def stream(caller: Caller, job_id: str, shown: Shown) -> EventStream:
    """An event for each change of the job, with `shown(job)` as its data, until the job is final.

    An error after the first event is an event named `error` with the envelope.

    Raises:
        LtxqError: the job cannot be read, e.g. JobNotFound.
    """
    await caller.queue.get(caller.owner, job_id)
    return EventStream(caller, job_id, shown)


# FastAPI's EventSourceResponse sends `no-cache`, but secret URLs of clips need `no-store`.
class EventStream(StreamingResponse):
    """While open, counts as one of the caller's event streams."""

    media_type = "text/event-stream"

    def __init__(self, caller: Caller, job_id: str, shown: Shown) -> None:
        super().__init__(
            _events(caller, job_id, shown),
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._caller.gateway.rates.stream(self._caller.owner):
            await super().__call__(scope, receive, send)


async def _events(caller: Caller, job_id: str, shown: Shown) -> AsyncIterator[str]:
    yield f"retry: {RECONNECT_MS}\n\n"
    async with aclosing(caller.queue.follow(caller.owner, job_id)) as jobs:
        following = asyncio.ensure_future(anext(jobs, None))
        try:
            while True:
                done, _ = await asyncio.wait({following}, timeout=HEARTBEAT_SECONDS)
                if not done:
                    yield ": keep-alive\n\n"
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
            with suppress(asyncio.CancelledError, LtxqError):
                await following
