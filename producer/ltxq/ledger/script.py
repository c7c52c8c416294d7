"""The Lua of script/ as one Python call: an operation is atomic, on Redis's clock, and may be
repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any, TypeVar

import redis

from ltxq.job import CONTRACT
from ltxq.ledger.connection import PATIENCE, patiently

PREFIX = f"ltxq:{CONTRACT}:"
"""Every key of the ledger begins with it."""

# The files of script/, each after those whose functions it calls.
_PARTS = ("keys", "figures", "webhooks", "states", "damage",
          "clients", "workers", "fleet", "sweep", "run")  # fmt: skip

T = TypeVar("T")


class Script:
    """Runs the ledger's operations on one Redis. Thread-safe."""

    def __init__(self, connection: redis.Redis) -> None:
        self.redis = connection
        folder = files("ltxq.ledger").joinpath("script")
        parts = (folder.joinpath(f"{part}.lua").read_text("utf-8") for part in _PARTS)
        self.lua = connection.register_script("\n".join(parts))

    def key(self, *parts: str) -> str:
        """The Redis key of these parts; `script/keys.lua` lists all keys."""
        return PREFIX + ":".join(parts)

    def run(self, operation: str, *arguments: str | int, patience: float = PATIENCE) -> Any:
        """The answer of one operation of script/."""
        return self.ask(lambda: self.lua(keys=[PREFIX], args=[operation, *arguments]), patience)

    def ask(self, call: Callable[[], T], patience: float = PATIENCE) -> T:
        """`call()`, repeated for up to `patience` seconds while Redis is away.

        Raises:
            QueueUnavailable, ConfigurationError
        """
        return patiently(self.redis, call, patience)
