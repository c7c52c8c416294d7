"""The `LTXQ_…` settings, by role. An entry point reads them from the environment, once.

boto3 finds the storage's credentials, and huggingface_hub finds `HF_TOKEN`.
"""

from __future__ import annotations

import base64
import re
import ssl
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ltxq.errors import ConfigurationError
from ltxq.job import MAX_URL_SECONDS, ModelName
from ltxq.reasons import reason_of
from ltxq.redis_url import RedisUrl

DEFAULT_MODEL = "ltx-2-19b-distilled"

_GATEWAY = re.compile(
    r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9_./~-]*)?"
)

Receiver: TypeAlias = IPv4Network | IPv6Network | str  # a network, or a host's name


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class _Role(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="LTXQ_",
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # pydantic would show the URL as it was given
    )


class QueueSettings(_Role):
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
            found = _GATEWAY.fullmatch(url.get_secret_value())
            if not found or int((found[2] or ":443")[1:]) > 65535:
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


class StorageSettings(_Role):
    """The storage: workers, and producers that sign URLs."""

    s3_endpoint: str | None = Field(
        default=None, description="URL of the S3-compatible server; default: Amazon S3."
    )
    s3_public_endpoint: str | None = Field(
        default=None,
        description="URL of the storage for viewers, if it differs; URLs are signed for it.",
    )
    s3_bucket: str | None = Field(default=None, description="Bucket that stores the clips.")
    s3_prefix: str = Field(
        default="ltxq/",
        description="Folder of the bucket that stores the clips, with a slash at its end. ltxq "
        "lists and deletes nothing outside it.",
    )
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        default="auto",
        description="Where a request names the bucket: path: in the URL's path; virtual: in the "
        "host's name. Default: path with LTXQ_S3_ENDPOINT, as Amazon wants it without.",
    )
    s3_sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = Field(
        default=None,
        description="Encryption that the server is to use, sent with each upload: AES256, aws:kms "
        "or aws:kms:dsse. Default: the bucket's own.",
    )
    s3_sse_key_id: str | None = Field(
        default=None,
        description="Key for aws:kms and aws:kms:dsse; default: the account's key for S3.",
    )
    s3_public_base_url: str | None = Field(
        default=None,
        description="Prefix of unsigned URLs that do not expire, for a public bucket or a CDN.",
    )

    @field_validator(
        "s3_endpoint",
        "s3_bucket",
        "s3_sse",
        "s3_sse_key_id",
        "s3_public_endpoint",
        "s3_public_base_url",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, text: Any) -> Any:
        return None if text == "" else text

    @field_validator("s3_endpoint", "s3_public_endpoint", "s3_public_base_url")
    @classmethod
    def _check_s3_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # its message holds parts of the URL
            raise ValueError("is not a URL: its host or port is wrong") from None
        if parts.username is not None:
            raise ValueError(
                "must have no user or password in it: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            )
        if not right or not re.fullmatch(r"https?://[^\s?#]+", url) or not url.isprintable():
            raise ValueError(
                "must be a URL: http:// or https:// and a host, as https://s3.example.com, without "
                "? and #"
            )
        return url

    @field_validator("s3_bucket")
    @classmethod
    def _check_s3_bucket(cls, bucket: str | None) -> str | None:
        # Amazon's names are stricter than those of other servers; an access point has an ARN.
        name, access_point = r"[A-Za-z0-9][\w.-]{0,254}", r"arn:[a-z-]+:s3[a-z-]*:[\w:/.-]{1,255}"
        if bucket is not None and not re.fullmatch(f"{name}|{access_point}", bucket, re.ASCII):
            raise ValueError(
                "must be a bucket's name, as clips: letters, digits, dots, hyphens and "
                "underscores, no URL and no folder"
            )
        return bucket

    @field_validator("s3_prefix")
    @classmethod
    def _check_s3_prefix(cls, prefix: str) -> str:
        parts = r"([A-Za-z0-9_-][A-Za-z0-9._-]*/)+"
        if len(prefix) > 200 or not re.fullmatch(parts, prefix):
            raise ValueError(
                "must be one folder or several, each with a slash after it, as ltxq/ or video/a/: "
                "letters, digits, dots, hyphens and underscores, 200 characters at most"
            )
        return prefix

    @field_validator("s3_addressing", mode="before")
    @classmethod
    def _check_s3_addressing(cls, style: Any, found: ValidationInfo) -> Any:
        if style in ("", None):
            return "auto"
        if style not in ("auto", "path", "virtual"):
            raise ValueError("must be auto, path or virtual")
        bucket = found.data.get("s3_bucket")
        for name in ("s3_endpoint", "s3_public_endpoint"):
            endpoint = found.data.get(name)
            if style == "virtual" and endpoint and _is_ip(urlsplit(endpoint).hostname or ""):
                raise ValueError(
                    "virtual puts the bucket before the host's name, but the host of "
                    f"LTXQ_{name.upper()} is an IP address: set path, or give it a name"
                )
        if style == "virtual" and bucket and not re.fullmatch(r"[a-z0-9.-]{3,63}|arn:.*", bucket):
            raise ValueError(
                "virtual puts the bucket before the host's name, and LTXQ_S3_BUCKET cannot be a "
                "part of one: small letters, digits and hyphens can"
            )
        return style

    @field_validator("s3_sse", mode="before")
    @classmethod
    def _check_s3_sse(cls, sse: Any) -> Any:
        if sse not in (None, "", "AES256", "aws:kms", "aws:kms:dsse"):
            raise ValueError("must be AES256, aws:kms or aws:kms:dsse")
        return sse or None

    @field_validator("s3_sse_key_id")
    @classmethod
    def _check_s3_sse_key_id(cls, key: str | None, found: ValidationInfo) -> str | None:
        if key is None:
            return None
        if not re.fullmatch(r"[A-Za-z0-9:/_.-]{1,2048}", key):
            raise ValueError("must be the id, the ARN or the alias of a key")
        if "s3_sse" in found.data and found.data["s3_sse"] in (None, "AES256"):
            raise ValueError("needs LTXQ_S3_SSE=aws:kms or aws:kms:dsse")
        return key


class WorkerSettings(_Role):
    """Workers."""

    model_dir: Path = Field(
        default=Path("~/.cache/ltxq/models"),
        description="Folder with one folder for each model. `ltxq model download` writes it, "
        "workers read it.",
    )
    quantization: Literal["fp8", "bf16"] | None = Field(
        default=None,
        description="fp8: keep the transformer's large layers in 8 bits (22 GB instead of 38). "
        "bf16: keep the published weights. Default: fp8 on a GPU, bf16 on a CPU.",
    )
    # A string: what it means depends on the device, and the names belong to the worker's package.
    optimize: str = Field(
        default="auto",
        description="Optimizations: auto, all, none, or names separated by commas.",
    )
    # A string, for the same reason: the default depends on the device.
    shapes: str | None = Field(
        default=None,
        description="Sizes to compile before the worker is ready, as "
        "768x512x33,512x768x121@30. The first clip of any other size takes longer. Default: the "
        "default size; on a CPU a small one.",
    )
    lease: float = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="Seconds after which the jobs of a silent worker are given to another.",
    )
    max_lost: int = Field(
        default=3, ge=1, le=100, description="Fail a job after it has crashed this many workers."
    )
    spool_dir: Path | None = Field(
        default=None,
        description="Folder for clips that wait for uploading; default: a temporary folder.",
    )
    spool_jobs: int = Field(
        default=8,
        ge=1,
        le=256,
        description="Finished clips that may wait for uploading while the GPU makes another.",
    )
    upload_patience: float = Field(
        default=3600.0,
        ge=0,
        description="Seconds for which an upload is retried before the job fails.",
    )
    webhook_secret: SecretStr | None = Field(
        default=None,
        description="Secret that signs webhooks: whsec_ and 24 to 64 bytes in base64. Without it "
        "webhooks wait.",
    )
    webhook_allow: Annotated[tuple[Receiver, ...], NoDecode] = Field(
        default=(),
        description="Private host names and networks that webhooks may reach, separated by commas.",
    )
    instant_seconds: float = Field(
        default=0.0,
        ge=0,
        description="Seconds for which the instant test pipeline denoises.",
    )

    @field_validator("webhook_secret")
    @classmethod
    def _check_webhook_secret(cls, secret: SecretStr | None) -> SecretStr | None:
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

    @field_validator("webhook_allow", mode="plain")
    @classmethod
    def _parse_webhook_allow(cls, allow: Any) -> tuple[Receiver, ...]:
        entries = allow.split(",") if isinstance(allow, str) else allow or ()
        return tuple(
            _receiver(str(entry).strip(), number)
            for number, entry in enumerate(entries, start=1)
            if str(entry).strip()
        )

    @field_validator("model_dir", "spool_dir")
    @classmethod
    def _check_home(cls, folder: Path | None) -> Path | None:
        if folder is not None and folder.parts[:1] != ("~",):  # whose home its user may not need
            try:
                folder.expanduser()
            except RuntimeError:
                raise ValueError("begins with ~ and a user that does not exist here") from None
        return folder

    @property
    def models_folder(self) -> Path:
        """`model_dir` without ~. Raises ConfigurationError if this user has no home folder."""
        return _without_home(self.model_dir, "LTXQ_MODEL_DIR")

    @property
    def spool_folder(self) -> Path | None:
        """`spool_dir` without ~. Raises ConfigurationError if this user has no home folder."""
        return self.spool_dir and _without_home(self.spool_dir, "LTXQ_SPOOL_DIR")


class GatewaySettings(_Role):
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
        if not isinstance(url, str) or not _GATEWAY.fullmatch(url):
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


class MonitoringSettings(_Role):
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


class Settings(QueueSettings, StorageSettings, WorkerSettings, GatewaySettings, MonitoringSettings):
    """Every setting; each field `name` is read from `LTXQ_NAME`."""

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
                f"LTXQ_{str(e['loc'][0]).upper()}: {reason_of(e)}" for e in exc.errors()
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
            raise ConfigurationError(f"The {what} {reason_of(exc.errors()[0])}.") from None


def _without_home(folder: Path, variable: str) -> Path:
    try:
        return folder.expanduser()
    except RuntimeError:
        raise ConfigurationError(
            f"{variable} is {folder}, and this user has no home folder.",
            hint=f"Set {variable} to a folder, or HOME.",
        ) from None


def _check_certificate(ssl_certfile: str = "", ssl_keyfile: str | None = None) -> None:
    """Can the client's certificate be shown to Redis?"""
    try:
        ssl.create_default_context().load_cert_chain(ssl_certfile, ssl_keyfile)
    except (OSError, ssl.SSLError) as exc:
        raise ValueError(
            "names a certificate that cannot be read with its key: ssl_certfile and ssl_keyfile "
            f"must be files in PEM ({exc.strerror or type(exc).__name__})"
        ) from None


def _weight(part: str) -> tuple[str, float]:
    if not re.fullmatch(r"\s*[^\s=]+=\d{1,6}(\.\d{1,6})?\s*", part):
        raise ValueError(f"must be NAME=NUMBER, separated by commas, not {part[:40]!r}")
    name, _, number = part.strip().partition("=")
    if not float(number):
        raise ValueError("a share must be more than 0")
    return name, float(number)


def _receiver(entry: str, number: int) -> Receiver:
    try:
        return ip_network(entry, strict=False)
    except ValueError:
        if not re.fullmatch(r"[\w.-]*[^\W\d][\w.-]*", entry):
            raise ValueError(f"entry {number} is no host name and no network") from None
        return entry.lower()


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def without_password(url: str) -> str:
    """`url` for a log: the password, if it has one, is three stars."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))
