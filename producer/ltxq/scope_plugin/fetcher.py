"""The fetcher thread: submits a playlist's request, cancels outdated jobs and downloads clips.

It reaches the queue through `Client` only.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ltxq.errors import (
    InvalidRequest,
    JobFailed,
    JobNotFound,
    LtxqError,
    PermanentError,
    QueueFull,
    QueueUnavailable,
    StorageRefused,
    StorageUnavailable,
    UnknownModel,
)
from ltxq.job import Job, VideoRequest
from ltxq.scope_plugin.clip import DownloadedClip
from ltxq.scope_plugin.connection import NO_URL
from ltxq.scope_plugin.download import download, download_client
from ltxq.scope_plugin.playlist import REJECTED, Playlist

if TYPE_CHECKING:
    import httpx2

    from ltxq import Client

log = logging.getLogger("ltxq.scope")

FIRST_POLL, LAST_POLL = 0.1, 1.0  # seconds between two polls of a job: grows by half each time
FIRST_RETRY, LAST_RETRY = 0.5, 15.0  # seconds after an error: doubles each time until a clip comes
NO_URL_SECONDS = 1.0  # between two looks for LTXQ_URL
REPEAT_LOG_SECONDS = 60.0  # before the same error is logged again
MAX_OUTDATED = 32  # jobs to cancel later, while the queue is unreachable
MAX_DOWNLOADS = 5  # attempts before the clip is generated again

# The same request would fail the same way, so it is not submitted again.
PERMANENT = frozenset({"invalid_request", "unknown_model", "out_of_memory", "timed_out"})


@dataclass(eq=False)
class Submission:
    """One job, from its first submission until its clip is downloaded. It is submitted again under
    the same key until the queue answers.
    """

    request: VideoRequest
    key: str = field(default_factory=lambda: f"scope-{secrets.token_hex(16)}")
    job_id: str = ""  # empty: the queue has not answered yet
    poll_at: float = 0.0
    poll_pause: float = FIRST_POLL
    failed_downloads: int = 0


class Fetcher:
    """Supplies a playlist with clips. Errors do not end it, only the playlist's `close` does.

    Args:
        connect: makes the client; None while LTXQ_URL is not set.
    """

    def __init__(self, playlist: Playlist, connect: Callable[[], Client | None]) -> None:
        self._playlist = playlist
        self._connect = connect
        self._client: Client | None = None
        self._environment: dict[str, str] = {}
        self._http: httpx2.Client | None = None
        self._submissions: list[Submission] = []
        self._outdated: list[Submission] = []  # to be cancelled
        self._failures = 0
        self._retry_at = 0.0  # after an error
        self._last_logged: tuple[str, float] = ("", 0.0)  # error, and when it was logged

    def run(self) -> None:
        """The thread's function."""
        while not self._playlist.closed:
            self._playlist.wait_while_idle()
            changes = self._playlist.changes
            self._playlist.wait_for_change(changes, self._update())
        self._leave()

    def _update(self) -> float | None:
        """Do what is due. Returns the seconds until the next update; None: wait for a change."""
        if (pause := self._retry_at - time.monotonic()) > 0:
            return pause
        try:
            return self._update_jobs()
        except LtxqError as exc:
            error = str(exc)
        except Exception as exc:  # the stream must go on
            error = (
                f"The Scope plugin failed ({type(exc).__name__}). It tries again. "
                "For the traceback set the log level of ltxq.scope to DEBUG."
            )
            log.debug("%s", error, exc_info=True)
        pause = min(FIRST_RETRY * 2.0**self._failures, LAST_RETRY)
        self._failures += 1
        self._retry_at = time.monotonic() + pause
        self._report(error)
        return pause

    def _update_jobs(self) -> float | None:
        client = self._connected()
        if client is None:
            self._report(NO_URL)
            return NO_URL_SECONDS
        for submission in list(self._submissions):
            if not self._playlist.is_requested(submission.request):
                self._submissions.remove(submission)
                self._outdated = [*self._outdated, submission][-MAX_OUTDATED:]
        self._cancel_outdated(client)
        debounce = self._playlist.debounce_left()  # before `_submit`: it may end in between
        self._submit(client)
        self._poll(client)
        now = time.monotonic()
        pauses = [submission.poll_at - now for submission in self._submissions]
        if debounce:
            pauses.append(debounce)
        return max(0.0, min(pauses)) if pauses else None

    def _connected(self) -> Client | None:
        """The client; a new one if a setting has changed since, as a wrong one may be corrected."""
        environment = {k: v for k, v in os.environ.items() if k.startswith("LTXQ_")}
        if self._client is not None and environment != self._environment:
            self._client.close()
            self._client = None
        if self._client is None:
            self._client = self._connect()
            self._environment = environment
        return self._client

    def _cancel_outdated(self, client: Client) -> None:
        while self._outdated:
            submission = self._outdated[0]
            try:
                # A submission without an answer may have reached the queue. Submitting it again
                # under its key returns that job.
                job_id = submission.job_id or self._send(client, submission)
                client.cancel(job_id)
            except (PermanentError, QueueFull) as exc:
                log.debug("%s needs no cancelling: %s", submission.job_id, exc)
            self._outdated.pop(0)

    def _submit(self, client: Client) -> None:
        awaited = [submission.request for submission in self._submissions]
        self._submissions += map(Submission, self._playlist.to_submit(awaited))
        for submission in [s for s in self._submissions if not s.job_id]:
            try:
                submission.job_id = self._send(client, submission)
            except (InvalidRequest, UnknownModel) as exc:
                self._reject(submission, str(exc))
                continue
            submission.poll_at = time.monotonic() + submission.poll_pause

    def _send(self, client: Client, submission: Submission) -> str:
        try:
            return client.submit(submission.request, idempotency_key=submission.key).id
        except QueueUnavailable as exc:
            # `submit` adds advice on submitting again safely; the plugin does that by itself.
            raise exc.__cause__ or exc from None

    def _poll(self, client: Client) -> None:
        now = time.monotonic()
        due = {s.job_id: s for s in self._submissions if s.job_id and s.poll_at <= now}
        if not due:
            return
        jobs = client.get_many(list(due))
        for job_id, submission in due.items():
            job = jobs.get(job_id)
            if job is None:
                self._submissions.remove(submission)
                raise JobNotFound(f"Job {job_id} was deleted.", hint="The plugin submits it again.")
            if job.finished:
                self._finish(submission, job)
            else:
                submission.poll_pause = min(1.5 * submission.poll_pause, LAST_POLL)
                submission.poll_at = time.monotonic() + submission.poll_pause

    def _finish(self, submission: Submission, job: Job) -> None:
        if job.result is None:
            failure = JobFailed(job.error, job.id) if job.error else JobNotFound(job.id)
            if job.error and job.error.code in PERMANENT:
                self._reject(submission, str(failure))
                return
            self._submissions.remove(submission)
            raise failure
        self._http = self._http or download_client()
        request = submission.request
        try:
            data = download(self._http, job.result, lambda: self._playlist.is_requested(request))
        except StorageRefused as exc:
            self._reject(submission, str(exc))
            return
        except StorageUnavailable:
            submission.failed_downloads += 1
            if submission.failed_downloads == MAX_DOWNLOADS:
                self._submissions.remove(submission)
            raise
        self._submissions.remove(submission)
        if data is not None:
            self._failures = 0
            self._last_logged = ("", 0.0)
            self._playlist.last_error = None
            self._playlist.add_clip(request, DownloadedClip(data))

    def _reject(self, submission: Submission, error: str) -> None:
        self._submissions.remove(submission)
        error = f"{error} {REJECTED}"
        self._report(error)
        self._playlist.reject(submission.request, error)

    def _report(self, error: str) -> None:
        """Set the playlist's error. Log it, but the same error only once a minute."""
        self._playlist.last_error = error
        logged, at = self._last_logged
        if error != logged or time.monotonic() > at + REPEAT_LOG_SECONDS:
            self._last_logged = error, time.monotonic()
            log.warning("%s", error)

    def _leave(self) -> None:
        """Cancel the jobs and close the connections."""
        try:
            for submission in (*self._outdated, *self._submissions):
                if submission.job_id and self._client:
                    self._client.cancel(submission.job_id)
        except LtxqError as exc:
            log.debug("%s", exc)
        finally:
            for connection in (self._client, self._http):
                if connection is not None:
                    connection.close()
