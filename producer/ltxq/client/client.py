"""`Client`: put a prompt on the queue, follow the job, get the clip's URL."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Collection, Generator, Iterator
from typing import Any, Self, get_args

from ltxq.client.job_watch import JobWatch
from ltxq.client.transport import Changes, RedisTransport, Transport
from ltxq.errors import (
    ConfigurationError,
    InvalidRequest,
    QueueUnavailable,
    UnknownModel,
)
from ltxq.job import Job, JobPage, JobState, Order, VideoRequest, new_job_id
from ltxq.ledger import not_found
from ltxq.limits import ServedModel
from ltxq.reasons import one_of, which_are_served
from ltxq.settings import Settings

STOP_CHECK_SECONDS = 0.25  # how soon a cancelled `AsyncClient.watch` frees its thread


class Client:
    """A connection to the queue; thread-safe, closed by `close` or a `with`.

    >>> with Client() as client:                                    # doctest: +SKIP
    ...     job = client.submit("a red fox in the snow", num_frames=121)
    ...     print(client.wait(job.id).result_or_raise().url)

    Args:
        url: Redis (`redis://…`, `sentinel://…`, …) or a gateway (`https://…`); default `LTXQ_URL`.
        api_key: API key of the gateway; default `LTXQ_API_KEY`.
        settings: all other settings; default: the environment.
        transport: another way to the queue, e.g. `ltxq.testing.MemoryTransport()`.
        owner: submit jobs for this owner, and see only this owner's; None: see all jobs.
            Do not set it with a gateway: there the API key decides the owner.

    Every method may raise `QueueUnavailable`: within 5 seconds if Redis or the gateway cannot be
    reached, within 10 if a gateway accepts the connection but does not answer.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        settings: Settings | None = None,
        transport: Transport | None = None,
        owner: str | None = None,
    ) -> None:
        if transport is None:
            settings = (settings or Settings.read()).pointed(url, api_key)
            transport = _transport(settings, owner)
        self._transport = transport
        self._owner = owner

    def submit(
        self,
        request: VideoRequest | str | None = None,
        /,
        *,
        idempotency_key: str | None = None,
        resent: bool | None = None,
        require_worker: bool = False,
        **fields: Any,
    ) -> Job:
        """Queue a clip: `submit("a prompt", num_frames=121)` or `submit(VideoRequest(…))`.

        Args:
            idempotency_key: 1 to 255 characters. The same key with the same request returns the
                same job instead of a second one. None: a random key.
            resent: for callers without idempotency keys. True: this repeats a submission whose
                answer was lost. If that one arrived within the last ten minutes (with `resent`
                False or True), its job is returned.
            require_worker: refuse a model for which no worker is ready. Otherwise the job waits for
                one; a model that no worker has served within a week is logged as a warning, once.

        Raises:
            UnknownModel: `require_worker`, and no worker is ready; names the models served.
            InvalidRequest: lists each wrong field, the reason and the nearest valid values.
            IdempotencyConflict: the key was used for another request.
            QueueFull: the queue has `LTXQ_MAX_QUEUED` jobs, or `LTXQ_MAX_QUEUED_PER_KEY` jobs of
                this owner.
            QueueUnavailable: if it has an `idempotency_key`, the job may have been accepted:
                submit the same request with that key, and no second job is made.
        """
        if not isinstance(request, VideoRequest):
            if request is not None and "prompt" in fields:
                raise TypeError("give the prompt once")
            prompt = {} if request is None else {"prompt": request}
            request = VideoRequest.parse({**prompt, **fields})
        elif fields:
            raise TypeError("give a VideoRequest or a prompt with fields, not both")
        if require_worker:
            self._require_worker(request.model)
        return self._submit(request, idempotency_key=idempotency_key, resent=resent)

    def get(self, job_id: str) -> Job:
        """The job now; the URLs of its result are newly signed.

        Raises:
            JobNotFound
        """
        return owned(self._transport.get(_text(job_id)), self._owner)

    def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        """The jobs that exist, by id. Cheaper than one `get` for each."""
        jobs = self._transport.get_many(job_ids)
        return {job_id: job for job_id, job in jobs.items() if self._owner in (None, job.owner)}

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """The job once it has succeeded, failed or been cancelled.

        Raises:
            WaitTimeout: it has not after `timeout` seconds; the job continues.
            JobNotFound
        """
        *_, job = self.watch(job_id, timeout)
        return job

    def watch(self, job_id: str, timeout: float | None = None) -> Iterator[Job]:
        """Yields the job now and at each change; the last one is final.

        Raises:
            WaitTimeout: the job is not final after `timeout` seconds; it continues.
            JobNotFound
        """
        return self._watch(job_id, timeout, threading.Event())

    def _watch(
        self, job_id: str, timeout: float | None, stopped: threading.Event
    ) -> Generator[Job, None, None]:
        """`watch`, which also ends soon after another thread sets `stopped`."""
        watch = JobWatch(now=time.monotonic(), timeout=timeout)
        with self._transport.changes(_text(job_id)) as changes:
            while not stopped.is_set():
                try:
                    job = self.get(job_id)
                except QueueUnavailable:
                    if not watch.survives_outage(time.monotonic()):
                        raise
                else:
                    if watch.changed(job):
                        yield job
                    if job.finished:
                        return
                _wait(changes, watch.pause(changes.look_after, time.monotonic()), stopped)

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once; ask a running one to stop (within a denoising step).

        A job that finishes before that keeps its result. A finished job does not change.

        Raises:
            JobNotFound
        """
        self._check_own(job_id)
        self._transport.cancel(_text(job_id))
        return self._transport.get(job_id)

    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """Submit the same request again as a new job, whose `retry_of` is `job_id`.

        Raises:
            JobNotFound, QueueFull, IdempotencyConflict
            QueueUnavailable: as `submit`.
        """
        request = self.get(job_id).request
        return self._submit(request, idempotency_key=idempotency_key, retry_of=job_id)

    def list(
        self,
        *,
        state: JobState | None = None,
        limit: int = 20,
        after: str | None = None,
        order: Order = "desc",
    ) -> JobPage:
        """Jobs in order of submission.

        Args:
            limit: 1 to 100.
            after: `after` of the previous page.
            order: desc: newest first; asc: oldest first.
        """
        wrong = []
        if not isinstance(limit, int) or not 1 <= limit <= 100:
            wrong.append(("limit", "must be a whole number from 1 to 100"))
        if state is not None and state not in get_args(JobState):
            wrong.append(("state", f"must be {one_of(get_args(JobState))}"))
        if order not in get_args(Order):
            wrong.append(("order", f"must be {one_of(get_args(Order))}"))
        if wrong:
            raise InvalidRequest.of(*wrong)
        return self._transport.list(
            state=state, limit=limit, after=after, order=order, owner=self._owner
        )

    def models(self) -> dict[str, ServedModel]:
        """Models that have workers or had one within a week, and the default model, by name."""
        return self._transport.models()

    def check_storage(self) -> None:
        """Write, read and delete a small object in the bucket; does nothing without a bucket.

        Raises:
            StorageUnavailable, StorageRefused
        """
        self._transport.check_storage()

    def delete(self, job_id: str) -> None:
        """Remove a job and its clip at once. An unfinished job is cancelled. No webhook is sent
        afterwards.

        Raises:
            JobNotFound
            ClipKept: the job is removed, but the storage refuses to delete the clip.
        """
        self._check_own(job_id)
        self._transport.delete(_text(job_id))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _submit(
        self,
        request: VideoRequest,
        *,
        idempotency_key: str | None,
        retry_of: str | None = None,
        resent: bool | None = None,
    ) -> Job:
        if idempotency_key is not None and not _is_key(idempotency_key):
            raise InvalidRequest.of(("idempotency_key", "must be text of 1 to 255 characters"))
        # Taken before a random seed is drawn: a repeated submission must have the same digest.
        digest = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
        job_id = new_job_id()
        key = idempotency_key or job_id  # always a key: the caller may have to submit again
        try:
            return self._transport.submit(
                job_id,
                request,
                digest=digest,
                idempotency_key=key,
                retry_of=retry_of,
                resent=resent,
                owner=self._owner,
            )
        except QueueUnavailable as exc:
            if not exc.sent or exc.idempotency_key == key:  # the gateway's error names the key
                raise
            raise QueueUnavailable.of_submission(
                exc.message, hint=exc.hint, idempotency_key=key
            ) from exc

    def _require_worker(self, model: str | None) -> None:
        served = self._transport.models()
        if model is None:  # the queue's default model, which this client may not know
            ready = any(about.ready_workers for about in served.values())
        else:
            ready = model in served and served[model].ready_workers > 0
        if not ready:
            names = [name for name, about in served.items() if about.ready_workers]
            raise UnknownModel(
                f"No worker is ready for the model {model}." if model else "No worker is ready.",
                hint=which_are_served(model or "", names),
            )

    def _check_own(self, job_id: str) -> None:
        if self._owner is not None:
            self.get(job_id)


def owned(job: Job, owner: str | None) -> Job:
    """The job, if `owner` may see it (None may see all). To others it does not exist.

    Raises:
        JobNotFound
    """
    if owner not in (None, job.owner):
        raise not_found(job.id)
    return job


def _text(job_id: str) -> str:
    """The id. Libraries below would blame something else.

    Raises:
        TypeError: it is not text, such as a job in place of its id.
    """
    if not isinstance(job_id, str):
        raise TypeError(f"a job's id is text, as job.id, not {type(job_id).__name__}")
    return job_id


def _wait(changes: Changes, seconds: float, stopped: threading.Event) -> None:
    """Until the job may have changed, `stopped` is set, or the seconds are over."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if changes.wait(min(left, STOP_CHECK_SECONDS)) or stopped.is_set():
            return


def _transport(settings: Settings, owner: str | None) -> Transport:
    if not settings.is_gateway:
        return RedisTransport(settings)
    from ltxq.client.http import HttpTransport

    if owner is not None:
        raise ConfigurationError(
            "With a gateway, the API key decides the owner.",
            hint="Use that owner's API key, and leave `owner` out.",
        )
    return HttpTransport(settings)


def _is_key(key: object) -> bool:
    if not isinstance(key, str) or not 1 <= len(key) <= 255:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in key)  # not in UTF-8
