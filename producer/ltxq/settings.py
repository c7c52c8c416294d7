"""Where things are and how much of them: `LTXQ_…` from the environment, read once.

AWS credentials come by boto3's own chain, `HF_TOKEN` by huggingface_hub's.
"""

from __future__ import annotations

import base64
import re
import ssl
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ltxq.errors import ConfigurationError
from ltxq.job import MAX_URL_SECONDS, ModelName

DEFAULT_MODEL = "ltx-2-19b-distilled"

_GATEWAY = re.compile(
    r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9_./~-]*)?"
)


class Settings(BaseSettings):
    """Every setting; each field `name` is read from `LTXQ_NAME`."""

    model_config = SettingsConfigDict(env_prefix="LTXQ_", frozen=True, extra="ignore")

    url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="The queue: redis:// or rediss://, with a password if it has one. For clients "
        "also a gateway: https:// or http://.",
    )
    api_key: SecretStr | None = Field(
        default=None, description="What a gateway knows this client by."
    )
    redis_ca: Path | None = Field(
        default=None,
        description="PEM file of who signed the certificate of a rediss:// server; unset: the "
        "system's authorities.",
    )
    https_ca: Path | None = Field(
        default=None,
        description="PEM file of who signed the certificate of an https:// gateway; unset: the "
        "system's authorities.",
    )
    default_model: ModelName = Field(
        default=DEFAULT_MODEL, description="The model of a request that names none."
    )
    s3_endpoint: str | None = Field(
        default=None, description="The S3-compatible server; unset: Amazon's."
    )
    s3_bucket: str | None = Field(default=None, description="The bucket clips are kept in.")
    s3_prefix: str = Field(
        default="ltxq/",
        max_length=200,
        pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*/)+$",
        description="Folder of the bucket that clips are kept in. Nothing outside it is listed "
        "or deleted. Ends with a slash.",
    )
    s3_public_endpoint: str | None = Field(
        default=None, description="Host that URLs are signed for, if viewers use another."
    )
    s3_public_base_url: str | None = Field(
        default=None,
        description="URLs are this and the key, unsigned and without an end: for a public bucket "
        "or a CDN.",
    )
    model_dir: Path = Field(
        default=Path("~/.cache/ltxq/models"),
        description="Model folders, one a model; the worker reads them, `ltxq model` fills them.",
    )
    quantization: Literal["fp8", "bf16"] | None = Field(
        default=None,
        description="fp8 keeps the transformer's large layers in 8 bits: 22 GB for 38. Unset: "
        "fp8 on a GPU, bf16 on a CPU.",
    )
    optimize: str = Field(
        default="auto",
        description="Optimizations that are on: auto, all, none, or names with commas between.",
    )
    shapes: str | None = Field(
        default=None,
        description="Sizes made once before a worker is ready, as 768x512x33,512x768x121@30: "
        "the first clip of a size is slow. Unset: the default one; on a CPU a small one.",
    )
    lease: float = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="Seconds a worker may be silent before its jobs go to another.",
    )
    max_lost: int = Field(
        default=3, ge=1, le=100, description="Workers a job may take down before it fails."
    )
    spool_jobs: int = Field(
        default=8,
        ge=1,
        le=256,
        description="Finished clips a worker may hold for uploading while it makes another.",
    )
    upload_patience: float = Field(
        default=3600.0, ge=0, description="Seconds an upload is tried again before the job fails."
    )
    max_queued: int = Field(
        default=100_000, ge=1, description="Queued jobs before submissions are refused."
    )
    max_queued_per_key: int = Field(
        default=1_000,
        ge=1,
        description="Queued jobs of one API key before its submissions are refused.",
    )
    weights: str | None = Field(
        default=None,
        description="Shares of the GPUs by API key, as alice=4,bob=0.5; any other key has 1.",
    )
    api_keys: SecretStr | None = Field(
        default=None,
        description="Who may use the gateway: name=hash entries with commas between, made by "
        "`ltxq key`. Unset: anyone on its own machine.",
    )
    rate_limit: str = Field(
        default="1200/minute",
        description="How often one API key may submit, cancel or delete, at all gateways together.",
    )
    read_limit: str = Field(
        default="120000/minute",
        description="How often one API key may ask, at one gateway.",
    )
    max_streams_per_key: int = Field(
        default=200, ge=1, description="Event streams one API key may have open at one gateway."
    )
    cors_origins: str | None = Field(
        default=None,
        description="Origins with commas between, as https://app.example.com, whose pages may "
        "call the gateway.",
    )
    retention: int = Field(
        default=MAX_URL_SECONDS,
        ge=60,
        description="Seconds a finished job's record, Celery result and clip are kept.",
    )
    webhook_secret: SecretStr | None = Field(
        default=None,
        description="What webhooks are signed with: whsec_ and 24 to 64 bytes in base64. Unset: "
        "they wait.",
    )
    webhook_allow: str | None = Field(
        default=None,
        description="Host names and networks, with commas between, that webhooks may reach though "
        "they are private.",
    )
    events: bool = Field(
        default=True,
        description="Celery's events, which Flower shows: submissions, progress, outcomes.",
    )
    show_prompts: bool = Field(
        default=True, description="Whether Flower shows the first words of prompts."
    )
    metrics_address: str | None = Field(
        default=None,
        description="Where a worker or gateway serves Prometheus's /metrics, as 127.0.0.1:9464; "
        "unset: nowhere.",
    )
    log: Literal["human", "json"] = Field(
        default="human", description="Logs as lines for people, or as JSON for machines."
    )
    instant_seconds: float = Field(
        default=0.0,
        ge=0,
        description="How long the instant test pipeline takes to denoise.",
    )
    spool_dir: Path | None = Field(
        default=None, description="Where clips are written before uploading; unset: a temp folder."
    )

    @field_validator("url")
    @classmethod
    def _url_is_of_a_queue(cls, url: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(url.get_secret_value())
            scheme, _ = parts.scheme, parts.port
        except ValueError:  # its words hold parts of the URL, perhaps of the password
            raise ValueError(
                "is no URL: its host or port is wrong, or the password has a character that must "
                "be written as %2F, %23 or the like"
            ) from None
        if scheme in ("http", "https"):
            if not _GATEWAY.fullmatch(url.get_secret_value()):
                raise ValueError(
                    "must be https://, a host and perhaps a port and a path; the key belongs in "
                    "LTXQ_API_KEY"
                )
        elif scheme not in ("redis", "rediss"):
            raise ValueError("must start with redis:// or rediss://, or https:// for a gateway")
        return url

    @field_validator("api_key")
    @classmethod
    def _api_key_fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not re.fullmatch("[!-~]{1,512}", key.get_secret_value()):
            raise ValueError("must be 1 to 512 ASCII characters without a space")
        return key

    @field_validator("redis_ca", "https_ca")
    @classmethod
    def _ca_is_a_certificate(cls, file: Path | None) -> Path | None:
        if file is not None:
            try:
                ssl.create_default_context(cafile=file)
            except (OSError, ssl.SSLError) as exc:
                raise ValueError(f"cannot be read as certificates: {exc.strerror or exc}") from None
        return file

    @property
    def is_gateway(self) -> bool:
        """Whether the URL is a gateway's, and not a Redis's."""
        return self.url.get_secret_value().startswith("http")

    @field_validator("weights")
    @classmethod
    def _weights_are_positive(cls, weights: str | None) -> str | None:
        for part in (weights or "").split(","):
            if part.strip() and not re.fullmatch(r"\s*[^\s=]+=\d{1,6}(\.\d{1,6})?\s*", part):
                raise ValueError(f"must be NAME=NUMBER with commas between, not {part[:40]!r}")
        if 0 in _weights(weights).values():
            raise ValueError("a share must be more than 0")
        return weights

    @property
    def weight_by_owner(self) -> dict[str, float]:
        """`weights`, read."""
        return _weights(self.weights)

    @property
    def redis_tls(self) -> dict[str, Any]:
        """Options for redis-py, kombu and Celery's backend alike; empty without rediss://."""
        if not self.url.get_secret_value().startswith("rediss:"):
            return {}
        ca = {"ssl_ca_certs": str(self.redis_ca)} if self.redis_ca else {}
        return {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, **ca}

    @field_validator("webhook_secret")
    @classmethod
    def _webhook_secret_is_standard(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            prefix, key = secret.get_secret_value()[:6], secret.get_secret_value()[6:]
            try:
                size = len(base64.b64decode(key, validate=True))
            except ValueError:
                size = 0
            if prefix != "whsec_" or not 24 <= size <= 64:
                raise ValueError(
                    "must be whsec_ and 24 to 64 bytes in base64, as from "
                    'echo "whsec_$(openssl rand -base64 32)"'
                )
        return secret

    @field_validator("webhook_allow")
    @classmethod
    def _webhook_allow_is_hosts(cls, allow: str | None) -> str | None:
        for number, entry in enumerate((allow or "").split(","), start=1):
            try:
                ip_network(entry.strip(), strict=False)
            except ValueError:
                if not re.fullmatch(r"[\w.-]*[^\W\d][\w.-]*|", entry.strip()):
                    raise ValueError(f"entry {number} is no host name and no network") from None
        return allow

    @field_validator("metrics_address")
    @classmethod
    def _metrics_address_is_one(cls, address: str | None) -> str | None:
        if address is not None:
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal() or not 0 <= int(port) < 65536:
                raise ValueError("must be an address and a port, as 127.0.0.1:9464")
        return address

    @field_validator("model_dir", "spool_dir")
    @classmethod
    def _home_is_known(cls, folder: Path | None) -> Path | None:
        try:
            if folder is not None:
                folder.expanduser()
        except RuntimeError:
            raise ValueError("begins with ~ and the name of nobody here") from None
        return folder

    @classmethod
    def read(cls) -> Settings:
        """The settings from the environment.

        Raises:
            ConfigurationError: naming each variable that is wrong and why, never its value.
        """
        try:
            return cls()
        except ValidationError as exc:
            wrong = "; ".join(
                f"LTXQ_{str(e['loc'][0]).upper()}: {str(e['msg']).removeprefix('Value error, ')}"
                for e in exc.errors()
            )
            raise ConfigurationError(wrong, hint="Correct the environment.") from None

    def pointed(self, url: str | None = None, api_key: str | None = None) -> Settings:
        """These settings for another queue, or with another key.

        Raises:
            ConfigurationError: naming which is wrong, never its value.
        """
        given = {"url": url, "api_key": api_key}
        secrets = {name: SecretStr(text) for name, text in given.items() if text is not None}
        if not secrets:
            return self
        try:
            return Settings.model_validate({**self.model_dump(), **secrets})
        except ValidationError as exc:
            what = "API key" if exc.errors()[0]["loc"] == ("api_key",) else "queue's URL"
            reason = str(exc.errors()[0]["msg"]).removeprefix("Value error, ")
            raise ConfigurationError(f"The {what} {reason}.") from None


def _weights(text: str | None) -> dict[str, float]:
    pairs = [part.strip().partition("=") for part in (text or "").split(",") if part.strip()]
    return {name: float(number) for name, _, number in pairs}


def without_password(url: str) -> str:
    """`url` fit for a log: the password, if it has one, is three stars."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))
