"""Logs, metrics and Flower."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from ltxq.settings.role import Role


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class MonitoringSettings(Role):
    """Logs, metrics and Flower: every process."""

    log: Literal["human", "json"] = Field(
        default="human", description="Log lines for people, or as JSON."
    )
    metrics_address: Annotated[Address | None, NoDecode] = Field(
        default=None,
        description="Address on which a worker or gateway serves Prometheus's /metrics, as "
        "127.0.0.1:9464 or [::1]:9464. Without it metrics are not served.",
    )
    events: bool = Field(
        default=True,
        description="Publish Celery's events, which Flower shows: submissions, progress, outcomes.",
    )
    show_prompts: bool = Field(
        default=True, description="Show the first words of prompts in Flower."
    )

    @field_validator("metrics_address", mode="plain")
    @classmethod
    def _parse_metrics_address(cls, address: Any) -> Address | None:
        if not isinstance(address, str):
            return Address(*address) if address else None
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):([0-9]{1,5})", address)
        if found is None or int(found[2]) >= 65536:
            raise ValueError("must be an address and a port, as 127.0.0.1:9464 or [::1]:9464")
        return Address(found[1], int(found[2]))
