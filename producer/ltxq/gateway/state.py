"""What all requests share, and who makes one."""

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
    """One gateway."""

    keys: ApiKeys
    queue: QueueReader
    rates: Rates
    prober: Prober


@dataclass(frozen=True)
class Caller:
    """Who asks: with a key its owner; where there are no keys, anyone."""

    owner: str | None
    gateway: State

    @property
    def client(self) -> Client:
        """The queue as this caller sees it. To be called in a thread: `queue.call`."""
        return self.gateway.queue.client(self.owner)

    @property
    def queue(self) -> QueueReader:
        """The queue, for an event loop."""
        return self.gateway.queue


_BEARER = HTTPBearer(auto_error=False, description="An API key, where the gateway has keys.")


async def caller(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
) -> Caller:
    """The caller of a request, which counts against their limits.

    Raises:
        Refused: 401 without a key that is known, 429 over a limit.
    """
    gateway: State = request.app.state.gateway
    if not gateway.keys:
        return Caller(None, gateway)
    owner = gateway.keys.owner(credentials.credentials) if credentials else None
    if owner is None:
        raise Refused(
            401,
            "unauthorized",
            "This API key is not known." if credentials else "An API key is needed.",
            hint="Send it as: Authorization: Bearer ltxq_…",
            headers={"www-authenticate": "Bearer"},
        )
    if request.method == "GET":
        gateway.rates.count_read(owner)
    else:
        await gateway.queue.call(gateway.rates.count_change, owner)
    return Caller(owner, gateway)


AsCaller = Annotated[Caller, Depends(caller)]


async def caller_of(request: Request) -> Caller:
    """As `caller`, where FastAPI does not call it."""
    return await caller(request, await _BEARER(request))
