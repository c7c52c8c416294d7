"""`Transport`, the interface through which a `Client` reaches the queue, and `RedisTransport`.
The others: `HttpTransport` for a gateway, `ltxq.testing.MemoryTransport` for users' tests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol, TypedDict, Unpack

from redis import ConnectionPool

from ltxq.celery import forget_outcome, make_app, report_outcome, report_refusal
from ltxq.celery.flower import queued_event
from ltxq.download_name import download_name
from ltxq.errors import (
    ClipKept,
    LtxqError,
    QueueUnavailable,
    StorageRefused,
    StorageUnavailable,
)
from ltxq.job import FINAL_STATES, Job, JobPage, JobState, Order, VideoRequest, VideoResult
from ltxq.ledger import CANCELLED, Ledger, Role, Subscription
from ltxq.limits import ServedModel
from ltxq.links import Links
from ltxq.reasons import which_are_served
from ltxq.settings import Settings
from ltxq.storage import Storage

log = logging.getLogger("ltxq")

LOOK_SECONDS = 2.0  # between readings of a watched job, since messages may be lost
RESUBSCRIBE_SECONDS = 1.0  # between attempts to subscribe while Redis cannot be reached


class Changes(Protocol):
    """A subscription to one job's changes."""

    @property
    def look_after(self) -> float:
        """Seconds after which to read the job although no change was reported."""

    def wait(self, timeout: float) -> bool:
        """True as soon as the job may have changed; False after `timeout` seconds."""


class Submission(TypedDict):
    """What a submission has beside the request and the new job's id."""

    digest: str  # of the request as the caller gave it
    idempotency_key: str
    retry_of: str | None
    resent: bool | None
    owner: str | None


class Selection(TypedDict):
    """Which jobs `list` returns."""

    state: JobState | None
    limit: int
    after: str | None
    order: Order
    owner: str | None  # None: all jobs


class Transport(Protocol):
    """What a `Client` calls. Errors are those of `ltxq.errors`."""

    def submit(self, job_id: str, request: VideoRequest, **about: Unpack[Submission]) -> Job:
        """Choose the model and the seed, and queue the job. Returns the earlier job instead if the
        idempotency key was used before, or if the request was `resent`.
        """

    def get(self, job_id: str) -> Job:
        """The job now; its URLs are newly signed if the bucket is known here."""

    def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        """The jobs that exist and are readable, by id."""

    def list(self, **which: Unpack[Selection]) -> JobPage:
        """Jobs in order of submission."""

    def cancel(self, job_id: str) -> None:
        """Cancel a queued job; ask a running job to stop; leave a final job."""

    def delete(self, job_id: str) -> None:
        """Remove a job: its record and its files. An unfinished job is cancelled.

        Raises:
            ClipKept: the record is gone, and the storage refuses to delete a file.
        """

    def models(self) -> dict[str, ServedModel]:
        """The models served, by name."""

    def check_storage(self) -> None:
        """Raise the storage's error, if the bucket is known here."""

    def changes(self, job_id: str) -> AbstractContextManager[Changes]:
        """Subscribe to the job's changes."""

    def close(self) -> None:
        """Close the connections."""


class RedisTransport:
    """The queue in Redis."""

    def __init__(self, settings: Settings, role: Role = "client") -> None:
        self.settings = settings
        self._ledger = Ledger(settings, role)
        self._app = make_app(settings)
        self.links = Links.from_settings(settings, self._ledger.link_secret)
        # Without links or a bucket the URLs stay as the worker made them.
        self.storage = Storage.from_settings(settings) if settings.s3_bucket else None
        self._unsigned = False  # whether the log says that URLs cannot be signed
        self._looked_up: set[str] = set()  # models without a ready worker, which are looked up once

    def submit(self, job_id: str, request: VideoRequest, **about: Unpack[Submission]) -> Job:
        request = request.settled(self.settings.default_model)
        event = queued_event(self._app, job_id, request)
        job = self._ledger.jobs.submit(job_id, request, event=event, **about)
        if job.ready_workers == 0:
            self._warn_of_unknown_model(job)
        return job if job.id == job_id else self._signed(job)

    def get(self, job_id: str) -> Job:
        return self._signed(self._ledger.jobs.get(job_id))

    def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        jobs = self._ledger.jobs.get_many(job_ids)
        return {job_id: self._signed(job) for job_id, job in jobs.items()}

    def list(self, **which: Unpack[Selection]) -> JobPage:
        page = self._ledger.jobs.list(**which)
        return page.model_copy(update={"jobs": tuple(self._signed(job) for job in page.jobs)})

    def cancel(self, job_id: str) -> None:
        if self._ledger.jobs.cancel(job_id) in FINAL_STATES:
            report_outcome(self._app, self._ledger, job_id)

    def delete(self, job_id: str) -> None:
        deleted = self._ledger.jobs.delete(job_id)
        if deleted.unfinished:  # a Celery client that waits for it must not wait for ever
            report_refusal(self._app, job_id, CANCELLED)
        else:
            forget_outcome(self._app, job_id)
        if self.storage is None:  # a supervisor deletes the clip
            return
        try:
            refused = self.storage.delete_clips(deleted.claims)
            gone = [claim for claim in deleted.claims if claim not in refused]
            self._ledger.sweeper.garbage_refused(list(refused))
            self._ledger.sweeper.garbage_deleted(gone)
        except StorageRefused as exc:  # the whole bucket
            refused = {"": exc}
        except (StorageUnavailable, QueueUnavailable) as exc:
            log.warning(
                "%s is deleted, but its clip is not; a supervisor deletes it later: %s", job_id, exc
            )

            return
        for reason in refused.values():
            raise ClipKept(
                f"{job_id} is deleted, but not its clip. {reason.message}",
                hint=f"{reason.hint} Supervisors try again for days; `ltxq doctor` counts such "
                "clips.".lstrip(),
            )

    def models(self) -> dict[str, ServedModel]:
        default = {self.settings.default_model: ServedModel(ready_workers=0)}
        return default | self._ledger.fleet.served()

    @property
    def connection_pool(self) -> ConnectionPool:
        """The pool of connections to Redis, for counters beside the queue."""
        return self._ledger.connection_pool

    def check_queue(self) -> None:
        """Raise if Redis does not permit what this role does, or would lose jobs."""
        self._ledger.check()

    def check_storage(self) -> None:
        if self.storage:
            self.storage.check("gateway")

    @contextmanager
    def changes(self, job_id: str) -> Iterator[Changes]:
        with self._ledger.changes.of(job_id) as subscription:
            yield _Subscribed(subscription)

    def all_changes(self) -> AbstractContextManager[Subscription]:
        """Subscribe to all jobs' changes; `next` returns a job's id. A gateway needs only one."""
        return self._ledger.changes.of_all()

    def close(self) -> None:
        self._ledger.close()
        self._app.close()

    def _warn_of_unknown_model(self, job: Job) -> None:
        model = job.request.model or ""
        if model in self._looked_up:
            return
        with suppress(LtxqError):  # the job is queued: this must not fail it
            served = self.models()
            self._looked_up.add(model)
            if model not in served:
                log.warning(
                    "No worker has served the model %s within a week. Job %s waits for one. %s",
                    *(model, job.id, which_are_served(model, served)),
                )

    def _signed(self, job: Job) -> Job:
        if job.result is None:
            return job
        expires_in, until = job.request.expires_in, job.kept_until(self.settings.retention)
        if self.links is not None:
            return _with_urls(job, job.result, self.links.urls(job.id, expires_in, until))
        if self.storage is None:
            return job
        name = download_name(job.request.prompt, job.result.seed)
        try:
            urls = self.storage.clip_urls(job.result.key, expires_in, name, until)
        except (StorageRefused, StorageUnavailable) as exc:
            # The worker's URLs stay valid, and the job can be read without new ones.
            if not self._unsigned:
                self._unsigned = True
                log.warning("Clips keep the URLs that their workers signed: %s", exc)
            return job
        self._unsigned = False
        return _with_urls(job, job.result, urls)


def _with_urls(job: Job, result: VideoResult, urls: dict[str, Any]) -> Job:
    return job.model_copy(update={"result": result.model_copy(update=urls)})


class _Subscribed:
    """Redis's channel of one job. While Redis cannot be reached, a pause takes its place."""

    look_after = LOOK_SECONDS

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def wait(self, timeout: float) -> bool:
        try:
            return self._subscription.next(timeout) is not None
        except QueueUnavailable:
            time.sleep(min(timeout, RESUBSCRIBE_SECONDS))
            return True
