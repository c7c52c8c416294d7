"""`Client`: put a prompt on the queue, follow the job, get the clip's URL. `AsyncClient` is the
same over threads. Where the jobs are is the transport's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Collection, Generator, Iterator
from typing import Any, Self

from ltxq.client.transport import RedisTransport, Transport
from ltxq.errors import ConfigurationError, InvalidRequest, QueueUnavailable, WaitTimeout
from ltxq.job import Job, JobPage, JobState, Order, VideoRequest, new_job_id
from ltxq.ledger import not_found
from ltxq.settings import Settings

UNWANTED_SECONDS = 0.25  # between looks at whether anybody still wants to know
OUTAGE_PATIENCE = 60.0  # seconds `watch` and `wait` live through a queue that is away


class Client:
    """A connection to the queue; thread-safe, closed by `close` or a `with`.

    >>> with Client() as client:                                    # doctest: +SKIP
    ...     job = client.submit("a red fox in the snow", num_frames=121)
    ...     print(client.wait(job.id).result_or_raise().url)

    Args:
        url: the queue, `redis://…` or `rediss://…`, or a gateway's `https://…`; default `LTXQ_URL`.
        api_key: what the gateway knows the caller by; default `LTXQ_API_KEY`.
        settings: everything else; default the environment.
        transport: another way to the queue, e.g. `ltxq.testing.MemoryTransport()`.
        owner: jobs are submitted for this owner, and only theirs are seen; None: everybody's.
            With a gateway it is whose the API key is, and not to be given.

    Every method may raise `QueueUnavailable`, within 5 seconds of a queue that is away, and 10 of a
    gateway that is there and does not answer.
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
        request: VideoRequest | str,
        /,
        *,
        idempotency_key: str | None = None,
        resent: bool | None = None,
        **fields: Any,
    ) -> Job:
        """Queue a clip: `submit("a prompt", num_frames=121)` or `submit(VideoRequest(…))`.

        Args:
            idempotency_key: 1 to 255 characters of the caller's; the same key with the same
                request gives the same job back instead of a second one. None: one is drawn.
            resent: for callers without such keys. True: the answer to the same submission was
                lost; if that arrived with False or True in the last ten minutes, its job is given
                back.

        Raises:
            InvalidRequest: with each field that is wrong, why, and the nearest right values.
            IdempotencyConflict: the key was used for another request.
            QueueFull: `LTXQ_MAX_QUEUED` jobs are waiting, or `LTXQ_MAX_QUEUED_PER_KEY` of the
                owner's.
            QueueUnavailable: with an `idempotency_key`, if the job may have been accepted all the
                same: the same request again with that key makes no second one.
        """
        if isinstance(request, str):
            request = VideoRequest.parse({"prompt": request, **fields})
        elif fields:
            raise TypeError("give a VideoRequest or a prompt with fields, not both")
        return self._submit(request, idempotency_key=idempotency_key, resent=resent)

    def get(self, job_id: str) -> Job:
        """The job as it is now, the URLs of its result signed afresh.

        Raises:
            JobNotFound
        """
        return self._own(self._transport.get(job_id))

    def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        """Those of the jobs that exist, by id; cheaper than asking for each."""
        jobs = self._transport.get_many(job_ids)
        return {job_id: job for job_id, job in jobs.items() if self._owner in (None, job.owner)}

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """The job once it has succeeded, failed or been cancelled.

        Raises:
            WaitTimeout: it has not after `timeout` seconds; it goes on.
            JobNotFound
        """
        *_, job = self.watch(job_id, timeout)
        return job

    def watch(self, job_id: str, timeout: float | None = None) -> Iterator[Job]:
        """The job now, and again at each change, as it happens; the last one is final.

        Raises:
            WaitTimeout: it is not final after `timeout` seconds; it goes on.
            JobNotFound
        """
        return self._watch(job_id, timeout, threading.Event())

    def _watch(
        self, job_id: str, timeout: float | None, unwanted: threading.Event
    ) -> Generator[Job, None, None]:
        """`watch`, which also ends soon after `unwanted` is set, from another thread."""
        end = None if timeout is None else time.monotonic() + timeout
        last: Job | None = None
        with self._transport.changes(job_id) as changes:
            away_since: float | None = None
            while True:
                try:
                    job = self.get(job_id)
                except QueueUnavailable:
                    away_since = away_since or time.monotonic()
                    if last is None or time.monotonic() - away_since > OUTAGE_PATIENCE:
                        raise
                    job = last
                else:
                    away_since = None
                # An estimate that moves with the clock is no change of the job.
                if last is None or job != last.model_copy(update={"eta_seconds": job.eta_seconds}):
                    yield job
                    last = job
                if job.finished:
                    return
                left = changes.look_after if end is None else end - time.monotonic()
                if left <= 0:
                    raise WaitTimeout(
                        f"{job_id} is still {job.state} after {timeout:g} s.",
                        hint="It goes on: ask again, or cancel it.",
                    )
                look_again = time.monotonic() + min(left, changes.look_after)
                while (rest := look_again - time.monotonic()) > 0:
                    if changes.wait(min(rest, UNWANTED_SECONDS)) or unwanted.is_set():
                        break
                if unwanted.is_set():
                    return

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once; ask a running one to stop (within a denoising step).

        A job that finishes first keeps its result; a final state stays.

        Raises:
            JobNotFound
        """
        self._check_own(job_id)
        self._transport.cancel(job_id)
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
        """Jobs in the order of their submission.

        Args:
            limit: 1 to 100.
            after: the `after` of the page before.
            order: desc: the newest first; asc: the oldest.
        """
        if not 1 <= limit <= 100:
            raise InvalidRequest("limit: must be from 1 to 100", problems=(("limit", "1 to 100"),))
        return self._transport.list(
            state=state, limit=limit, after=after, order=order, owner=self._owner
        )

    def models(self) -> dict[str, int]:
        """The models that have, or had within a week, a worker; and how many are ready now."""
        return self._transport.models()

    def check_storage(self) -> None:
        """Write, find and remove a small object where clips are kept, if that is known here.

        Raises:
            StorageUnavailable, StorageRefused
        """
        self._transport.check_storage()

    def delete(self, job_id: str) -> None:
        """Remove a finished job and its clip.

        Raises:
            JobNotFound, JobNotFinished
        """
        self._check_own(job_id)
        self._transport.delete(job_id)

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
        idempotency_key: str | None = None,
        retry_of: str | None = None,
        resent: bool | None = None,
    ) -> Job:
        if idempotency_key is not None and not _is_key(idempotency_key):
            reason = "must be text of 1 to 255 characters"
            raise InvalidRequest(
                f"idempotency_key: {reason}", problems=(("idempotency_key", reason),)
            )
        # Of what was asked for: a seed drawn anew must not make a repeated submission another.
        digest = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
        job_id = new_job_id()
        key = idempotency_key or job_id  # always one: this submission may have to be made again
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
            if not exc.sent or exc.idempotency_key == key:  # a gateway has said it
                raise
            raise QueueUnavailable.of_submission(
                exc.message, hint=exc.hint, idempotency_key=key
            ) from exc

    def _own(self, job: Job) -> Job:
        return owned(job, self._owner)

    def _check_own(self, job_id: str) -> None:
        if self._owner is not None:
            self.get(job_id)


def owned(job: Job, owner: str | None) -> Job:
    """The job, if `owner` may see it (None: everybody's); nobody else learns that it exists.

    Raises:
        JobNotFound
    """
    if owner not in (None, job.owner):
        raise not_found(job.id)
    return job


def _transport(settings: Settings, owner: str | None) -> Transport:
    if not settings.is_gateway:
        return RedisTransport(settings)
    from ltxq.client.http import HttpTransport

    if owner is not None:
        raise ConfigurationError(
            "A gateway knows the owner by the API key.", hint="Give that owner's key, and no owner."
        )
    return HttpTransport(settings)


def _is_key(key: object) -> bool:
    if not isinstance(key, str) or not 1 <= len(key) <= 255:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in key)  # UTF-8 has none


class AsyncClient:
    """`Client` for asyncio: each call runs in a thread, so nothing blocks the event loop."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        settings: Settings | None = None,
        transport: Transport | None = None,
        owner: str | None = None,
    ) -> None:
        self._client = Client(
            url, api_key=api_key, settings=settings, transport=transport, owner=owner
        )

    async def submit(
        self,
        request: VideoRequest | str,
        /,
        *,
        idempotency_key: str | None = None,
        resent: bool | None = None,
        **fields: Any,
    ) -> Job:
        """As `Client.submit`."""
        return await asyncio.to_thread(
            self._client.submit, request, idempotency_key=idempotency_key, resent=resent, **fields
        )

    async def get(self, job_id: str) -> Job:
        """As `Client.get`."""
        return await asyncio.to_thread(self._client.get, job_id)

    async def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        """As `Client.get_many`."""
        return await asyncio.to_thread(self._client.get_many, job_ids)

    async def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """As `Client.wait`."""
        return [job async for job in self.watch(job_id, timeout)][-1]

    async def watch(self, job_id: str, timeout: float | None = None) -> AsyncIterator[Job]:
        """As `Client.watch`."""
        unwanted = threading.Event()
        jobs = self._client._watch(job_id, timeout, unwanted)
        try:
            while (job := await asyncio.to_thread(next, jobs, None)) is not None:
                yield job
        finally:
            unwanted.set()
            with contextlib.suppress(ValueError):  # its thread is inside, and leaves by itself
                jobs.close()

    async def cancel(self, job_id: str) -> Job:
        """As `Client.cancel`."""
        return await asyncio.to_thread(self._client.cancel, job_id)

    async def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """As `Client.retry`."""
        return await asyncio.to_thread(self._client.retry, job_id, idempotency_key=idempotency_key)

    async def list(
        self,
        *,
        state: JobState | None = None,
        limit: int = 20,
        after: str | None = None,
        order: Order = "desc",
    ) -> JobPage:
        """As `Client.list`."""
        return await asyncio.to_thread(
            self._client.list, state=state, limit=limit, after=after, order=order
        )

    async def models(self) -> dict[str, int]:
        """As `Client.models`."""
        return await asyncio.to_thread(self._client.models)

    async def check_storage(self) -> None:
        """As `Client.check_storage`."""
        await asyncio.to_thread(self._client.check_storage)

    async def delete(self, job_id: str) -> None:
        """As `Client.delete`."""
        await asyncio.to_thread(self._client.delete, job_id)

    async def close(self) -> None:
        """As `Client.close`."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
