"""The ways a `Client` reaches the queue, behind one interface. Redis is here, a gateway is
`HttpTransport`; the one in memory, for users' own tests, `ltxq.testing.MemoryTransport`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from ltxq.celery import forget_outcome, make_app, report_outcome
from ltxq.celery.flower import queued_event
from ltxq.errors import LtxqError, QueueUnavailable
from ltxq.job import FINAL_STATES, Job, JobPage, JobState, Order, VideoRequest
from ltxq.ledger import Ledger, Subscription
from ltxq.settings import Settings
from ltxq.storage import Storage

log = logging.getLogger("ltxq")

LOOK_SECONDS = 2.0  # between looks at a job whose changes may go unheard
RESUBSCRIBE_SECONDS = 1.0  # between attempts to hear of changes again while Redis is away


class Changes(Protocol):
    """Hears of a job's changes from the moment it is made."""

    @property
    def look_after(self) -> float:
        """Seconds after which to look at the job although nothing was heard."""

    def wait(self, timeout: float) -> bool:
        """True as soon as the job may have changed, False after `timeout` seconds without."""


class Transport(Protocol):
    """What a `Client` needs of a queue. Errors are those of `ltxq.errors`."""

    def submit(
        self,
        job_id: str,
        request: VideoRequest,
        *,
        digest: str,
        idempotency_key: str | None,
        retry_of: str | None,
        resent: bool | None,
        owner: str | None,
    ) -> Job:
        """Queue a job, its model and seed settled here. Returns the job it is, which is an earlier
        one where the idempotency key was used before, or the request was `resent`.
        """

    def get(self, job_id: str) -> Job:
        """The job now, its URLs signed afresh where that is possible."""

    def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        """Those of the jobs that are there and can be read."""

    def list(
        self,
        *,
        state: JobState | None,
        limit: int,
        after: str | None,
        order: Order,
        owner: str | None,
    ) -> JobPage:
        """Jobs of an owner, or everybody's."""

    def cancel(self, job_id: str) -> None:
        """Cancel if queued, ask to stop if running, nothing if final."""

    def delete(self, job_id: str) -> None:
        """Remove a finished job, record and objects."""

    def models(self) -> dict[str, int]:
        """The models served, and how many workers each has now."""

    def check_storage(self) -> None:
        """Raise what is wrong with the storage, if there is one here."""

    def changes(self, job_id: str) -> AbstractContextManager[Changes]:
        """Hear of the job's changes."""

    def close(self) -> None:
        """Close connections."""


class RedisTransport:
    """Straight to Redis."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._ledger = Ledger.from_settings(settings)
        self._app = make_app(settings)
        # Without a bucket the URLs stay as the worker signed them.
        self._storage = Storage.from_settings(settings) if settings.s3_bucket else None

    def submit(
        self,
        job_id: str,
        request: VideoRequest,
        *,
        digest: str,
        idempotency_key: str | None = None,
        retry_of: str | None = None,
        resent: bool | None = None,
        owner: str | None = None,
    ) -> Job:
        request = request.settled(self.settings.default_model)
        job = self._ledger.submit(
            job_id,
            request,
            digest=digest,
            idempotency_key=idempotency_key,
            retry_of=retry_of,
            resent=resent,
            owner=owner,
            event=queued_event(self._app, job_id, request),
        )
        return job if job.id == job_id else self._signed(job)

    def get(self, job_id: str) -> Job:
        return self._signed(self._ledger.get(job_id))

    def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        jobs = self._ledger.get_many(job_ids)
        return {job_id: self._signed(job) for job_id, job in jobs.items()}

    def list(
        self,
        *,
        state: JobState | None = None,
        limit: int = 20,
        after: str | None = None,
        order: Order = "desc",
        owner: str | None = None,
    ) -> JobPage:
        page = self._ledger.list(state=state, limit=limit, after=after, order=order, owner=owner)
        return page.model_copy(update={"jobs": tuple(self._signed(job) for job in page.jobs)})

    def cancel(self, job_id: str) -> None:
        if self._ledger.cancel(job_id) in FINAL_STATES:
            report_outcome(self._app, self._ledger, job_id)

    def delete(self, job_id: str) -> None:
        claims = self._ledger.delete(job_id)
        forget_outcome(self._app, job_id)
        try:
            if self._storage:
                self._storage.delete_clips(claims)
                self._ledger.garbage_deleted(claims)
        except LtxqError as exc:
            log.warning("%s is deleted; a supervisor removes its clip: %s", job_id, exc)

    def models(self) -> dict[str, int]:
        return {self.settings.default_model: 0, **self._ledger.served()}

    def check_storage(self) -> None:
        if self._storage:
            self._storage.check()

    @contextmanager
    def changes(self, job_id: str) -> Iterator[Changes]:
        with self._ledger.changes(job_id) as subscription:
            yield _Subscribed(subscription)

    def all_changes(self) -> AbstractContextManager[Subscription]:
        """Hear of every job's changes: `next` gives its id. For who follows many, as a gateway."""
        return self._ledger.all_changes()

    def close(self) -> None:
        self._ledger.close()
        self._app.close()

    def _signed(self, job: Job) -> Job:
        if job.result is None or self._storage is None:
            return job
        urls = self._storage.clip_urls(job.result.key, job.request.expires_in)
        return job.model_copy(update={"result": job.result.model_copy(update=urls)})


class _Subscribed:
    """Redis's channel of one job; while Redis is away, time alone."""

    look_after = LOOK_SECONDS

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def wait(self, timeout: float) -> bool:
        try:
            return self._subscription.next(timeout) is not None
        except QueueUnavailable:
            time.sleep(min(timeout, RESUBSCRIBE_SECONDS))
            return True
