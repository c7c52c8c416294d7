"""A worker: models, leases, the spool, webhooks."""

from __future__ import annotations

import base64
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from ltxq.errors import ConfigurationError
from ltxq.settings.role import Role

Receiver: TypeAlias = IPv4Network | IPv6Network | str  # a network, or a host's name


class WorkerSettings(Role):
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

    @field_validator("model_dir", "spool_dir", mode="before")
    @classmethod
    def _check_blank(cls, folder: object) -> object:
        if isinstance(folder, str) and not folder.strip():  # would be the working directory
            raise ValueError("must be a folder; unset it for the default")
        return folder

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


def _without_home(folder: Path, variable: str) -> Path:
    try:
        return folder.expanduser()
    except RuntimeError:
        raise ConfigurationError(
            f"{variable} is {folder}, and this user has no home folder.",
            hint=f"Set {variable} to a folder, or HOME.",
        ) from None


def _receiver(entry: str, number: int) -> Receiver:
    try:
        return ip_network(entry, strict=False)
    except ValueError:
        if not re.fullmatch(r"[\w.-]*[^\W\d][\w.-]*", entry):
            raise ValueError(f"entry {number} is no host name and no network") from None
        return entry.lower()
