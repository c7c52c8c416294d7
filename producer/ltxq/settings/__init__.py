"""The `LTXQ_…` settings, by role. An entry point reads them from the environment, once.

boto3 finds the storage's credentials, and huggingface_hub finds `HF_TOKEN`.
"""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr, ValidationError

from ltxq.errors import ConfigurationError
from ltxq.reasons import reason_of
from ltxq.settings.gateway import GatewaySettings
from ltxq.settings.monitoring import Address, MonitoringSettings
from ltxq.settings.queue import DEFAULT_MODEL, QueueSettings
from ltxq.settings.storage import StorageSettings
from ltxq.settings.worker import Receiver, WorkerSettings

__all__ = [
    "DEFAULT_MODEL",
    "Address",
    "GatewaySettings",
    "MonitoringSettings",
    "QueueSettings",
    "Receiver",
    "Settings",
    "StorageSettings",
    "WorkerSettings",
    "without_password",
]


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


def without_password(url: str) -> str:
    """`url` for a log: the password, if it has one, is three stars."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))
