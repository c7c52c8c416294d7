"""What the settings of all roles share."""

from __future__ import annotations

import re

from pydantic_settings import BaseSettings, SettingsConfigDict

_GATEWAY = re.compile(
    r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9_./~-]*)?"
)


def is_gateway_url(text: str) -> bool:
    """Whether a text is the URL of a gateway, without user, query and fragment."""
    found = _GATEWAY.fullmatch(text)
    return found is not None and 1 <= int((found[2] or ":443")[1:]) <= 65535


class Role(BaseSettings):
    """The settings of a role; each field `name` is read from `LTXQ_NAME`."""

    model_config = SettingsConfigDict(
        env_prefix="LTXQ_",
        env_ignore_empty=True,  # an unset variable in a .env file or in Compose is empty
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # pydantic would show the URL as it was given
    )
