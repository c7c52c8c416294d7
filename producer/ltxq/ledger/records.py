"""What the ledger returns (claims, jobs, …), and how it is read from Redis's answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from ltxq.errors import JobError, JobUnreadable
from ltxq.job import CONTRACT, Job, JobState, Priority, VideoRequest

BANDS: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}
"""The queue's number of each priority; lower numbers are claimed first."""
STEPS = {1: 8, 2: 8 / 4 + 3}
"""Denoising steps at full size, by stages. The first of two makes a quarter of the pixels."""
TELLING = 0.1  # share of a job after which its own progress predicts its end

Standing = Literal["held", "cancel", "lost"]
"""held: the claim stands; cancel: it stands, and a client has cancelled the job; lost: it no longer
stands."""

READ_MOST = 200  # records in one call of the script, during which Redis does nothing else

CANCELLED = JobError(code="cancelled", message="The job was cancelled.")
EXPIRED = JobError(
    code="expired",
    message="No worker was free within `start_within`.",
    hint="Allow more time with `start_within`, or submit it when more workers are ready.",
)
WORKER_LOST = JobError(
    code="worker_lost",
    message="Every worker that ran this job died while it held the GPU.",
    hint="Ask for a smaller clip. If that fails too, the operator finds the reason in the worker's "
    "log.",
)
TIMED_OUT = JobError(
    code="timed_out",
    message="The job hung past its time limit and its worker was replaced.",
    hint="Allow more with `timeout`, or ask for fewer frames or a smaller size.",
)

TASK = "ltxq.generate"
"""The name of the Celery task, in every message."""
QUEUE_PREFIX = f"ltxq.{CONTRACT}."


def queue_name(model: str) -> str:
    """The Celery queue of one contract version and model: 'ltxq.2.<model>'."""
    return QUEUE_PREFIX + model


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to run a job, while the lease is renewed."""

    job_id: str
    nonce: str  # 16 random hex digits, in every write of the claim and in its objects' keys
    attempt: int  # 1, 2, …: which claim of the job this is
    request: VideoRequest
    waited: float  # seconds from submission to this claim

    @property
    def objects(self) -> str:
        """'<job id>/<nonce>', under which its objects lie in the bucket."""
        return f"{self.job_id}/{self.nonce}"


@dataclass(frozen=True, kw_only=True)
class RunningJob:
    """A running job of one worker, as its supervisor sees it."""

    job_id: str
    attempt: int  # of the claim
    on_gpu: bool
    running: float  # seconds since the claim
    timeout: float  # seconds the request allows


@dataclass(frozen=True, kw_only=True)
class WebhookAttempt:
    """One attempt to deliver a job's webhook."""

    job_id: str
    attempt: int  # 1, 2, …
    age: float  # seconds since the job reached its final state


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """What was known of a job that a client deleted."""

    claims: tuple[str, ...]  # '<job id>/<nonce>', whose objects are garbage now
    unfinished: bool  # it has no outcome, and never will have


@dataclass(frozen=True, kw_only=True)
class Returned:
    """A job that was taken from a worker: queued again, final, or lost to another claim."""

    job_id: str
    state: JobState | Literal["lost"]


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep found."""

    unreported: tuple[str, ...] = ()  # finished jobs without Celery's result
    lease_ended: tuple[Returned, ...] = ()
    corrupt: bool = False  # an index was written over and must be rebuilt from the records


def read_returned(row: list[Any]) -> Returned:
    """[id, state]"""
    job_id, state = row
    return Returned(job_id=job_id, state=state)


def cost_of(request: VideoRequest) -> float:
    """The work of a clip, about: millions of pixels × denoising steps."""
    pixels = request.width * request.height * request.num_frames
    return pixels * STEPS[request.stages] / 1e6


def read_time(milliseconds: int | str) -> datetime:
    """A moment of Redis's clock, from milliseconds since 1970."""
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def read_timeout(request: str | None) -> float | None:
    """The timeout in a request's JSON; None if that is damaged."""
    try:
        return float(json.loads(request or "")["timeout"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def read_job(job_id: str, record: Mapping[str, str]) -> Job:
    """A job from the fields of its hash; unknown fields are ignored.

    Raises:
        JobUnreadable
    """
    try:
        contract = int(record["contract"])
        if contract == CONTRACT:
            for text in record.values():
                text.encode()  # raises for lone surrogates: bytes that were no UTF-8
            return _read_job(job_id, record)
    except (KeyError, TypeError, ValueError, OverflowError, OSError, RecursionError) as exc:
        raise unreadable(job_id) from exc
    raise JobUnreadable(
        f"{job_id} was recorded for version {contract} of the job contract, and this ltxq knows "
        f"{CONTRACT}.",
        hint="Use the version of ltxq that made it.",
    )


def read_queue_position(job: Job, place: Sequence[Any], now: int) -> Job:
    """The job with its queue position and estimated time, from the script's `place`.

    Args:
        now: milliseconds of Redis's clock.
    """
    if not place:
        return job
    ahead, workers, gpu, whole = place
    eta = None
    with suppress(ValueError, OverflowError):  # the averages may have been written over
        if job.state == "running":
            eta = _seconds_left(job, float(whole or "nan"), now)
        elif workers:
            eta = (ahead / workers * float(gpu or whole or "nan") + float(whole or "nan")) / 1000
    return job.model_copy(
        update={
            "queue_position": ahead if job.state == "queued" and ahead != "" else None,
            "ready_workers": workers if job.state == "queued" and ahead != "" else None,
            "eta_seconds": None if eta is None or not math.isfinite(eta) else round(eta, 1),
        }
    )


def _seconds_left(job: Job, whole: float, now: int) -> float | None:
    """Of a running job: from its own progress after its first tenth, else from recent jobs."""
    if job.started_at is None:
        return None
    elapsed = now / 1000 - job.started_at.timestamp()
    done = job.progress.fraction if job.progress else 0.0
    left = elapsed * (1 - done) / done if done >= TELLING else whole / 1000 - elapsed
    return max(left, 0.0)


def unreadable(job_id: str) -> JobUnreadable:
    """The error for a record that cannot be read."""
    return JobUnreadable(
        f"The record of {job_id} in Redis is damaged.",
        hint="Submit it again, and delete this one.",
    )


def _read_job(job_id: str, record: Mapping[str, str]) -> Job:
    def at(field: str) -> datetime | None:
        return read_time(record[field]) if field in record else None

    def parsed(field: str) -> Any:
        if field not in record:
            return None
        return json.loads(record[field], parse_constant=_refused)

    webhook = {
        "state": record.get("webhook"),
        "attempts": record.get("webhook_attempts", 0),
        "last_error": record.get("webhook_error"),
        "delivered_at": at("webhook_delivered"),
    }
    return Job.model_validate(
        {
            "id": job_id,
            "contract": record["contract"],
            "state": record["state"],
            "request": parsed("request"),
            "progress": parsed("progress"),
            "result": parsed("result"),
            "error": parsed("error"),
            "attempts": record.get("attempts", 0),
            "worker": record.get("worker"),
            "cancel_requested": record["state"] == "running" and "cancel" in record,
            "owner": record.get("owner"),
            "retry_of": record.get("retry_of"),
            "idempotency_key": record.get("idempotency"),
            "submitted_at": at("submitted"),
            "started_at": at("started"),
            "finished_at": at("finished"),
            "webhook": webhook if record.get("webhook") else None,
        }
    )


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
