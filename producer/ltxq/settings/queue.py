"""The queue: its Redis or gateway, its limits, and shares of the GPUs."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from ltxq.errors import ConfigurationError
from ltxq.job import MAX_URL_SECONDS, ModelName
from ltxq.settings.redis_url import RedisUrl
from ltxq.settings.role import Role, is_gateway_url

DEFAULT_MODEL = "ltx-2-19b-distilled"


class QueueSettings(Role):
    """The queue: producers, gateways and workers."""

    url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="The queue's Redis: redis://, rediss://, unix:// or sentinel://, with user and "
        "password; or, for clients, a gateway: https:// or http://.",
    )
    api_key: SecretStr | None = Field(
        default=None, description="API key that a client sends to a gateway."
    )
    redis_ca: Path | None = Field(
        default=None,
        description="CA bundle (PEM) for rediss:// and sentinels://; default: the system's trust "
        "store.",
    )
    redis_replicas: int = Field(
        default=0,
        ge=0,
        le=16,
        description="Replicas of Redis that must have a submission before it is accepted (WAIT).",
    )
    https_ca: Path | None = Field(
        default=None,
        description="CA bundle (PEM) for an https:// gateway; default: the system's trust store.",
    )
    default_model: ModelName = Field(
        default=DEFAULT_MODEL, description="Model of a request that does not name one."
    )
    max_queued: int = Field(
        default=100_000, ge=1, description="Refuse submissions while this many jobs are queued."
    )
    max_queued_per_key: int = Field(
        default=1_000,
        ge=1,
        description="Refuse an API key's submissions while it has this many queued jobs.",
    )
    weights: Annotated[dict[str, float], NoDecode] = Field(
        default={},
        description="Shares of the GPUs by API key, as alice=4,bob=0.5. Other keys have weight 1.",
    )
    retention: int = Field(
        default=MAX_URL_SECONDS,
        ge=60,
        le=100 * 366 * 86400,
        description="Seconds for which a finished job's record, Celery result and clip are kept.",
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: SecretStr) -> SecretStr:
        if url.get_secret_value().startswith(("http:", "https:")):
            if not is_gateway_url(url.get_secret_value()):
                raise ValueError(
                    "must be https://, a host, and optionally a port and a path; put the key into "
                    "LTXQ_API_KEY"
                )
        else:
            certificate = RedisUrl.parse(url.get_secret_value()).certificate
            if certificate:
                _check_certificate(**certificate)
        return url

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not re.fullmatch("[!-~]{1,512}", key.get_secret_value()):
            raise ValueError("must be 1 to 512 ASCII characters without a space")
        return key

    @field_validator("redis_ca", "https_ca")
    @classmethod
    def _check_ca(cls, file: Path | None) -> Path | None:
        if file is not None:
            try:
                ssl.create_default_context(cafile=file)
            except (OSError, ssl.SSLError) as exc:
                raise ValueError(f"cannot be read as certificates: {exc.strerror or exc}") from None
        return file

    @field_validator("weights", mode="before")
    @classmethod
    def _parse_weights(cls, weights: Any) -> Any:
        if not isinstance(weights, str):
            return weights or {}
        return dict(_weight(part) for part in weights.split(",") if part.strip())

    @property
    def is_gateway(self) -> bool:
        """Whether the URL is a gateway's, not a Redis server's."""
        return self.url.get_secret_value().startswith("http")

    @property
    def redis(self) -> RedisUrl:
        """The Redis that the URL names.

        Raises:
            ConfigurationError: it is a gateway's.
        """
        if self.is_gateway:
            raise ConfigurationError(
                "LTXQ_URL is a gateway's, and Redis itself is needed here.",
                hint="Workers, gateways and commands for operators take redis://, rediss://, "
                "unix:// or sentinel://.",
            )
        return RedisUrl.parse(self.url.get_secret_value())

    @property
    def redis_tls(self) -> dict[str, Any]:
        """TLS options for redis-py, kombu and Celery's backend; empty without TLS."""
        url = self.redis
        if not url.tls:
            return {}
        ca = {"ssl_ca_certs": str(self.redis_ca)} if self.redis_ca else {}
        checks = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
        return {**checks, **ca, **url.certificate}


def _check_certificate(ssl_certfile: str = "", ssl_keyfile: str | None = None) -> None:
    """Can the client's certificate be shown to Redis?"""
    if not ssl_certfile:
        raise ValueError("has a key without its certificate: add ssl_certfile")
    try:
        ssl.create_default_context().load_cert_chain(ssl_certfile, ssl_keyfile, _no_passphrase)
    except (OSError, ssl.SSLError) as exc:
        raise ValueError(
            "names a certificate that cannot be read with its key: ssl_certfile and ssl_keyfile "
            f"must be files in PEM ({exc.strerror or type(exc).__name__})"
        ) from None


def _no_passphrase() -> str:
    """OpenSSL would ask for it at the terminal, for each connection."""
    raise ValueError(
        "names a key that has a passphrase: write the key without one, as "
        "`openssl pkey -in KEY -out NEW-KEY` does"
    )


def _weight(part: str) -> tuple[str, float]:
    if not re.fullmatch(r"\s*[^\s=]+=\d{1,6}(\.\d{1,6})?\s*", part):
        raise ValueError("must be NAME=NUMBER entries, separated by commas")
    name, _, number = part.strip().partition("=")
    if not float(number):
        raise ValueError("a share must be more than 0")
    return name, float(number)
