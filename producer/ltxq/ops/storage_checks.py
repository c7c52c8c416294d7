"""What `ltxq doctor` checks of the storage: rights, viewers' URLs, the clock, undeleted clips."""

from __future__ import annotations

import secrets
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ltxq.errors import LtxqError, StorageRefused
from ltxq.ops.findings import Finding, ok, problem, skipped, warning
from ltxq.proxies import trust_env
from ltxq.settings import Settings

if TYPE_CHECKING:
    from ltxq.storage import Storage

FETCH_TIMEOUT = 10.0  # seconds
SKEW_ALLOWED, SKEW_REFUSED = 60.0, 15 * 60.0  # seconds; from the second S3 refuses signatures


def check_storage(settings: Settings) -> Iterator[Finding]:
    """Can ltxq write, list and delete objects, and can a viewer fetch a signed URL?"""
    from ltxq.storage import Storage
    from ltxq.storage.operations import CHECKS

    storage = Storage.from_settings(settings)
    probe = storage.check("gateway")
    yield ok(f"Writing, reading and deleting work in {storage.bucket!r}.")
    if probe.keeps_versions:
        yield ok(
            "The bucket has versions: it keeps what ltxq deletes until a lifecycle rule removes "
            "noncurrent versions."
        )
    yield from _worker_calls(storage)
    if storage.credentials_end_unknown:
        yield warning(
            "The session credentials do not say when they end: URLs are signed for 15 minutes.",
            "Set AWS_CREDENTIAL_EXPIRATION to their end, as 2026-01-31T12:00:00Z.",
        )
    if settings.content == "proxy" and settings.public_url is None:
        yield ok(
            "LTXQ_CONTENT=proxy without LTXQ_PUBLIC_URL: a gateway on this machine gives links to "
            "it. Workers and clients over Redis give the storage's URLs."
        )
    key = f"{storage.prefix}{CHECKS}{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x")
        file.write_bytes(b"ltxq doctor")
        storage.put(key, file, "text/plain")
    try:
        inner = settings.content == "proxy"  # viewers do not reach the storage themselves
        # With a name, as a clip's URL has.
        url, _ = storage.url(key, 60, name="ltxq-doctor.txt")
        if inner:
            url = storage.signer.inner_url(key, 60)
        yield from _fetched(url, storage.trust)
    finally:
        storage.delete([key])


def _worker_calls(storage: Storage) -> Iterator[Finding]:
    """Is everything allowed that a worker and its supervisor do?"""
    try:
        storage.check("worker")
    except StorageRefused as exc:
        if find_spec("ltxq_worker"):
            raise
        yield ok(f"Enough for a gateway. A worker would need more: {exc.message}")
        return
    yield ok("Everything that a worker and its supervisor do there is allowed.")


def check_undeleted(settings: Settings) -> Iterator[Finding]:
    """Are there clips that the storage refuses to delete?"""
    from ltxq.ledger import Ledger

    with closing(Ledger(settings)) as ledger:
        try:
            count, first = ledger.sweeper.undeleted()
        except LtxqError:
            yield skipped("Redis, which counts undeleted clips, cannot be reached.")
            return
    if count:
        yield warning(
            f"The storage refuses to delete files of {count} clips, as {', '.join(first)}.",
            f"Delete them under {settings.s3_prefix} with other credentials, or lift the "
            "retention or lock. Supervisors try again.",
        )


def _fetched(url: str, trust: ssl.SSLContext | bool) -> Iterator[Finding]:
    """Fetch a URL as a viewer's browser would."""
    import httpx2

    host = urlsplit(url).netloc
    try:
        answer = httpx2.get(url, timeout=FETCH_TIMEOUT, verify=trust, trust_env=trust_env(url))
    except httpx2.HTTPError as exc:
        yield warning(
            f"A signed URL cannot be fetched from here: {host} does not answer "
            f"({type(exc).__name__}).",
            "If viewers cannot either, correct LTXQ_S3_PUBLIC_ENDPOINT or LTXQ_S3_PUBLIC_BASE_URL.",
        )
        return
    if answer.content != b"ltxq doctor":
        yield problem(
            f"A signed URL answers HTTP {answer.status_code} at {host}: viewers get no clip.",
            "Check LTXQ_S3_PUBLIC_ENDPOINT (signed for another host?), "
            "LTXQ_S3_PUBLIC_BASE_URL (is the bucket public?) and the clocks.",
        )
    else:
        yield ok(f"A signed URL can be fetched from {host}.")
    if date := answer.headers.get("date"):
        yield _skew((datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds())


def _skew(seconds: float) -> Finding:
    if abs(seconds) < SKEW_ALLOWED:
        return ok(f"It agrees with the storage's within {SKEW_ALLOWED:.0f} s.", about="Clock")
    return Finding(
        "problem" if abs(seconds) > SKEW_REFUSED else "warning",
        f"This machine's clock is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} "
        "the storage's. Over 15 minutes, S3 refuses what it signs.",
        "Turn on time synchronisation: timedatectl set-ntp true.",
        about="Clock",
    )
