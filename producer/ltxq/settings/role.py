"""What the settings of all roles share."""

from __future__ import annotations

import re

from pydantic_settings import BaseSettings, SettingsConfigDict

GATEWAY = re.compile(
    r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9_./~-]*)?"
)


class Role(BaseSettings):
    """The settings of a role; each field `name` is read from `LTXQ_NAME`."""

    model_config = SettingsConfigDict(
        env_prefix="LTXQ_",
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # pydantic would show the URL as it was given
    )
