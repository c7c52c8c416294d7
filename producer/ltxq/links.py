"""Links to a clip's files at a gateway that sends the files itself: they end, and need no API key.

`<video>` tags send no API key, so a link has a signature of its own, by a secret in the queue's
Redis: gateways, workers and clients over Redis make the same links.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlencode

from ltxq.errors import QueueUnavailable
from ltxq.settings import Settings

Variant = Literal["video", "thumbnail", "spritesheet", "sidecar"]
FIELDS: dict[Variant, str] = {  # of `VideoResult`
    "video": "url",
    "thumbnail": "poster_url",
    "spritesheet": "spritesheet_url",
    "sidecar": "sidecar_url",
}
READ_AGAIN = 60.0  # seconds after which the secret is read again: Redis may have lost it
STEP = 60  # seconds: links that are made within a step are the same, for browsers' caches


class Links:
    """Makes and checks links. Thread-safe; both may ask Redis: call them in a thread.

    Args:
        base: the gateway's URL for viewers.
        read_secret: the secret, from Redis.
    """

    def __init__(self, base: str, read_secret: Callable[[], str]) -> None:
        self._base = base.rstrip("/")
        self._read_secret = read_secret
        self._lock = threading.Lock()
        self._secrets: tuple[bytes, ...] = ()  # the newest first
        self._read_at = 0.0

    @classmethod
    def from_settings(cls, settings: Settings, read_secret: Callable[[], str]) -> Links | None:
        """None: viewers get URLs of the storage."""
        if settings.content != "proxy" or settings.public_url is None:
            return None
        return cls(settings.public_url, read_secret)

    def urls(self, job_id: str, expires_in: int, until: datetime | None) -> dict[str, Any]:
        """`VideoResult`'s URLs and `expires_at` of a job.

        Args:
            until: when the clip is deleted; no link is promised for longer.
        """
        end = int(time.time()) + expires_in
        if expires_in >= 10 * STEP:
            end -= end % STEP
        if until is not None:
            end = min(end, int(until.timestamp()))
        made: dict[str, Any] = {
            field: self._url(job_id, variant, end) for variant, field in FIELDS.items()
        }
        return {**made, "expires_at": datetime.fromtimestamp(end, UTC)}

    def valid(self, job_id: str, variant: Variant, end: int, signature: str) -> bool:
        """Whether a link of these parts was made here and has not ended."""
        if end < time.time():
            return False
        right = (_sign(secret, job_id, variant, end) for secret in self._known())
        given = signature.encode("utf-8", "replace")
        return any(hmac.compare_digest(one.encode(), given) for one in right)

    def _url(self, job_id: str, variant: Variant, end: int) -> str:
        signature = _sign(self._known()[0], job_id, variant, end)
        which = {} if variant == "video" else {"variant": variant}
        query = urlencode({**which, "expires": end, "signature": signature})
        return f"{self._base}/v1/videos/{job_id}/content?{query}"

    def _known(self) -> tuple[bytes, ...]:
        with self._lock:
            if time.monotonic() - self._read_at > READ_AGAIN or not self._secrets:
                try:
                    newest = self._read_secret().encode()
                except QueueUnavailable:
                    if not self._secrets:
                        raise
                    return self._secrets
                older = [secret for secret in self._secrets[:1] if secret != newest]
                self._secrets, self._read_at = (newest, *older), time.monotonic()
            return self._secrets


def _sign(secret: bytes, job_id: str, variant: str, end: int) -> str:
    digest = hmac.digest(secret, f"{job_id}\n{variant}\n{end}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
