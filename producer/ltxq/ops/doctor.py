"""`ltxq doctor`: checks of Redis, the storage and this machine, and what to do about problems.

A check yields findings about one thing. An error in a check does not stop the others.
`ltxq_worker.doctor` checks what only a worker needs: GPU, torch, models.
"""

from __future__ import annotations

import platform
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ltxq.errors import LtxqError, StorageRefused
from ltxq.ops.findings import Check, Finding, ok, problem, skipped, warning
from ltxq.ops.redis_checks import check_redis
from ltxq.settings import Settings

if TYPE_CHECKING:
    from ltxq.storage import Storage

FETCH_TIMEOUT = 10.0  # seconds
SKEW_ALLOWED, SKEW_REFUSED = 60.0, 15 * 60.0  # seconds; from the second S3 refuses signatures


def examine(settings: Settings, checks: tuple[tuple[str, Check], ...]) -> Iterator[Finding]:
    """The findings of each (about, check), one after the other. Every error becomes a problem."""
    for about, check in checks:
        try:
            for finding in check(settings):
                yield replace(finding, about=finding.about or about)
        except LtxqError as exc:
            yield problem(exc.message, exc.hint, about)
        except Exception as exc:  # noqa: BLE001
            yield problem(f"The check itself failed: {type(exc).__name__}: {exc}.", about=about)


def base_checks(settings: Settings) -> tuple[tuple[str, Check], ...]:
    """The checks of this machine and of the servers that the settings name."""
    if settings.is_gateway:
        return (("Python", check_python), ("Gateway", check_gateway))
    return (
        ("Python", check_python),
        ("Redis", check_redis),
        ("S3 storage", check_storage),
        ("S3 storage", check_undeleted),
        ("Webhooks", check_webhooks),
        ("Workers", check_workers),
    )


def check_python(_: Settings) -> Iterator[Finding]:
    """Name the versions."""
    yield ok(f"ltxq {version('ltxq')} on Python {platform.python_version()}, {sys.platform}.")


def check_gateway(settings: Settings) -> Iterator[Finding]:
    """A gateway in place of Redis: does it answer, does it know the key?"""
    from ltxq.client import Client

    with Client(settings=settings) as client:
        models = client.models()
    ready = sum(model.ready_workers for model in models.values())
    yield ok(f"The gateway answers; models: {', '.join(models)}.")
    if not ready:
        yield warning("No worker is ready: jobs wait.")


def check_storage(settings: Settings) -> Iterator[Finding]:
    """Can ltxq write, list and delete objects, and can a viewer fetch a signed URL?"""
    from ltxq.storage import Storage
    from ltxq.storage.operations import CHECKS

    storage = Storage.from_settings(settings)
    storage.check("gateway")
    yield ok(f"Writing, reading and deleting work in {storage.bucket!r}.")
    yield from _worker_calls(storage)
    if storage.credentials_end_unknown:
        yield warning(
            "The session credentials do not say when they end: URLs are signed for 15 minutes.",
            "Set AWS_CREDENTIAL_EXPIRATION to their end, as 2026-01-31T12:00:00Z.",
        )
    key = f"{storage.prefix}{CHECKS}{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x")
        file.write_bytes(b"ltxq doctor")
        storage.put(key, file, "text/plain")
    try:
        yield from _fetched(storage.url(key, 60)[0])
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


def _fetched(url: str) -> Iterator[Finding]:
    """Fetch a URL as a viewer's browser would."""
    import httpx2

    host = urlsplit(url).netloc
    try:
        answer = httpx2.get(url, timeout=FETCH_TIMEOUT)
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


def check_webhooks(settings: Settings) -> Iterator[Finding]:
    """Is there a secret, if webhooks are used?"""
    if settings.webhook_secret is not None:
        yield ok("They are signed with LTXQ_WEBHOOK_SECRET.")
        return
    yield ok(
        "No LTXQ_WEBHOOK_SECRET: webhooks wait. They need one only if jobs have a webhook_url."
    )


def check_workers(settings: Settings) -> Iterator[Finding]:
    """Is a worker ready for the jobs that wait?"""
    from ltxq.ops.operator import Operator

    try:
        with Operator(settings) as operator:
            queues, _ = operator.queues()
    except LtxqError:
        yield skipped("Redis, which knows the workers, cannot be reached.")
        return
    for queue in queues:
        if queue.workers:
            yield ok(f"{queue.model}: {queue.workers} ready.")
        elif queue.depth:
            yield warning(
                f"{queue.model}: {queue.depth} queued, and no worker is ready.",
                f"Start one: ltxq worker --model {queue.model}",
            )
    if not any(queue.workers or queue.depth for queue in queues):
        yield ok("No worker is ready, and no job waits.")


def no_worker(_: Settings) -> Iterator[Finding]:
    """The finding in place of the worker's checks."""
    yield skipped("The worker is not installed here, so GPUs are not checked.")
