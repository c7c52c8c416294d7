"""The job records in Redis: the truth about every job. Each step is atomic (script/), on
Redis's clock, and safe to repeat. A step that queues a job sends the message that wakes a worker;
storing Celery's results is left to others.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import MappingProxyType

import redis
from pydantic import BaseModel, ValidationError

from ltxq.errors import (
    IdempotencyConflict,
    JobError,
    JobNotFinished,
    QueueFull,
)
from ltxq.job import (
    CONTRACT,
    Job,
    JobState,
    Progress,
    VideoRequest,
    VideoResult,
)
from ltxq.ledger.connection import PATIENCE, Subscription, connect, patiently
from ltxq.ledger.fleet import FleetRecords
from ltxq.ledger.reader import READ_MOST, not_found
from ltxq.ledger.records import (
    BANDS,
    Claim,
    Returned,
    RunningJob,
    Standing,
    Swept,
    WebhookAttempt,
    cost_of,
    queue_name,
    read_queue_position,
    read_returned,
    read_time,
    read_timeout,
    unreadable,
)
from ltxq.settings import Settings

log = logging.getLogger("ltxq")

GRACE = 3.0  # seconds after a job's end in which its worker or client stores Celery's result
GARBAGE_MOST = 100  # claims that one supervisor takes at once
GARBAGE_LEASE = 600.0  # seconds it has to delete their objects
SWEEP_MOST = 1000  # jobs of each kind one sweep deals with; the next goes on

CANCELLED = JobError(code="cancelled", message="The job was cancelled.")
EXPIRED = JobError(
    code="expired",
    message="No worker was free within `start_within`.",
    hint="Allow more time, or add workers.",
)
WORKER_LOST = JobError(
    code="worker_lost",
    message="Every worker that ran this job died while it held the GPU.",
    hint="See the worker's log; `ltxq retry` runs it again.",
)
TIMED_OUT = JobError(
    code="timed_out",
    message="The job hung past its time limit and its worker was replaced.",
    hint="Allow more with `timeout`, or ask for fewer frames or a smaller size.",
)


class Ledger(FleetRecords):
    """The job records. Thread-safe; every call ends within about `patience` + 2 seconds.

    Raises (every method): QueueUnavailable if Redis is away, loading, full or read-only for
    longer than `patience`; ConfigurationError if it refuses the password.
    """

    def __init__(
        self,
        connection: redis.Redis,
        *,
        retention: float = Settings.model_fields["retention"].default,
        lease: float = Settings.model_fields["lease"].default,
        max_lost: int = Settings.model_fields["max_lost"].default,
        max_queued: int = Settings.model_fields["max_queued"].default,
        max_queued_per_key: int = Settings.model_fields["max_queued_per_key"].default,
        weights: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """`weights`: by owner, the share of the GPUs; 1 where there is none."""
        super().__init__(connection)
        self._retention = int(retention * 1000)
        self._lease = int(lease * 1000)
        self._max_lost = max_lost
        self._max_queued = max_queued
        self._max_owned = max_queued_per_key
        self._weights = weights

    @classmethod
    def from_settings(cls, settings: Settings) -> Ledger:
        """Connects on first use, not here."""
        return cls(
            connect(settings),
            retention=settings.retention,
            lease=settings.lease,
            max_lost=settings.max_lost,
            max_queued=settings.max_queued,
            max_queued_per_key=settings.max_queued_per_key,
            weights=settings.weights,
        )

    # --- what a client asks ---------------------------------------------------------------

    def submit(
        self,
        job_id: str,
        request: VideoRequest,
        *,
        owner: str | None = None,
        retry_of: str | None = None,
        idempotency_key: str | None = None,
        digest: str = "",
        resent: bool | None = None,
        event: tuple[str, str] | None = None,
    ) -> Job:
        """Queue a job and wake a worker for it. Repeating it with the same id changes nothing.

        Args:
            request: with `model` and `seed` resolved.
            idempotency_key: the caller's; or `job_id`, which the caller may give later.
            digest: of what the caller asked for; the same key must come with the same digest.
            resent: True if the caller lost the answer to the same submission: the owner's last
                job of this digest is it, if that was submitted with False or True within ten
                minutes.
            event: a channel of Redis and what to publish there, once the job is recorded.

        Returns:
            The job. Where the request was submitted before (by its idempotency key, or
            `resent`) it is that of then, with another id.

        Raises:
            IdempotencyConflict, QueueFull.
        """
        if request.model is None or request.seed is None:
            raise ValueError("model and seed must be resolved before a job is recorded")
        answer = self._run(
            "submit", job_id, CONTRACT, request.model_dump_json(), digest,
            queue_name(request.model), BANDS[request.priority],
            f"{cost_of(request) / self._weights.get(owner or '', 1.0):.9g}",
            owner or "", retry_of or "",
            idempotency_key or "", "" if resent is None else int(resent),
            self._max_queued, self._max_owned,
            int(request.not_before.timestamp() * 1000) if request.not_before else "",
            # The least, a millisecond, is over at once: that of a message that has expired.
            "" if request.start_within is None else int(request.start_within * 1000) - 1,
            *(event or ("", "")),
        )  # fmt: skip
        match answer:
            case ["accepted", submitted, place]:
                job = Job(
                    id=job_id,
                    state="queued",
                    request=request,
                    owner=owner,
                    retry_of=retry_of,
                    idempotency_key=None if idempotency_key == job_id else idempotency_key,
                    submitted_at=read_time(submitted),
                )
                return read_queue_position(job, place, int(submitted))
            case ["repeated", other]:
                return self.get(other)
            case ["conflict", other]:
                raise IdempotencyConflict(
                    f"The idempotency key was used for another request ({other}).",
                    hint="Use a new key for a new request.",
                )
            case [_, models, "", _]:
                raise QueueFull(
                    f"Jobs for {models} models are queued, and no other model's are taken.",
                    hint="Is the model's name right? Its worker makes room for it.",
                )
            case [_, queued, ""]:
                raise QueueFull(
                    f"{queued} jobs are queued, and no more are taken.",
                    hint="Try again later, or raise LTXQ_MAX_QUEUED.",
                )
            case _:
                raise QueueFull(
                    f"{answer[1]} jobs of this API key are queued, and no more are taken.",
                    hint="Try again when some are done, or raise LTXQ_MAX_QUEUED_PER_KEY.",
                )

    def cancel(self, job_id: str) -> JobState:
        """Cancel a queued job at once; ask a running one to stop. A final state stays.

        Returns:
            The state it is in now.

        Raises:
            JobNotFound
        """
        state = self._run("cancel", job_id, self._retention, CANCELLED.model_dump_json())
        if state == "gone":
            raise not_found(job_id)
        return state  # type: ignore[no-any-return]

    def delete(self, job_id: str) -> tuple[str, ...]:
        """Remove a finished job's record.

        Returns:
            Its claims, '<job id>/<nonce>', whose objects are garbage now (`take_garbage`).

        Raises:
            JobNotFound, JobNotFinished.
        """
        answer, *claims = self._run("delete", job_id, secrets.token_hex(8))
        if answer == "gone":
            raise not_found(job_id)
        if answer != "deleted":
            raise JobNotFinished(f"{job_id} is {answer}.", hint="Cancel it first.")
        return tuple(f"{job_id}/{nonce}" for nonce in " ".join(claims).split())

    def changes(self, job_id: str) -> AbstractContextManager[Subscription]:
        """Subscribed to the job: `next` returns when its record has changed."""
        return self._subscribed("changed", job_id)

    @contextmanager
    def all_changes(self) -> Iterator[Subscription]:
        """Subscribed to every job: `next` gives the id of one whose record has changed."""
        beginning = self._key("changed", "")
        with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
            patiently(self._redis, lambda: pubsub.psubscribe(f"{beginning}*"))
            yield Subscription(pubsub, beginning=beginning)

    def cancellations(self, worker: str) -> AbstractContextManager[Subscription]:
        """Subscribed to a worker's cancellations: `next` gives the id of a running job.

        Sooner than `renew` and `report` tell it, but not surely: nothing is kept for a
        subscriber that is away.
        """
        return self._subscribed("cancel", worker)

    @contextmanager
    def _subscribed(self, *channel: str) -> Iterator[Subscription]:
        with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
            patiently(self._redis, lambda: pubsub.subscribe(self._key(*channel)))
            yield Subscription(pubsub)

    # --- what a worker does ---------------------------------------------------------------

    def claim(self, model: str, worker: str, *, nonce: str | None = None) -> Claim | None:
        """Take the job that is first among those that wait for `model`; None where none does.

        More urgent ones come first, then it is fair between owners. One whose request cannot be
        read has failed, and the next one is taken.
        """
        nonce = nonce or secrets.token_hex(8)
        while True:
            answer = self._run(
                "claim", queue_name(model), nonce, worker, self._lease, self._retention,
                EXPIRED.model_dump_json(),
            )  # fmt: skip
            if answer[0] == "none":
                return None
            _, job_id, attempt, text, waited = answer
            try:
                request = VideoRequest.model_validate_json(text or "")
            except (ValidationError, UnicodeEncodeError):
                damage = unreadable(job_id)
                log.error("%s It has failed.", damage.message)
                self._finish(job_id, nonce, "failed", "error", damage.as_job_error())
                nonce = secrets.token_hex(8)
            else:
                return Claim(
                    job_id=job_id,
                    nonce=nonce,
                    attempt=attempt,
                    request=request,
                    waited=waited / 1000,
                )

    def renew(self, claim: Claim) -> Standing:
        """Extend the lease to a whole one from now."""
        return self._run("renew", claim.job_id, claim.nonce, self._lease)  # type: ignore[no-any-return]

    def report(self, claim: Claim, progress: Progress, *, on_gpu: bool) -> Standing:
        """Record how far the job is, and whether it still holds the GPU."""
        return self._run(  # type: ignore[no-any-return]
            "report", claim.job_id, claim.nonce, progress.model_dump_json(), int(on_gpu)
        )

    def finish(
        self, claim: Claim, outcome: VideoResult | JobError, *, patience: float = PATIENCE
    ) -> bool:
        """Write the final state: of a result succeeded, of an error failed or cancelled.

        Returns:
            True if this outcome stands (also when an earlier, unanswered call wrote it); False
            if the claim was lost.
        """
        if isinstance(outcome, VideoResult):
            state, field = "succeeded", "result"
        else:
            state, field = ("cancelled" if outcome.code == "cancelled" else "failed"), "error"
        return self._finish(claim.job_id, claim.nonce, state, field, outcome, patience)

    def _finish(
        self, job_id: str, nonce: str, state: str, field: str, outcome: BaseModel,
        patience: float = PATIENCE,
    ) -> bool:  # fmt: skip
        answer = self._run(
            "finish", job_id, nonce, state, field, outcome.model_dump_json(), self._retention,
            patience=patience,
        )  # fmt: skip
        return bool(answer[0] == "finished")

    def give_back(self, claim: Claim, *, charged: bool, why: JobError = WORKER_LOST) -> Returned:
        """Queue the job again, at the head of its priority.

        Args:
            charged: the job held the GPU of a worker that was lost; after `max_lost` of those
                it fails with `why` instead.
        """
        return read_returned(
            self._run(
                "give_back", claim.job_id, claim.nonce, int(charged), self._max_lost,
                self._retention, why.model_dump_json(), CANCELLED.model_dump_json(),
            )
        )  # fmt: skip

    def reported(self, job_id: str) -> None:
        """Celery's result of this job is stored; the sweep need not."""
        self._run("reported", job_id)

    def check_writes(self) -> None:
        """Whether Redis takes writes now, in one try; raises as every method does."""
        patiently(self._redis, lambda: self._redis.set(self._key("probe"), 1, ex=60), patience=0)

    # --- what a supervisor does -----------------------------------------------------------

    def give_back_all(
        self, worker: str, *, instance: str = "", why: JobError = WORKER_LOST
    ) -> tuple[Returned, ...]:
        """Queue again all jobs of a worker that is dead; the one on the GPU is charged. None where
        the name belongs to another supervisor's `instance` by now (see `heartbeat`).
        """
        answer = self._run(
            "give_back_all", worker, instance, self._lease, self._max_lost, self._retention,
            why.model_dump_json(), CANCELLED.model_dump_json(),
        )  # fmt: skip
        return tuple(read_returned(row) for row in answer)

    def running_on(self, worker: str) -> tuple[RunningJob, ...]:
        """The running jobs of a worker."""
        return tuple(
            RunningJob(
                job_id=job_id,
                attempt=attempt,
                on_gpu=bool(gpu),
                running=ms / 1000,
                timeout=timeout,
            )
            for job_id, attempt, gpu, ms, request in self._run("running_on", worker)
            if (timeout := read_timeout(request)) is not None
        )

    def sweep(self, *, interval: float = 2.0) -> Swept:
        """End leases that are over, wake workers for jobs whose time has come or whose message was
        lost, and find results that were not stored for Celery.

        Args:
            interval: seconds between the sweeps of each supervisor. One that anybody ran within
                half of it makes this one do nothing; when nobody did within three, Redis was
                away, and leases are extended instead of ended.
        """
        answer = self._run(
            "sweep", int(interval * 1000), self._lease, int(GRACE * 1000), SWEEP_MOST,
            self._max_lost, self._retention, WORKER_LOST.model_dump_json(),
            CANCELLED.model_dump_json(), EXPIRED.model_dump_json(),
        )  # fmt: skip
        if answer[0] != "swept":
            return Swept()
        _, given, unreported, corrupt = answer
        return Swept(
            unreported=tuple(unreported),
            corrupt=bool(corrupt),
            lease_ended=tuple(read_returned(row) for row in given),
        )

    def rebuild(self) -> None:
        """Build the indexes anew from the records, where a sweep found one corrupt. A job that was
        in one of them alone is found again; one that is at work has another lease.
        """
        prefix = self._key("job", "")
        cursor: int | None = None
        while cursor != 0:
            at = cursor or 0
            scan = partial(self._redis.scan, at, match=f"{prefix}*", count=READ_MOST)
            cursor, keys = patiently(self._redis, scan)
            ids = [str(key).removeprefix(prefix) for key in keys]
            self._run("index", self._lease, self._retention, *ids)
        patiently(self._redis, lambda: self._redis.delete(self._key("corrupt")))

    def take_garbage(self) -> tuple[tuple[str, ...], bool]:
        """Remove the records past their retention, and take claims whose objects nobody needs: of
        those jobs, of deleted ones, and of attempts that were lost.

        Returns:
            '<job id>/<nonce>' of each claim. Its objects are the caller's to delete, and then
            `garbage_deleted` to call; otherwise it is handed out again in ten minutes. And
            whether there may be more.
        """
        claims, expired = self._run("take_garbage", int(GARBAGE_LEASE * 1000), GARBAGE_MOST)
        return tuple(claims), max(len(claims), expired) >= GARBAGE_MOST

    def garbage_deleted(self, claims: Collection[str]) -> None:
        """The objects of these claims are gone."""
        if claims:
            self._run("garbage_deleted", *claims)

    def take_webhook(self, *, lease: float) -> WebhookAttempt | None:
        """The webhook that has been due longest, or None.

        One receiver (a host, whatever the port) has at most four on their way at once, in the
        whole fleet: one that hangs does not hold up the others.

        Args:
            lease: seconds nobody else is given it; after them it counts as not delivered.
        """
        answer = self._run("take_webhook", int(lease * 1000))
        if not answer:
            return None
        job_id, attempt, age = answer
        return WebhookAttempt(job_id=job_id, attempt=attempt, age=age / 1000)

    def webhook_delivered(self, delivery: WebhookAttempt) -> None:
        """The receiver has it: there are no more attempts."""
        self._run("webhook_delivered", delivery.job_id)

    def webhook_failed(
        self, delivery: WebhookAttempt, reason: str, *, again_in: float | None
    ) -> None:
        """This attempt failed; one that lost its lease to a later attempt changes nothing.

        Args:
            reason: for the job's owner; without what the URL may hold of secrets.
            again_in: seconds to the next attempt; None: it is given up.
        """
        wait = "" if again_in is None else int(again_in * 1000)
        self._run("webhook_failed", delivery.job_id, delivery.attempt, reason, wait)

    def webhooks_waiting(self) -> int:
        """How many are due now or later, of the thousand receivers that are due first."""
        return int(self._run("webhooks_waiting"))
