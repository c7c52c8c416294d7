"""One way to the ledger: its parts, over one connection pool."""

from __future__ import annotations

import logging
import secrets

from redis import ConnectionPool

from ltxq.errors import ConfigurationError, QueueUnavailable
from ltxq.ledger.answers import code_of
from ltxq.ledger.changes import Changes
from ltxq.ledger.claims import Claims
from ltxq.ledger.connection import Connection
from ltxq.ledger.fleet import FleetStore
from ltxq.ledger.jobs import JobStore
from ltxq.ledger.outbox import Outbox
from ltxq.ledger.permissions import Role
from ltxq.ledger.probe import check_server
from ltxq.ledger.script import Script
from ltxq.ledger.sweeper import Sweeper
from ltxq.settings import Settings

log = logging.getLogger("ltxq")


class Ledger:
    """The job records in Redis: the truth about every job. Thread-safe. Connects on first use.

    Every call of every part ends within about its `patience` (2.8 s) plus 2 seconds.

    Attributes:
        jobs: submit, cancel, delete, read.
        claims: what workers do with the jobs that they run.
        changes: subscriptions.
        outbox: webhooks that are due.
        fleet: workers and queues.
        sweeper: what supervisors repair and clear away.

    Raises (every method of every part): QueueUnavailable if Redis is away, loading, full or
    read-only for longer than `patience`; ConfigurationError if it refuses the password or a command
    of the `role`, which the first call of all tries.
    """

    def __init__(self, settings: Settings, role: Role = "client") -> None:
        self._connection = Connection(settings)
        self._script = script = Script(self._connection, role)
        self.jobs = JobStore(script, settings)
        self.claims = Claims(script, settings)
        self.changes = Changes(script)
        self.outbox = Outbox(script)
        self.fleet = FleetStore(script, settings)
        self.sweeper = Sweeper(script, settings)

    @property
    def connection_pool(self) -> ConnectionPool:
        """The connections to Redis, for what is counted beside the queue."""
        return self._connection.redis.connection_pool

    def queue_id(self) -> str:
        """A random name of this Redis as a queue, drawn once, for all versions of the contract."""

        def ask() -> str:
            self._script.redis.set("ltxq:id", secrets.token_hex(8), nx=True)
            return str(self._script.redis.get("ltxq:id"))

        return self._script.ask(ask)

    def link_secret(self) -> str:
        """The secret by which gateways sign their links, drawn once."""

        def ask() -> str:
            self._script.redis.set("ltxq:links", secrets.token_urlsafe(32), nx=True)
            return str(self._script.redis.get("ltxq:links"))

        return self._script.ask(ask)

    def check(self) -> None:
        """Before the work: does Redis permit all that the role does, take writes, and keep them?

        Raises:
            ConfigurationError: no, and waiting does not help: a permission is missing (named, with
                the grant), it is a cluster's node or a replica, or it evicts keys.
            QueueUnavailable: it is away or takes no writes now.
        """
        try:
            self._script.check(writes=True)
        except QueueUnavailable as exc:
            # Sentinels are about to name another primary.
            lasts = not self._connection.url.master
            if lasts and exc.__cause__ and code_of(exc.__cause__) == "READONLY":
                raise ConfigurationError(exc.message, hint=exc.hint) from exc
            raise
        if worry := check_server(self._connection):
            log.warning(worry)

    def check_writes(self) -> None:
        """Try once whether Redis takes writes; raises as every method does."""
        probe = self._script.key("probe")
        self._script.ask(lambda: self._script.redis.set(probe, 1, ex=60), patience=0)

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()
