"""`State`, which all requests share, and `Caller`, the sender of one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ltxq.client import Client
from ltxq.gateway.access.keys import ApiKeys
from ltxq.gateway.access.rates import Rates
from ltxq.gateway.openai.errors import Refused
from ltxq.gateway.reads.queue_reader import QueueReader
from ltxq.gateway.reads.readiness import Prober


@dataclass(frozen=True)
class State:
    """The parts of one gateway."""

    keys: ApiKeys
    queue: QueueReader
    rates: Rates
    prober: Prober


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
    if request.method == "GET":
        gateway.rates.count_read(owner)
    else:
        await gateway.queue.call(gateway.rates.count_change, owner)
    return Caller(owner, gateway)


AsCaller = Annotated[Caller, Depends(caller)]


async def caller_of(request: Request) -> Caller:
    """As `caller`, for a route without FastAPI's dependencies."""
    return await caller(request, await _BEARER(request))
