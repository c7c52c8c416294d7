"""The thread that talks to the queue: it submits what is wanted, cancels what no longer is, and
brings finished clips. Of the queue it knows `Client` alone.
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
    MissingExtra,
    PermanentError,
    QueueFull,
    QueueUnavailable,
    StorageRefused,
    StorageUnavailable,
    UnknownModel,
)
from ltxq.job import Job, VideoRequest
from ltxq.scope_plugin.clip import DownloadedClip
from ltxq.scope_plugin.download import download, downloader
from ltxq.scope_plugin.playlist import Playlist

if TYPE_CHECKING:
    import httpx2

    from ltxq import Client

log = logging.getLogger("ltxq.scope")

FIRST_LOOK, LAST_LOOK = 0.1, 1.0  # seconds between two looks at a job: more and more of them
FIRST_PAUSE, LAST_PAUSE = 0.5, 15.0  # seconds after an error: doubled at each, until a clip comes
MISSING_SECONDS = 1.0  # between two looks at whether LTXQ_URL is there
SAY_AGAIN_SECONDS = 60.0  # before the log repeats itself
MOST_UNWANTED = 32  # jobs that are remembered until they could be cancelled
MOST_DOWNLOADS = 5  # attempts before the clip is made again

# The same request fails the same way: it is not made again until something else is wanted.
PERMANENT = frozenset({"invalid_request", "unknown_model", "out_of_memory", "timed_out"})

NO_URL = (
    "LTXQ_URL is not set, so there is no queue to make clips. Where Scope starts, set it to the "
    "queue (redis://…) or to a gateway (https://…, with LTXQ_API_KEY)."
)
NO_KEY = "LTXQ_API_KEY is not set; a gateway that has API keys will refuse."


def connect() -> Client | None:
    """A client of the queue that the environment names; None: it names none."""
    url = os.environ.get("LTXQ_URL", "").strip()
    if not url:
        return None
    if url.startswith("http") and not os.environ.get("LTXQ_API_KEY"):
        log.warning("%s", NO_KEY)
    from ltxq import Client
    from ltxq.settings import Settings

    try:
        return Client()
    except MissingExtra:
        # LTXQ_S3_BUCKET is set, and Scope has no boto3 to sign URLs anew. Those that the workers
        # signed are fresh when a clip is fetched.
        return Client(settings=Settings(s3_bucket=None))


@dataclass(eq=False)
class Order:
    """One submission; it is sent again, under the same key, until its answer arrives."""

    request: VideoRequest
    key: str = field(default_factory=lambda: f"scope-{secrets.token_hex(16)}")
    job_id: str | None = None
    look_at: float = 0.0
    look_pause: float = FIRST_LOOK
    failed_downloads: int = 0


class Fetcher:
    """Keeps the playlist supplied. No failure ends it, only the playlist's close.

    Args:
        connect: makes the client; None while settings are missing.
    """

    def __init__(self, playlist: Playlist, connect: Callable[[], Client | None] = connect) -> None:
        self._playlist = playlist
        self._connect = connect
        self._client: Client | None = None
        self._environment: dict[str, str] = {}
        self._http: httpx2.Client | None = None
        self._orders: list[Order] = []
        self._unwanted: list[Order] = []
        self._failures = 0
        self._resume_at = 0.0  # after a failure
        self._said: tuple[str, float] = ("", 0.0)  # the last complaint in the log, and when

    def run(self) -> None:
        """The thread."""
        while not self._playlist.closed:
            self._playlist.wait_while_idle()
            seen = self._playlist.news
            self._playlist.wait_for_news(seen, self._round())
        self._leave()

    def _round(self) -> float | None:
        """Do what is due. In how many seconds to look again; None: when there is news."""
        if (pause := self._resume_at - time.monotonic()) > 0:
            return pause
        try:
            return self._do_what_is_due()
        except LtxqError as exc:
            why = str(exc)
        except Exception as exc:  # the stream goes on whatever happens here
            why = f"The Scope plugin failed ({type(exc).__name__})."
            log.debug("%s", why, exc_info=True)
        pause = min(FIRST_PAUSE * 2.0**self._failures, LAST_PAUSE)
        self._failures += 1
        self._resume_at = time.monotonic() + pause
        self._complain(why)
        return pause

    def _do_what_is_due(self) -> float | None:
        client = self._connected()
        if client is None:
            self._complain(NO_URL)
            return MISSING_SECONDS
        for order in [o for o in self._orders if not self._playlist.wanted(o.request)]:
            self._orders.remove(order)
            self._unwanted = [*self._unwanted, order][-MOST_UNWANTED:]
        self._cancel_unwanted(client)
        settles = self._submit(client)
        self._bring(client)
        now = time.monotonic()
        pauses = [order.look_at - now for order in self._orders] + ([settles] if settles else [])
        return max(0.0, min(pauses)) if pauses else None

    def _connected(self) -> Client | None:
        """The client. Another one if the settings have changed: they may have been wrong."""
        environment = {k: v for k, v in os.environ.items() if k.startswith("LTXQ_")}
        if self._client is not None and environment != self._environment:
            self._client.close()
            self._client = None
        if self._client is None:
            self._client = self._connect()
            self._environment = environment
        return self._client

    def _cancel_unwanted(self, client: Client) -> None:
        while self._unwanted:
            order = self._unwanted[0]
            try:
                # Without an answer it may be queued all the same: its key tells.
                job_id = order.job_id or self._send(client, order)
                client.cancel(job_id)
            except (PermanentError, QueueFull) as exc:
                log.debug("%s needs no cancelling: %s", order.job_id, exc)
            self._unwanted.pop(0)

    def _submit(self, client: Client) -> float:
        """Submit what is missing; returns in how many seconds a new wish will have settled."""
        request, count, settles = self._playlist.to_order([o.request for o in self._orders])
        if request is not None:
            self._orders += [Order(request) for _ in range(count)]
        for order in [order for order in self._orders if order.job_id is None]:
            try:
                order.job_id = self._send(client, order)
            except (InvalidRequest, UnknownModel) as exc:
                self._refuse(order, str(exc))
                continue
            order.look_at = time.monotonic() + order.look_pause
        return settles

    def _send(self, client: Client, order: Order) -> str:
        try:
            return client.submit(order.request, idempotency_key=order.key).id
        except QueueUnavailable as exc:  # how to submit it again safely is for others to read
            raise exc.__cause__ or exc from None

    def _bring(self, client: Client) -> None:
        due = {o.job_id: o for o in self._orders if o.job_id and o.look_at <= time.monotonic()}
        if not due:
            return
        jobs = client.get_many([job_id for job_id in due if job_id])
        for job_id, order in due.items():
            job = jobs.get(job_id or "")
            if job is None:
                self._orders.remove(order)
                raise JobNotFound(f"{job_id} is gone.", hint="Its clip is asked for again.")
            if job.finished:
                self._finish(order, job)
            else:
                order.look_pause = min(1.5 * order.look_pause, LAST_LOOK)
                order.look_at = time.monotonic() + order.look_pause

    def _finish(self, order: Order, job: Job) -> None:
        if job.result is None:
            failure = JobFailed(job.error, job.id) if job.error else JobNotFound(job.id)
            if job.error and job.error.code in PERMANENT:
                self._refuse(order, str(failure))
                return
            self._orders.remove(order)
            raise failure
        self._http = self._http or downloader()
        try:
            data = download(self._http, job.result, lambda: self._playlist.wanted(order.request))
        except StorageRefused as exc:
            self._refuse(order, str(exc))
            return
        except StorageUnavailable:
            order.failed_downloads += 1
            if order.failed_downloads == MOST_DOWNLOADS:
                self._orders.remove(order)
            raise
        self._orders.remove(order)
        if data is not None:
            self._failures = 0
            self._said = ("", 0.0)
            self._playlist.note(None)
            self._playlist.add(order.request, DownloadedClip(data))

    def _refuse(self, order: Order, why: str) -> None:
        self._orders.remove(order)
        self._complain(why)
        self._playlist.refuse(order.request, why)

    def _complain(self, why: str) -> None:
        """Say why nothing comes: once, and again after a while."""
        self._playlist.note(why)
        said, when = self._said
        if why != said or time.monotonic() > when + SAY_AGAIN_SECONDS:
            self._said = why, time.monotonic()
            log.warning("%s", why)

    def _leave(self) -> None:
        """The pipeline is gone: nobody will watch what is queued for it."""
        try:
            for order in (*self._unwanted, *self._orders):
                if order.job_id and self._client:
                    self._client.cancel(order.job_id)
        except LtxqError as exc:
            log.debug("%s", exc)
        finally:
            for connection in (self._client, self._http):
                if connection is not None:
                    connection.close()
