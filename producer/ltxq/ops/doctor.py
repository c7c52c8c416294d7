"""`ltxq doctor`: checks of Redis, the storage and this machine, and what to do about problems.

A check yields findings about one thing. An error in a check does not stop the others.
`ltxq_worker.doctor` checks what only a worker needs: GPU, torch, models.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version

from ltxq.errors import LtxqError
from ltxq.ops.findings import Check, Finding, ok, problem, skipped, warning
from ltxq.ops.redis_checks import check_redis
from ltxq.ops.storage_checks import check_storage, check_undeleted
from ltxq.settings import Settings


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
