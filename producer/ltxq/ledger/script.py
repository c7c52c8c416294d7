"""The Lua of script/ as one Python call: an operation is atomic, on Redis's clock, and may be
repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any, TypeVar

import redis.exceptions as redis_errors

from ltxq.job import CONTRACT
from ltxq.ledger.answers import NotPermitted
from ltxq.ledger.connection import PATIENCE, Connection
from ltxq.ledger.permissions import Role
from ltxq.ledger.probe import probe

REPLICA_MILLISECONDS = 500  # for replicas to confirm a submission, before it is repeated
PREFIX = f"ltxq:{CONTRACT}:"
"""Every key of the ledger begins with it."""

# The files of script/, each after those whose functions it calls.
_PARTS = ("keys", "figures", "webhooks", "states", "damage",
          "clients", "workers", "fleet", "sweep", "run")  # fmt: skip

T = TypeVar("T")


class Script:
    """Runs the ledger's operations on one Redis. Thread-safe.

    Args:
        role: what it is used for. Before the first call Redis is asked whether it allows it.
    """

    def __init__(self, connection: Connection, role: Role) -> None:
        self.redis = connection.redis
        self._connection = connection
        self._role = role
        self._checked = False
        folder = files("ltxq.ledger").joinpath("script")
        parts = (folder.joinpath(f"{part}.lua").read_text("utf-8") for part in _PARTS)
        self.lua = self.redis.register_script("\n".join(parts))

    def check(self, patience: float = PATIENCE, *, writes: bool = False) -> None:
        """Ask Redis whether it permits all that this role does.

        Args:
            writes: and whether it takes writes now.

        Raises:
            ConfigurationError: it does not; the message names the call, the hint what to grant.
            QueueUnavailable
        """
        self._checked = probe(self._connection, self._role, patience, writes=writes)

    def key(self, *parts: str) -> str:
        """The Redis key of these parts; `script/keys.lua` lists all keys."""
        return PREFIX + ":".join(parts)

    def run(self, operation: str, *arguments: str | int, patience: float = PATIENCE) -> Any:
        """The answer of one operation of script/."""
        return self.ask(lambda: self.lua(keys=[PREFIX], args=[operation, *arguments]), patience)

    def run_kept(self, operation: str, *arguments: str | int) -> Any:
        """As `run`, for an operation that may be repeated: it answers when as many replicas have it
        as LTXQ_REDIS_REPLICAS says.
        """
        replicas = self._connection.replicas
        if not replicas:
            return self.run(operation, *arguments)

        def send() -> Any:
            # On one connection: WAIT is about the writes of its own.
            with self.redis.pipeline(transaction=False) as pipe:
                pipe.evalsha(self.lua.sha, 1, PREFIX, operation, *arguments)
                pipe.wait(replicas, REPLICA_MILLISECONDS)
                answer, have = pipe.execute()
            if have < replicas:
                raise redis_errors.ResponseError("UNKEPT")
            return answer

        def call() -> Any:
            try:
                return send()
            except redis_errors.NoScriptError:
                self.redis.script_load(self.lua.script)
                return send()

        return self.ask(call)

    def ask(self, call: Callable[[], T], patience: float = PATIENCE) -> T:
        """`call()`, repeated for up to `patience` seconds while Redis is away.

        Raises:
            QueueUnavailable, ConfigurationError
        """
        if not self._checked:
            self.check(patience)
        try:
            return self._connection.patiently(call, patience)
        except NotPermitted:  # a right was taken away since: which one?
            self.check(patience)
            raise
