"""A queue in memory, for tests of programs that use ltxq: no Redis, no worker.

>>> from ltxq import Client
>>> from ltxq.testing import MemoryTransport
>>> queue = MemoryTransport()
>>> client = Client(transport=queue)
>>> job = client.submit("a red fox")
>>> _ = queue.succeed(job.id)
>>> client.get(job.id).state
'succeeded'
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from ltxq.client.transport import LOOK_SECONDS
from ltxq.errors import IdempotencyConflict, JobError, JobNotFound, QueueFull
from ltxq.job import Job, JobPage, JobState, Order, Progress, Stage, VideoRequest, VideoResult
from ltxq.ledger import BANDS, CANCELLED
from ltxq.limits import ServedModel
from ltxq.settings import DEFAULT_MODEL


class MemoryTransport:
    """Jobs in a dictionary. The test plays the worker: `start`, `report`, `succeed`, `fail`."""

    def __init__(
        self,
        *,
        default_model: str = DEFAULT_MODEL,
        max_queued: int = 100_000,
        max_queued_per_key: int = 1_000,
    ) -> None:
        self._default_model = default_model
        self._max_queued = max_queued
        self._max_owned = max_queued_per_key
        self._jobs: dict[str, Job] = {}  # in the order of submission
        self._keys: dict[tuple[str | None, str], tuple[str, str]] = {}  # to id and digest
        self._recent: dict[tuple[str | None, str], str] = {}  # owner and digest → id
        self._changed = threading.Condition()

    # --- the worker's part, played by the test ------------------------------------------------

    def start(self, job_id: str, *, worker: str = "memory") -> Job:
        """A worker claims the job."""
        job = self.get(job_id)
        return self._put(
            job, state="running", attempts=job.attempts + 1, worker=worker, started_at=_now()
        )

    def report(self, job_id: str, stage: Stage, step: int, steps: int, fraction: float) -> Job:
        """The running job makes progress."""
        progress = Progress(stage=stage, step=step, steps=steps, fraction=fraction)
        return self._put(self.get(job_id), progress=progress)

    def succeed(self, job_id: str, **result: Any) -> Job:
        """The job succeeds; `result` replaces fields of the made-up VideoResult."""
        job = self.get(job_id)
        return self._end(job, "succeeded", result=_result(job, result))

    def fail(self, job_id: str, error: JobError) -> Job:
        """The job ends with an error."""
        return self._end(self.get(job_id), "failed", error=error)

    # --- what a Client calls ------------------------------------------------------------------

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
        with self._changed:
            key = (owner, idempotency_key) if idempotency_key is not None else None
            if key in self._keys:
                other, other_digest = self._keys[key]
                if other_digest != digest:
                    raise IdempotencyConflict(
                        f"The idempotency key was used for another request ({other}).",
                        hint="Use a new key for a new request.",
                    )
                return self.get(other)
            if resent and (last := self._recent.get((owner, digest))) in self._jobs:
                return self.get(last)
            queued = [job for job in self._jobs.values() if job.state == "queued"]
            if len(queued) >= self._max_queued:
                raise QueueFull(f"{len(queued)} jobs are queued, and no more are taken.")
            owned = sum(job.owner == owner for job in queued)
            if owner is not None and owned >= self._max_owned:
                raise QueueFull(f"{owned} jobs of this API key are queued, and no more are taken.")
            if key is not None:
                self._keys[key] = job_id, digest
            if resent is not None:
                self._recent[owner, digest] = job_id
            self._put(
                Job(
                    id=job_id,
                    state="queued",
                    request=request.settled(self._default_model),
                    owner=owner,
                    submitted_at=_now(),
                    retry_of=retry_of,
                    idempotency_key=idempotency_key,
                )
            )
            return self.get(job_id)

    def get(self, job_id: str) -> Job:
        try:
            job = self._jobs[job_id]
        except KeyError:
            raise JobNotFound(f"There is no job {job_id}.") from None
        return job.model_copy(update={"queue_position": self._position(job)})

    def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        return {job_id: self.get(job_id) for job_id in job_ids if job_id in self._jobs}

    def list(
        self,
        *,
        state: JobState | None = None,
        limit: int = 20,
        after: str | None = None,
        order: Order = "desc",
        owner: str | None = None,
    ) -> JobPage:
        ids = [job.id for job in self._jobs.values() if owner in (None, job.owner)]
        if order == "desc":
            ids.reverse()
        if after is not None:
            if after not in ids:
                raise JobNotFound(f"There is no job {after}.")
            ids = ids[ids.index(after) + 1 :]
        found = [job for job in map(self.get, ids) if state in (None, job.state)]
        more = len(found) > limit
        return JobPage(jobs=tuple(found[:limit]), after=found[limit - 1].id if more else None)

    def models(self) -> dict[str, ServedModel]:
        return {self._default_model: ServedModel(ready_workers=0)}

    def check_storage(self) -> None:
        """There is none."""

    def cancel(self, job_id: str) -> None:
        job = self.get(job_id)
        if job.state == "queued":
            self._end(job, "cancelled", error=CANCELLED)
        elif job.state == "running":
            self._put(job, cancel_requested=True)

    def delete(self, job_id: str) -> None:
        job = self.get(job_id)
        with self._changed:
            del self._jobs[job_id]
            if job.idempotency_key is not None:
                del self._keys[job.owner, job.idempotency_key]
            self._changed.notify_all()

    @contextmanager
    def changes(self, job_id: str) -> Iterator[_Changes]:
        yield _Changes(self, job_id)

    def close(self) -> None:
        """Nothing is open."""

    def _position(self, job: Job) -> int | None:
        if job.state != "queued":
            return None
        queued = [other for other in self._jobs.values() if other.state == "queued"]
        queued.sort(key=lambda other: BANDS[other.request.priority])  # stable: then the oldest
        return next(ahead for ahead, other in enumerate(queued) if other.id == job.id)

    def _put(self, job: Job, **changes: Any) -> Job:
        with self._changed:
            job = job.model_copy(update=changes)
            self._jobs[job.id] = job
            self._changed.notify_all()
        return job

    def _end(self, job: Job, state: JobState, **outcome: Any) -> Job:
        if job.finished:
            raise ValueError(f"{job.id} is {job.state}, and a final state stays")
        ended = {"progress": None, "cancel_requested": False, "finished_at": _now()}
        return self._put(job, state=state, **ended, **outcome)


class _Changes:
    """Wakes when the job has changed since the last wait."""

    look_after = LOOK_SECONDS

    def __init__(self, transport: MemoryTransport, job_id: str) -> None:
        self._transport = transport
        self._job_id = job_id
        self._seen = transport._jobs.get(job_id)

    def wait(self, timeout: float) -> bool:
        jobs, changed = self._transport._jobs, self._transport._changed
        with changed:
            news = changed.wait_for(lambda: jobs.get(self._job_id) is not self._seen, timeout)
            self._seen = jobs.get(self._job_id)
        return news


def _now() -> datetime:
    return datetime.now(UTC)


def _result(job: Job, fields: dict[str, Any]) -> VideoResult:
    """A result that fits the request, at a URL that leads nowhere."""
    width, height = job.request.output_size
    base = f"https://clips.invalid/{job.id}/{job.attempts}"
    made_up: dict[str, Any] = {
        "url": f"{base}/clip.mp4",
        "poster_url": f"{base}/poster.jpg",
        "spritesheet_url": f"{base}/spritesheet.jpg",
        "sidecar_url": f"{base}/clip.json",
        "key": f"{job.id}/{job.attempts}/clip.mp4",
        "sha256": "0" * 64,
        "size": 1,
        "width": width,
        "height": height,
        "num_frames": job.request.num_frames,
        "frame_rate": job.request.frame_rate,
        "duration": job.request.duration,
        "seed": job.request.seed,
        "model": job.request.model,
        "timings": {},
        "expires_at": _now() + timedelta(seconds=job.request.expires_in),
    }
    return VideoResult.model_validate(made_up | fields)
