"""The job records in Redis: the truth about every job. Each step is atomic (ledger.lua), on
Redis's clock, and safe to repeat. Sending messages and storing Celery's results is left to others.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Final, Literal, TypeVar, get_args

import redis
import redis.exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from ltxq.errors import (
    ConfigurationError,
    IdempotencyConflict,
    JobError,
    JobNotFinished,
    JobNotFound,
    LtxqError,
    QueueFull,
    QueueUnavailable,
)
from ltxq.job import (
    CONTRACT,
    Job,
    JobPage,
    JobState,
    Priority,
    Progress,
    VideoRequest,
    VideoResult,
    is_job_id,
)
from ltxq.settings import Settings, without_password

PREFIX = f"ltxq:{CONTRACT}:"
LANES: dict[Priority, int] = {"high": 1, "normal": 3, "low": 5}
"""The lane of a first try, by priority; the even one before it is for jobs sent again."""
LANE_COUNT = 6

ATTEMPT_SECONDS = 1.0  # one connection attempt, and one answer, may take this long each
PATIENCE: Final = 2.8  # seconds a call tries again: with the last attempt under 5 in all
GRACE = 3.0  # seconds a message may be on its way before its job counts as overtaken
SWEEP_MOST = 1000  # jobs of each kind one sweep deals with; the next goes on

CANCELLED = JobError(code="cancelled", message="The job was cancelled.")
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

T = TypeVar("T")
ALL_STATES: tuple[JobState, ...] = get_args(JobState)

Standing = Literal["held", "cancel", "lost"]
"""What a worker learns of its claim: still its own; asked to stop; no longer its own."""


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """Which message wakes a worker for a job: sent after every (re)queueing."""

    job_id: str
    queue: str
    lane: int  # 0..5, the message's Celery priority; 0 is taken first
    stamp: int  # order of queueing


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to run a job, while the lease is renewed."""

    job_id: str
    token: int  # 1, 2, …: the claim's number; every write carries it
    request: VideoRequest
    waited: float  # seconds from submission to this claim


@dataclass(frozen=True, kw_only=True)
class Held:
    """A running job of one worker, as its supervisor sees it."""

    job_id: str
    token: int
    on_gpu: bool
    running: float  # seconds since the claim
    timeout: float  # seconds the request allows


@dataclass(frozen=True, kw_only=True)
class Returned:
    """What became of a job taken from a worker: queued again (with a ticket), or final."""

    job_id: str
    state: str
    ticket: Ticket | None


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep found: messages to send, final states to tell Celery, records removed."""

    tickets: tuple[Ticket, ...] = ()
    unreported: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    lease_ended: tuple[Returned, ...] = ()


def queue_name(model: str) -> str:
    """The Celery queue of one contract version and model: 'ltxq.1.<model>'."""
    return f"ltxq.{CONTRACT}.{model}"


class Ledger:
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
    ) -> None:
        self._redis = connection
        self._script = connection.register_script(
            files("ltxq").joinpath("ledger.lua").read_text("utf-8")
        )
        self._retention = int(retention * 1000)
        self._lease = int(lease * 1000)
        self._max_lost = max_lost
        self._max_queued = max_queued

    @classmethod
    def from_settings(cls, settings: Settings) -> Ledger:
        """Connects on first use, not here."""
        connection = redis.Redis.from_url(
            settings.url.get_secret_value(),
            decode_responses=True,
            socket_timeout=ATTEMPT_SECONDS,
            socket_connect_timeout=ATTEMPT_SECONDS,
            retry=Retry(NoBackoff(), 0),  # ours below: it knows the operations are repeatable
        )
        return cls(
            connection,
            retention=settings.retention,
            lease=settings.lease,
            max_lost=settings.max_lost,
            max_queued=settings.max_queued,
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
    ) -> Ticket | str:
        """Record a queued job. Repeating it with the same id changes nothing.

        Args:
            request: with `model` and `seed` resolved.
            digest: of what the caller asked for; the same key must come with the same digest.

        Returns:
            The ticket to send; or, where the idempotency key was used before for the same
            request, the id of that job.

        Raises:
            IdempotencyConflict, QueueFull.
        """
        if request.model is None or request.seed is None:
            raise ValueError("model and seed must be resolved before a job is recorded")
        answer = self._run(
            "submit", job_id, CONTRACT, request.model_dump_json(), digest,
            queue_name(request.model), LANES[request.priority], owner or "", retry_of or "",
            idempotency_key or "", self._max_queued,
        )  # fmt: skip
        match answer:
            case ["accepted", *ticket]:
                return _ticket(ticket)
            case ["repeated", other]:
                return str(other)
            case ["conflict", other]:
                raise IdempotencyConflict(
                    f"The idempotency key was used for another request ({other}).",
                    hint="Use a new key for a new request.",
                )
            case _:
                raise QueueFull(
                    f"{answer[1]} jobs are queued, and no more are taken.",
                    hint="Try again later, or raise LTXQ_MAX_QUEUED.",
                )

    def get(self, job_id: str) -> Job:
        """The job as it is now.

        Raises:
            JobNotFound
        """
        record = self._call(lambda: self._redis.hgetall(self._key("job", job_id)))
        if not record:
            raise _not_found(job_id)
        return _job(job_id, record)

    def list(
        self, *, state: JobState | None = None, limit: int = 20, after: str | None = None
    ) -> JobPage:
        """Jobs, newest submission first; `after` is the id of the last one already seen.

        Raises:
            JobNotFound: `after` is no job.
        """
        states = (state,) if state else ALL_STATES
        rows = self._call(lambda: self._newest(states, limit, after))
        jobs = tuple(_job(job_id, record) for job_id, record in rows[:limit] if record)
        return JobPage(jobs=jobs, after=jobs[-1].id if jobs and len(rows) > limit else None)

    def _newest(
        self, states: tuple[JobState, ...], limit: int, after: str | None
    ) -> Sequence[tuple[str, dict[str, str]]]:
        """Ids and records of the newest jobs below `after`, one more than `limit` if there is."""
        below = "+inf"
        if after is not None:
            seq = self._redis.hget(self._key("job", after), "seq")
            if seq is None:
                raise _not_found(after)
            below = f"({seq!s}"
        pipe = self._redis.pipeline(transaction=True)
        for name in states:
            pipe.zrevrangebyscore(
                self._key("state", name), below, "-inf", 0, limit + 1, withscores=True
            )
        found = sorted((row for rows in pipe.execute() for row in rows), key=lambda row: -row[1])
        ids = [job_id for job_id, _seq in found[: limit + 1]]
        pipe = self._redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hgetall(self._key("job", job_id))
        return list(zip(ids, pipe.execute(), strict=True))

    def cancel(self, job_id: str) -> JobState:
        """Cancel a queued job at once; ask a running one to stop. A final state stays.

        Returns:
            The state it is in now.

        Raises:
            JobNotFound
        """
        state = self._run("cancel", job_id, self._retention, CANCELLED.model_dump_json())
        if state == "gone":
            raise _not_found(job_id)
        return state  # type: ignore[no-any-return]

    def delete(self, job_id: str) -> None:
        """Remove a finished job's record.

        Raises:
            JobNotFound, JobNotFinished.
        """
        answer = self._run("delete", job_id)
        if answer == "gone":
            raise _not_found(job_id)
        if answer != "deleted":
            raise JobNotFinished(f"{job_id} is {answer}.", hint="Cancel it first.")

    @contextmanager
    def changes(self, job_id: str) -> Iterator[redis.client.PubSub]:
        """Subscribed to the job: `get_message` returns when its record has changed."""
        with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
            self._call(lambda: pubsub.subscribe(self._key("changed", job_id)))
            yield pubsub

    # --- what a worker does ---------------------------------------------------------------

    def claim(self, ticket: Ticket, worker: str, *, nonce: str | None = None) -> Claim | None:
        """Take a queued job; None if it is not to be had (taken, final, gone)."""
        answer = self._run(
            "claim", ticket.job_id, ticket.queue, ticket.lane, ticket.stamp,
            nonce or secrets.token_hex(8), worker, self._lease,
        )  # fmt: skip
        if answer[0] == "refused":
            return None
        _, token, request, waited = answer
        return Claim(
            job_id=ticket.job_id,
            token=token,
            request=VideoRequest.model_validate_json(request),
            waited=waited / 1000,
        )

    def renew(self, claim: Claim) -> Standing:
        """Extend the lease to a whole one from now."""
        return self._run("renew", claim.job_id, claim.token, self._lease)  # type: ignore[no-any-return]

    def report(self, claim: Claim, progress: Progress, *, on_gpu: bool) -> Standing:
        """Record how far the job is, and whether it still holds the GPU."""
        return self._run(  # type: ignore[no-any-return]
            "report", claim.job_id, claim.token, progress.model_dump_json(), int(on_gpu)
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
        answer = self._run(
            "finish", claim.job_id, claim.token, state, field, outcome.model_dump_json(),
            self._retention, patience=patience,
        )  # fmt: skip
        return bool(answer[0] == "finished")

    def give_back(self, claim: Claim, *, charged: bool, why: JobError = WORKER_LOST) -> Returned:
        """Queue the job again, at the head of its priority.

        Args:
            charged: the job held the GPU of a worker that was lost; after `max_lost` of those
                it fails with `why` instead.
        """
        return _returned(
            self._run(
                "give_back", claim.job_id, claim.token, int(charged), self._max_lost,
                self._retention, why.model_dump_json(), CANCELLED.model_dump_json(),
            )
        )  # fmt: skip

    def reported(self, job_id: str) -> None:
        """Celery's result of this job is stored; the sweep need not."""
        self._run("reported", job_id)

    # --- what a supervisor does -----------------------------------------------------------

    def give_back_all(self, worker: str, *, why: JobError = WORKER_LOST) -> tuple[Returned, ...]:
        """Queue again all jobs of a worker that is dead; the one on the GPU is charged."""
        answer = self._run(
            "give_back_all", worker, self._max_lost, self._retention,
            why.model_dump_json(), CANCELLED.model_dump_json(),
        )  # fmt: skip
        return tuple(_returned(row) for row in answer)

    def held(self, worker: str) -> tuple[Held, ...]:
        """The running jobs of a worker."""
        return tuple(
            Held(
                job_id=job_id,
                token=token,
                on_gpu=bool(gpu),
                running=ms / 1000,
                timeout=json.loads(request)["timeout"],
            )
            for job_id, token, gpu, ms, request in self._run("held", worker)
        )

    def sweep(self, *, interval: float = 2.0) -> Swept:
        """Find what nobody else will notice: leases that ended, messages that were lost,
        results Celery was not told of, records past their retention.

        Args:
            interval: seconds; a sweep anybody ran more recently makes this one do nothing.
        """
        answer = self._run(
            "sweep", int(interval * 1000), self._lease, int(GRACE * 1000), SWEEP_MOST,
            self._max_lost, self._retention, WORKER_LOST.model_dump_json(),
            CANCELLED.model_dump_json(),
        )  # fmt: skip
        if answer[0] != "swept":
            return Swept()
        _, given, again, unreported, expired = answer
        returned = tuple(_returned(row) for row in given)
        return Swept(
            tickets=tuple(r.ticket for r in returned if r.ticket)
            + tuple(_ticket(row) for row in again),
            unreported=tuple(unreported),
            expired=tuple(expired),
            lease_ended=returned,
        )

    def ping(self) -> None:
        """Whether Redis answers and takes writes.

        Raises:
            QueueUnavailable, ConfigurationError.
        """
        self._run("reported", "")

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _key(self, *parts: str) -> str:
        return PREFIX + ":".join(parts)

    def _run(self, operation: str, *arguments: str | int, patience: float = PATIENCE) -> Any:
        """One operation of ledger.lua, repeated while Redis is away."""
        return self._call(
            lambda: self._script(keys=[PREFIX], args=[operation, *arguments]), patience
        )

    def _call(self, ask: Callable[[], T], patience: float = PATIENCE) -> T:
        attempts = Retrying(
            retry=retry_if_exception(_passes),
            stop=stop_after_delay(patience),
            wait=wait_exponential_jitter(multiplier=0.02, max=1.0, jitter=0.02),
            reraise=True,
        )
        try:
            return attempts(ask)
        except redis_errors.RedisError as exc:
            raise self._translated(exc) from exc

    def _translated(self, exc: redis_errors.RedisError) -> LtxqError:
        parts = self._redis.connection_pool.connection_kwargs
        where = without_password(parts.get("path") or f"{parts.get('host')}:{parts.get('port')}")
        if isinstance(exc, redis_errors.AuthenticationError | redis_errors.NoPermissionError):
            return ConfigurationError(
                f"Redis at {where} refuses this user or password.", hint="Correct LTXQ_URL."
            )
        if "OOM" in str(exc):
            return QueueUnavailable(
                f"Redis at {where} is full and takes no writes.",
                hint="Raise its maxmemory (and keep maxmemory-policy noeviction).",
            )
        if isinstance(exc, redis_errors.ReadOnlyError) or "READONLY" in str(exc):
            return QueueUnavailable(
                f"Redis at {where} is a read-only replica.", hint="Point LTXQ_URL at the primary."
            )
        if _passes(exc):
            return QueueUnavailable(
                f"Redis at {where} does not answer ({type(exc).__name__}).",
                hint="Is it running, and is LTXQ_URL right?",
            )
        return LtxqError(f"Redis at {where} answered: {exc}")


def _passes(exc: BaseException) -> bool:
    """Whether Redis may answer otherwise in a moment."""
    if isinstance(exc, redis_errors.AuthenticationError):
        return False
    return isinstance(
        exc,
        redis_errors.ConnectionError
        | redis_errors.TimeoutError
        | redis_errors.ReadOnlyError
        | redis_errors.OutOfMemoryError,
    ) or any(word in str(exc) for word in ("OOM ", "READONLY", "LOADING", "MISCONF"))


def _not_found(job_id: str) -> JobNotFound:
    if not is_job_id(job_id):
        return JobNotFound(f"{job_id[:80]!r} is no job id.", hint="Ids look like video_0123….")
    return JobNotFound(
        f"There is no job {job_id}.", hint="It was never submitted, or is past its retention."
    )


def _ticket(row: list[Any]) -> Ticket:
    job_id, queue, lane, stamp = row
    return Ticket(job_id=job_id, queue=queue, lane=int(lane), stamp=int(stamp))


def _returned(row: list[Any]) -> Returned:
    job_id, state, *ticket = row
    return Returned(
        job_id=job_id, state=state, ticket=_ticket([job_id, *ticket]) if ticket else None
    )


def _job(job_id: str, record: Any) -> Job:
    def at(field: str) -> datetime | None:
        ms = record.get(field)
        return datetime.fromtimestamp(int(ms) / 1000, UTC) if ms else None

    def parsed(field: str) -> Any:
        return json.loads(record[field]) if field in record else None

    return Job.model_validate(
        {
            "id": job_id,
            "contract": record["contract"],
            "state": record["state"],
            "request": parsed("request"),
            "progress": parsed("progress"),
            "result": parsed("result"),
            "error": parsed("error"),
            "attempts": record.get("token", 0),
            "worker": record.get("worker"),
            "cancel_requested": record["state"] == "running" and "cancel" in record,
            "owner": record.get("owner"),
            "retry_of": record.get("retry_of"),
            "idempotency_key": record.get("idempotency"),
            "submitted_at": at("submitted"),
            "started_at": at("started"),
            "finished_at": at("finished"),
        }
    )
