"""A gateway: keys, rates, other sites' pages."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from ltxq.settings.role import Role


class GatewaySettings(Role):
    """Gateways."""

    # Hashes of keys. A string here: what an entry is, is the gateway's to say.
    api_keys: SecretStr | None = Field(
        default=None,
        description="API keys of the gateway: name=hash entries from `ltxq key`, separated by "
        "commas. Without keys everyone on the gateway's machine may use it.",
    )
    # Strings in the form of the library `limits`, which is the gateway's.
    rate_limit: str = Field(
        default="1200/minute",
        description="Submissions, cancellations and deletions of one API key, over all gateways.",
    )
    read_limit: str = Field(
        default="120000/minute", description="Reads of one API key, at one gateway."
    )
    max_streams_per_key: int = Field(
        default=200,
        ge=1,
        description="Open event streams, and open downloads, of one API key, at one gateway.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origins whose pages may call the gateway, as https://app.example.com, "
        "separated by commas.",
    )

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _parse_cors_origins(cls, origins: Any) -> Any:
        if not isinstance(origins, str):
            return origins or ()
        # As browsers write an origin: in small letters, without the scheme's own port.
        entries = [entry.strip().lower() for entry in origins.split(",")]
        entries = [
            re.sub("^(http://.*):80$|^(https://.*):443$", r"\1\2", entry) for entry in entries
        ]
        for number, origin in enumerate(entries, start=1):
            if origin and not re.fullmatch(
                r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", origin
            ):
                raise ValueError(
                    f"entry {number} is not an origin, as https://app.example.com, without a path"
                )
        return tuple(filter(None, entries))
