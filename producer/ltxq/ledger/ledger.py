"""One way to the ledger: its parts, over one connection pool."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from types import MappingProxyType

import redis

from ltxq.ledger.changes import Changes
from ltxq.ledger.claims import Claims
from ltxq.ledger.connection import connect
from ltxq.ledger.fleet import FleetStore
from ltxq.ledger.jobs import JobStore
from ltxq.ledger.outbox import Outbox
from ltxq.ledger.script import Script
from ltxq.ledger.sweeper import Sweeper
from ltxq.settings import Settings

_DEFAULTS = Settings.model_fields


class Ledger:
    """The job records in Redis: the truth about every job. Thread-safe.

    Every call of every part ends within about its `patience` (2.8 s) plus 2 seconds.

    Attributes:
        jobs: submit, cancel, delete, read.
        claims: what workers do with the jobs that they run.
        changes: subscriptions.
        outbox: webhooks that are due.
        fleet: workers and queues.
        sweeper: what supervisors repair and clear away.

    Raises (every method of every part): QueueUnavailable if Redis is away, loading, full or
    read-only for longer than `patience`; ConfigurationError if it refuses the password.
    """

    def __init__(
        self,
        connection: redis.Redis,
        *,
        retention: float = _DEFAULTS["retention"].default,
        lease: float = _DEFAULTS["lease"].default,
        max_lost: int = _DEFAULTS["max_lost"].default,
        max_queued: int = _DEFAULTS["max_queued"].default,
        max_queued_per_key: int = _DEFAULTS["max_queued_per_key"].default,
        weights: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._script = script = Script(connection)
        self.jobs = JobStore(
            script,
            retention=retention,
            max_queued=max_queued,
            max_queued_per_key=max_queued_per_key,
            weights=weights,
        )
        self.claims = Claims(script, lease=lease, retention=retention, max_lost=max_lost)
        self.changes = Changes(script)
        self.outbox = Outbox(script)
        self.fleet = FleetStore(script, lease=lease)
        self.sweeper = Sweeper(script, lease=lease, retention=retention, max_lost=max_lost)

    @classmethod
    def from_settings(cls, settings: Settings) -> Ledger:
        """Connects on first use, not here."""
        return cls(
            connect(settings),
            retention=settings.retention,
            lease=settings.lease,
            max_lost=settings.max_lost,
            max_queued=settings.max_queued,
            max_queued_per_key=settings.max_queued_per_key,
            weights=settings.weights,
        )

    def queue_id(self) -> str:
        """A random name of this Redis as a queue, drawn once, for all versions of the contract."""

        def ask() -> str:
            self._script.redis.set("ltxq:id", secrets.token_hex(8), nx=True)
            return str(self._script.redis.get("ltxq:id"))

        return self._script.ask(ask)

    def check_writes(self) -> None:
        """Try once whether Redis takes writes; raises as every method does."""
        probe = self._script.key("probe")
        self._script.ask(lambda: self._script.redis.set(probe, 1, ex=60), patience=0)

    def close(self) -> None:
        """Close the connections."""
        self._script.redis.close()
