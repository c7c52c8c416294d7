"""Presigned URLs of objects, and the URLs of a clip's files, kept for a while.

A URL ends with the credentials that signed it, and with its object, so none is promised for longer.
"""

from __future__ import annotations

import math
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote

from ltxq.download_name import content_disposition
from ltxq.errors import InvalidRequest, StorageUnavailable
from ltxq.job import MAX_URL_SECONDS
from ltxq.storage.client import Calls

SIGNED_FOR = 60.0  # seconds for which a clip's signed URLs are reused
SIGNED_MOST = 10_000  # clips whose URLs are kept for that; about 4 kB each


class ClipKeys(NamedTuple):
    """The keys of the files that one claim of a job made. Each claim has its own."""

    clip: str
    poster: str
    spritesheet: str
    sidecar: str


def keys_in(folder: str) -> ClipKeys:
    """The keys of a claim's files."""
    names = ("clip.mp4", "poster.jpg", "spritesheet.jpg", "clip.json")
    return ClipKeys(*(f"{folder}/{name}" for name in names))


class Signer:
    """Signs URLs of one bucket. Thread-safe.

    Args:
        public_base_url: prefix of URLs that need no signature; None: URLs are signed.
    """

    def __init__(self, calls: Calls, public_base_url: str | None) -> None:
        self._calls = calls
        self._public_base_url = public_base_url
        self._lock = threading.Lock()
        # URLs by clip and validity, with the moment of signing and for how long they are reused.
        self._signed: dict[tuple[str, int], tuple[float, float, dict[str, Any]]] = {}

    def url(
        self,
        key: str,
        expires_in: int,
        *,
        name: str | None = None,
        method: str = "get_object",
        until: datetime | None = None,
    ) -> tuple[str, datetime | None]:
        """A URL from which anyone can fetch the object, and when it expires (None: with it).

        Args:
            until: when the object is deleted; no URL is promised for longer.
            name: under which a browser saves the file.
            method: `head_object` for a HEAD request, whose signature differs.
        """
        if self._public_base_url is not None:
            return f"{self._public_base_url.rstrip('/')}/{quote(key)}", until
        return self._sign(self._calls.signer, key, expires_in, name, method, until)

    def inner_url(self, key: str, expires_in: int, *, method: str = "get_object") -> str:
        """A URL for this machine, which may reach the storage by another name than viewers."""
        return self._sign(self._calls.client, key, expires_in, None, method)[0]

    def _sign(
        self,
        signer: Any,
        key: str,
        expires_in: int,
        name: str | None,
        method: str,
        until: datetime | None = None,
    ) -> tuple[str, datetime]:
        if not 1 <= expires_in <= MAX_URL_SECONDS:
            raise InvalidRequest(
                f"A URL is valid for 1 to {MAX_URL_SECONDS} seconds (7 days), not {expires_in}."
            )
        wanted = {"Bucket": self._calls.place.bucket, "Key": key}
        if name is not None:
            wanted["ResponseContentDisposition"] = content_disposition(name)
        with self._calls.translated():
            end = self._calls.credentials.end()
            # Signed to the whole second, so the URL does not expire before the returned time.
            signed_at = datetime.now(UTC).replace(microsecond=0)
            if until is not None:
                expires_in = min(expires_in, max(1, _seconds(until, signed_at)))
            if end is not None:
                expires_in = min(expires_in, _seconds(end, signed_at))
            if expires_in < 1:
                raise StorageUnavailable(
                    f"The credentials for the {self._calls.place} end now.",
                    hint="Check that they are renewed in time.",
                )
            url = signer.generate_presigned_url(method, Params=wanted, ExpiresIn=expires_in)
        return str(url), signed_at + timedelta(seconds=expires_in)

    def clip_urls(
        self, clip_key: str, expires_in: int, name: str | None, until: datetime | None
    ) -> dict[str, Any]:
        """As `Storage.clip_urls`."""
        wanted, now = (clip_key, expires_in), time.monotonic()
        signed_at, reused, urls = self._signed.get(wanted, (-math.inf, 0.0, {}))
        if now - signed_at > reused:
            urls = self._sign_all(keys_in(clip_key.rpartition("/")[0]), expires_in, name, until)
            reused = min(SIGNED_FOR, _seconds_left(urls["expires_at"], expires_in) / 10)
            with self._lock:
                while len(self._signed) >= SIGNED_MOST:
                    del self._signed[next(iter(self._signed))]
                self._signed[wanted] = now, reused, urls
        return dict(urls)

    def _sign_all(
        self, keys: ClipKeys, expires_in: int, name: str | None, until: datetime | None
    ) -> dict[str, Any]:
        url, expires_at = self.url(keys.clip, expires_in, name=name, until=until)
        others = [self.url(key, expires_in, until=until) for key in keys[1:]]
        # Credentials may be renewed between two signatures: the first to end counts.
        ends = [end for end in (expires_at, *(end for _, end in others)) if end is not None]
        return {
            "url": url,
            "poster_url": others[0][0],
            "spritesheet_url": others[1][0],
            "sidecar_url": others[2][0],
            "expires_at": min(ends, default=None),
        }


def _seconds(end: datetime, start: datetime) -> int:
    return math.floor((end - start).total_seconds())


def _seconds_left(end: datetime | None, expires_in: int) -> float:
    return expires_in if end is None else (end - datetime.now(UTC)).total_seconds()
