"""`State`, which all requests share, and `Caller`, the sender of one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ltxq.client import Client
from ltxq.gateway.access.keys import ApiKeys
from ltxq.gateway.access.rates import Rates
from ltxq.gateway.openai.errors import Refused
from ltxq.gateway.reads.clip_files import ClipFiles
from ltxq.gateway.reads.queue_reader import QueueReader
from ltxq.gateway.reads.readiness import Prober
from ltxq.job import Job
from ltxq.links import Variant


@dataclass(frozen=True)
class State:
    """The parts of one gateway."""

    keys: ApiKeys
    queue: QueueReader
    rates: Rates
    prober: Prober
    clips: ClipFiles


@dataclass(frozen=True)
class Caller:
    """The sender of a request: the API key's owner, or anyone if the gateway has no keys."""

    owner: str | None
    gateway: State

    @property
    def client(self) -> Client:
        """The queue with this caller's jobs. It blocks: call it with `queue.call`."""
        return self.gateway.queue.client(self.owner)

    @property
    def queue(self) -> QueueReader:
        """The queue, for the event loop."""
        return self.gateway.queue


_BEARER = HTTPBearer(
    auto_error=False, description="An API key. Not needed if the gateway has no keys."
)


async def caller(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
) -> Caller:
    """The caller of a request; counts the request against the key's rate limits.

    Raises:
        Refused: 401 unknown or missing key, 429 rate limit.
    """
    gateway: State = request.app.state.gateway
    if not gateway.keys:
        return Caller(None, gateway)
    owner = gateway.keys.owner(credentials.credentials) if credentials else None
    if owner is None:
        raise Refused(
            401,
            "unauthorized",
            "This API key is unknown." if credentials else "An API key is required.",
            hint="Send a valid key as: Authorization: Bearer ltxq_…",
            headers={"www-authenticate": "Bearer"},
        )
    if request.method in ("GET", "HEAD"):
        gateway.rates.count_read(owner)
    else:
        await gateway.queue.call(gateway.rates.count_change, owner)
    return Caller(owner, gateway)


AsCaller = Annotated[Caller, Depends(caller)]


@dataclass(frozen=True)
class Viewer(Caller):
    """The sender of a request for a file: a caller, or anyone with a link."""

    link: tuple[int, str] | None = None  # its end and its signature; None: a caller

    async def read(self, video_id: str, variant: Variant) -> Job:
        """The job, if the viewer may see this file of it.

        Raises:
            Refused: 403 the link has ended or was changed; 429 rate limit.
        """
        if self.link is None:
            return await self.queue.get(self.owner, video_id)
        links = self.gateway.clips.links
        if not await self.queue.call(links.valid, video_id, variant, *self.link):
            raise Refused(
                403,
                "link_ended",
                "This link has expired, or a part of it is missing.",
                hint="Request the video again for new links.",
            )
        job = await self.queue.get(None, video_id)
        if job.owner is not None:
            self.gateway.rates.count_read(job.owner)
        return job


async def viewer(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    expires: Annotated[int | None, Query(ge=0, lt=2**53, description="Of a link.")] = None,
    signature: Annotated[str | None, Query(max_length=100, description="Of a link.")] = None,
) -> Viewer:
    """The viewer of a file: by an API key, or by a link."""
    gateway: State = request.app.state.gateway
    if gateway.keys and not credentials and expires is not None and signature is not None:
        return Viewer(None, gateway, (expires, signature))
    known = await caller(request, credentials)
    return Viewer(known.owner, gateway)


AsViewer = Annotated[Viewer, Depends(viewer)]


async def caller_of(request: Request) -> Caller:
    """As `caller`, for a route without FastAPI's dependencies."""
    return await caller(request, await _BEARER(request))
