"""API keys. Only their hashes are stored; a key is shown once, when it is made.

One SHA-256 is enough: a key has 256 random bits, so guessing is hopeless even without a slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

from ltxq.errors import ConfigurationError
from ltxq.settings import Settings

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
KEY_PREFIX = "ltxq_"
LONGEST = 256  # characters; the rest of a longer key is ignored


class NewKey(NamedTuple):
    """A new key. `entry` goes into LTXQ_API_KEYS; `key` goes to its owner and is stored nowhere."""

    name: str
    key: str
    entry: str


def new_key(name: str) -> NewKey:
    """Make a random key for `name`.

    Raises:
        ValueError: the name is invalid.
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(
            "a name has 1 to 64 characters of a-z 0-9 . _ - and begins with a letter or digit"
        )
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return NewKey(name, key, f"{name}={_hash(key)}")


class ApiKeys:
    """The accepted keys. A name may have several: then a key can be replaced without a gap.

    Args:
        text: `name=hash` entries, separated by commas or white space.

    Raises:
        ValueError: an entry is invalid. The message has its position, never its text.
    """

    def __init__(self, text: str) -> None:
        self._hashes: list[tuple[str, str]] = []
        for place, entry in enumerate(re.findall(r"[^,\s]+", text), start=1):
            name, _, digest = entry.partition("=")
            if _NAME.fullmatch(name) is None or _HASH.fullmatch(digest) is None:
                raise ValueError(
                    f"entry {place} is not name=hash; `ltxq key NAME` makes a key and its entry"
                )
            self._hashes.append((name, digest))

    @classmethod
    def from_settings(cls, settings: Settings) -> ApiKeys:
        """The keys in LTXQ_API_KEYS, which may be empty.

        Raises:
            ConfigurationError
        """
        try:
            return cls(settings.api_keys.get_secret_value() if settings.api_keys else "")
        except ValueError as exc:
            raise ConfigurationError(f"LTXQ_API_KEYS: {exc}.") from None

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def owner(self, key: str) -> str | None:
        """The name that the key belongs to; None: the key is unknown."""
        digest = _hash(key[:LONGEST])
        found = None
        for name, known in self._hashes:  # no early end: the time must not depend on the key
            if hmac.compare_digest(known, digest):
                found = name
        return found


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
