"""The records of jobs: submitted, cancelled, deleted and read by clients."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, get_args

from ltxq.errors import (
    IdempotencyConflict,
    JobNotFound,
    JobUnreadable,
    LtxqError,
    QueueFull,
)
from ltxq.job import CONTRACT, Job, JobPage, JobState, Order, VideoRequest, is_job_id
from ltxq.ledger.records import (
    BANDS,
    CANCELLED,
    READ_MOST,
    Deleted,
    cost_of,
    queue_name,
    read_job,
    read_queue_position,
    read_time,
    unreadable,
)
from ltxq.ledger.script import Script
from ltxq.settings import Settings

ALL_STATES: tuple[JobState, ...] = get_args(JobState)

_Row = tuple[dict[str, str] | None, Sequence[Any], int]
"""A job's record (empty: there is none; None: it is damaged), its place in the queue, and Redis's
time of reading in milliseconds."""


class JobStore:
    """What clients do with jobs. Reading changes nothing."""

    def __init__(self, script: Script, settings: Settings) -> None:
        self._script = script
        self._retention = int(settings.retention * 1000)
        self._max_queued = settings.max_queued
        self._max_owned = settings.max_queued_per_key
        self._weights = settings.weights

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
            resent: True if the caller lost the answer to the same submission. The ledger then
                looks for the owner's last job of this digest, submitted with False or True
                within ten minutes.
            event: a Redis channel and what to publish there once the job is recorded.

        Returns:
            The job. Where the request was submitted before (by its idempotency key, or
            `resent`) the job of that submission, which has another id.

        Raises:
            IdempotencyConflict, QueueFull.
        """
        if request.model is None or request.seed is None:
            raise ValueError("model and seed must be resolved before a job is recorded")
        answer, *details = self._script.run_kept(
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
        if answer == "repeated":
            return self.get(details[0])
        if answer != "accepted":
            raise _refusal(answer, details)
        submitted, place = details
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

    def cancel(self, job_id: str) -> JobState:
        """Cancel a queued job at once; ask a running one to stop. A final state stays.

        Returns:
            The state it is in now.

        Raises:
            JobNotFound
        """
        state = self._script.run("cancel", job_id, self._retention, CANCELLED.model_dump_json())
        if state == "gone":
            raise not_found(job_id)
        return state  # type: ignore[no-any-return]

    def delete(self, job_id: str) -> Deleted:
        """Remove a job's record. An unfinished job leaves the queue, or its worker is asked to stop
        and its objects become garbage when it has; in either case it is gone at once.

        Raises:
            JobNotFound
        """
        answer, *details = self._script.run("delete", job_id, secrets.token_hex(8))
        if answer == "gone":
            raise not_found(job_id)
        claims, state = details
        return Deleted(
            claims=tuple(f"{job_id}/{nonce}" for nonce in claims.split()),
            unfinished=state in ("queued", "running"),
        )

    def reported(self, job_id: str) -> None:
        """Celery's result of this job is stored; the sweep need not store it."""
        self._script.run("reported", job_id)

    def get(self, job_id: str) -> Job:
        """The job as it is now.

        Raises:
            JobNotFound, JobUnreadable.
        """
        return _read(job_id, self._rows([job_id])[0])

    def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        """Those of the jobs that exist and can be read, by id, in one or few calls."""
        ids = list(dict.fromkeys(job_ids))
        jobs = {}
        for job_id, row in zip(ids, self._rows(ids), strict=True):
            with suppress(JobNotFound, JobUnreadable):
                jobs[job_id] = _read(job_id, row)
        return jobs

    def list(
        self,
        *,
        state: JobState | None = None,
        limit: int = 20,
        after: str | None = None,
        order: Order = "desc",
        owner: str | None = None,
    ) -> JobPage:
        """Jobs by their submission; `after` is the id of the last one already seen.

        Those that cannot be read are left out.

        Args:
            order: desc: the newest first.
            owner: of whom; None: everybody's.

        Raises:
            JobNotFound: `after` is no job, or not the owner's.
        """
        states = (state,) if state else ALL_STATES
        ids = self._script.ask(lambda: self._ids(states, limit + 1, after, order == "desc", owner))
        jobs = self.get_many(ids[:limit])
        return JobPage(
            jobs=tuple(jobs.values()), after=ids[limit - 1] if len(ids) > limit else None
        )

    def existing(self, job_ids: Collection[str]) -> set[str]:
        """Those of the ids that have a record, be it damaged."""
        ids = list(job_ids)

        def ask() -> list[int]:
            pipe = self._script.redis.pipeline(transaction=False)
            for job_id in ids:
                pipe.exists(self._script.key("job", job_id))
            return pipe.execute()

        found = zip(ids, self._script.ask(ask), strict=True)
        return {job_id for job_id, exists in found if exists}

    def _ids(
        self,
        states: tuple[JobState, ...],
        most: int,
        after: str | None,
        newest_first: bool,
        owner: str | None,
    ) -> Sequence[str]:
        """Ids of the jobs next to `after`, in order."""

        def index(state: JobState) -> str:
            return (
                self._script.key("owned", owner, state)
                if owner
                else self._script.key("state", state)
            )

        low, high = "-inf", "+inf"
        if after is not None:
            pipe = self._script.redis.pipeline(transaction=True)
            for state in ALL_STATES:
                pipe.zscore(index(state), after)
            places = [seq for seq in pipe.execute() if seq is not None]
            if not places:
                raise not_found(after)
            edge = f"({places[0]:.0f}"
            low, high = (low, edge) if newest_first else (edge, high)
        pipe = self._script.redis.pipeline(transaction=True)
        for state in states:
            if newest_first:
                pipe.zrevrangebyscore(index(state), high, low, 0, most, withscores=True)
            else:
                pipe.zrangebyscore(index(state), low, high, 0, most, withscores=True)
        found = [row for rows in pipe.execute() for row in rows]
        found.sort(key=lambda row: row[1], reverse=newest_first)
        return [job_id for job_id, _seq in found[:most]]

    def _rows(self, ids: Sequence[str]) -> Sequence[_Row]:
        found: list[_Row] = []
        for start in range(0, len(ids), READ_MOST):
            now, rows = self._script.run("read", *ids[start : start + READ_MOST])
            for row in rows:
                if row == ["damaged"]:
                    found.append((None, (), now))
                else:
                    fields, place = row
                    record = dict(zip(fields[::2], fields[1::2], strict=True))
                    found.append((record, place, now))
        return found


def _refusal(answer: str, details: Sequence[Any]) -> LtxqError:
    """The error of a submission that was not accepted."""
    match answer, *details:
        case ["conflict", other]:
            return IdempotencyConflict(
                f"The idempotency key was used for another request ({other}).",
                hint="Use a new key for a new request.",
            )
        case [_, models, "", _]:
            return QueueFull(
                f"Jobs for {models} models are queued, and no other model's are taken.",
                hint="Is the model's name right? Its worker makes room for it.",
            )
        case [_, queued, ""]:
            return QueueFull(
                f"{queued} jobs are queued, and no more are taken.",
                hint="Try again later. The operator may raise LTXQ_MAX_QUEUED.",
            )
        case _:
            return QueueFull(
                f"{details[0]} jobs of this API key are queued, and no more are taken.",
                hint="Try again when some are done. The operator may raise "
                "LTXQ_MAX_QUEUED_PER_KEY.",
            )


def not_found(job_id: str) -> JobNotFound:
    """What to say of an id that is no job's."""
    if not is_job_id(job_id):
        return JobNotFound(f"{job_id[:80]!r} is no job id.", hint="Ids look like video_0123….")
    return JobNotFound(
        f"There is no job {job_id}.", hint="It was never submitted, or is past its retention."
    )


def _read(job_id: str, row: _Row) -> Job:
    record, place, now = row
    if record is None:
        raise unreadable(job_id)
    if not record:
        raise not_found(job_id)
    return read_queue_position(read_job(job_id, record), place, now)
