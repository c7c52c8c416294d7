"""A clip from its presigned URL into memory: whole and as the ledger knows it, or not at all."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx2

from ltxq.errors import StorageRefused, StorageUnavailable
from ltxq.job import VideoResult

MOST_BYTES = 128 * 1024**2  # of one clip; 20 seconds at 2048×2048 may need 100 MB
CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0  # without a byte
TOTAL_SECONDS = 120.0


def downloader() -> httpx2.Client:
    """What `download` gets clips with."""
    logging.getLogger("httpx2").addFilter(_without_query)
    return httpx2.Client(
        timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        follow_redirects=True,
        max_redirects=3,
    )


def download(http: httpx2.Client, result: VideoResult, wanted: Callable[[], bool]) -> bytes | None:
    """The MP4; None: while it came, it was `wanted` no more.

    Raises:
        StorageRefused: it is too large.
        StorageUnavailable: it did not come, or not as it should be; a fresh URL may help.
    """
    if result.size > MOST_BYTES:
        raise StorageRefused(f"The clip has {result.size:,} bytes, more than {MOST_BYTES:,}.")
    data, end = bytearray(), time.monotonic() + TOTAL_SECONDS
    host = urlsplit(result.url).hostname  # a presigned URL is a secret while it lives
    try:
        with http.stream("GET", result.url, headers={"Accept-Encoding": "identity"}) as answer:
            if answer.status_code != 200:
                raise StorageUnavailable(f"{host} answered {answer.status_code} for the clip.")
            for part in answer.iter_raw(64 * 1024):
                data += part
                if not wanted():
                    return None
                if len(data) > result.size or time.monotonic() > end:
                    break
    except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
        raise StorageUnavailable(f"{host} did not give the clip ({type(exc).__name__}).") from None
    if len(data) != result.size or hashlib.sha256(data).hexdigest() != result.sha256:
        raise StorageUnavailable(
            f"{host} gave {len(data):,} bytes in place of the clip's {result.size:,}."
        )
    return bytes(data)


def _without_query(record: logging.LogRecord) -> bool:
    """httpx2 logs every URL, and who has a presigned one's query has the clip."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            arg.copy_with(query=None) if isinstance(arg, httpx2.URL) else arg for arg in record.args
        )
    return True
