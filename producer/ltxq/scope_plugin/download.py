"""Downloads a clip from its presigned URL into memory, and checks its size and SHA-256."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx2

from ltxq.errors import StorageRefused, StorageUnavailable
from ltxq.job import VideoResult
from ltxq.proxies import check_proxies

MAX_BYTES = 128 * 1024**2  # of one clip; 20 seconds at 2048×2048 may need 100 MB
CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0  # without a byte
TOTAL_SECONDS = 120.0
RETRIES = "The plugin tries again."
_HERE = ("all://127.0.0.1", "all://localhost", "all://[::1]")  # reached without a proxy


def download_client() -> httpx2.Client:
    """An HTTP client for `download`.

    Raises:
        ConfigurationError: a proxy of the environment cannot be used.
    """
    check_proxies()
    logging.getLogger("httpx2").addFilter(_remove_query)
    return httpx2.Client(
        timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        follow_redirects=True,
        max_redirects=3,
        mounts=dict.fromkeys(_HERE),
    )


def download(
    http: httpx2.Client, result: VideoResult, is_requested: Callable[[], bool]
) -> bytes | None:
    """The MP4. None: `is_requested` turned false during the download.

    Raises:
        StorageRefused: the clip is too large.
        StorageUnavailable: the download failed, or its bytes are wrong; a fresh URL may help.
    """
    if result.size > MAX_BYTES:
        raise StorageRefused(
            f"The clip has {result.size:,} bytes, more than {MAX_BYTES:,}.",
            hint="Request fewer frames or a smaller size.",
        )
    data, deadline = bytearray(), time.monotonic() + TOTAL_SECONDS
    host = urlsplit(result.url).hostname  # the URL itself is a secret: it is presigned
    try:
        with http.stream("GET", result.url, headers={"Accept-Encoding": "identity"}) as response:
            if response.status_code != 200:
                raise StorageUnavailable(
                    f"{host} answered the clip's download with HTTP {response.status_code}.",
                    hint=RETRIES,
                )
            for part in response.iter_raw(64 * 1024):
                data += part
                if not is_requested():
                    return None
                if len(data) > result.size or time.monotonic() > deadline:
                    break
    except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
        raise StorageUnavailable(
            f"The clip's download from {host} failed ({type(exc).__name__}).", hint=RETRIES
        ) from None
    if len(data) != result.size:
        raise StorageUnavailable(
            f"{host} sent {len(data):,} bytes instead of the clip's {result.size:,}.", hint=RETRIES
        )
    if hashlib.sha256(data).hexdigest() != result.sha256:
        raise StorageUnavailable(f"The clip from {host} does not match its SHA-256.", hint=RETRIES)
    return bytes(data)


def _remove_query(record: logging.LogRecord) -> bool:
    """httpx2 logs every URL. The query of a presigned URL gives access to the clip."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            arg.copy_with(query=None) if isinstance(arg, httpx2.URL) else arg for arg in record.args
        )
    return True
