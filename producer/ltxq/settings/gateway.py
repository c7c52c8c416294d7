"""A gateway: keys, rates, how it gives out clips."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from ltxq.settings.role import GATEWAY, Role


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
    content: Literal["redirect", "proxy"] = Field(
        default="redirect",
        description="How a gateway gives out clips: redirect: by URLs of the storage; proxy: it "
        "sends them itself, and its answers have links to itself.",
    )
    public_url: str | None = Field(
        default=None,
        description="URL of the gateway for viewers, as https://clips.example.com, for the links "
        "of LTXQ_CONTENT=proxy. Default, on this machine only: where it listens.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origins whose pages may call the gateway, as https://app.example.com, "
        "separated by commas.",
    )

    @field_validator("content", mode="before")
    @classmethod
    def _check_content(cls, content: Any) -> Any:
        if content in ("", None):
            return "redirect"
        if content not in ("redirect", "proxy"):
            raise ValueError("must be redirect or proxy")
        return content

    @field_validator("public_url", mode="before")
    @classmethod
    def _check_public_url(cls, url: Any) -> Any:
        if not url:
            return None
        if not isinstance(url, str) or not GATEWAY.fullmatch(url):
            raise ValueError(
                "must be https:// or http://, a host, and optionally a port and a path, as "
                "https://clips.example.com"
            )
        return url

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _parse_cors_origins(cls, origins: Any) -> Any:
        if not isinstance(origins, str):
            return origins or ()
        entries = [entry.strip() for entry in origins.split(",")]
        for number, origin in enumerate(entries, start=1):
            if origin and not re.fullmatch(
                r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", origin
            ):
                raise ValueError(
                    f"entry {number} is not an origin, as https://app.example.com, without a path"
                )
        return tuple(filter(None, entries))
