"""One job from claim to final state: generate, encode, upload, finish.

A Celery task is one turn on the GPU: it ends when the job's frames are decoded. Encoding and
uploading go on beside the next job.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltxq.errors import JobError, LtxqError
from ltxq.job import Stage, VideoResult
from ltxq.ledger import CANCELLED, Claim, Ledger
from ltxq.links import Links
from ltxq.logs import about_job
from ltxq.settings import Settings
from ltxq.storage import Storage
from ltxq_worker.encode.clip import DiskFull, Encoded, Encoding, clip_folder, full_disk_named
from ltxq_worker.pipeline import DeviceBroken, Pipeline
from ltxq_worker.pipeline.thread import GpuThread
from ltxq_worker.process.attempt import Attempt, Cancelled, ClaimLost
from ltxq_worker.process.job_events import JobEvents
from ltxq_worker.process.stats import WorkerStats
from ltxq_worker.process.upload import Uploader

log = logging.getLogger("ltxq.worker")

LISTEN_SECONDS = 1.0  # between two checks whether to go on listening
FULL_DISK_SECONDS = 30.0  # without new jobs after the spool's disk was full


@dataclass(kw_only=True)
class Runner:
    """Runs jobs, one turn after the other. Each job has a thread, which encodes and uploads; all
    GPU work is done on one other thread, `gpu`.
    """

    ledger: Ledger
    storage: Storage
    pipeline: Pipeline
    settings: Settings
    worker: str  # this worker's stable name
    spool: Path  # this worker's folder for clips until they are uploaded
    events: JobEvents = field(default_factory=JobEvents)
    stats: WorkerStats = field(default_factory=WorkerStats)
    gpu: GpuThread = field(default_factory=GpuThread)  # the thread that loaded `pipeline`
    end_process: Callable[[], None] = lambda: os._exit(1)  # the supervisor gives the jobs back

    def __post_init__(self) -> None:
        self._attempts: set[Attempt] = set()
        self._threads = ThreadPoolExecutor(1 + self.settings.spool_jobs, thread_name_prefix="job")
        self._spool_places = threading.Semaphore(self.settings.spool_jobs)
        self._uploader = Uploader(
            self.storage,
            self.pipeline,
            self.settings,
            self.stats,
            self._spool_is_full,
            Links.from_settings(self.settings, self.ledger.link_secret),
        )
        self._rests_until = 0.0  # of the monotonic clock: no job is claimed before
        self._closed = threading.Event()
        self._ending = False  # jobs are given back, and the process ends in a moment

    def take_turn(self) -> str | None:
        """Claim the first waiting job and run it until the next job may have the GPU: until this
        job has freed the GPU and holds one of the spool's places.

        Returns:
            The job's id, if there was one.
        """
        if self._closed.wait(max(0.0, self._rests_until - time.monotonic())):
            return None
        claim = self.claim()
        if claim is None:
            return None
        gpu_free = threading.Event()

        def ended(job: Future[Any]) -> None:
            self._spool_places.release()
            gpu_free.set()
            if error := job.exception():
                log.error("A job's thread ended with an unexpected error", exc_info=error)

        self._threads.submit(self.run, claim, gpu_free.set).add_done_callback(ended)
        gpu_free.wait()
        self._spool_places.acquire()
        return claim.job_id

    def close(self) -> None:
        """Claim no more jobs."""
        self._closed.set()

    def join(self) -> None:
        """Wait for the jobs that are still being encoded or uploaded."""
        self._threads.shutdown()

    def claim(self) -> Claim | None:
        """Claim the first waiting job, if there is one."""
        try:
            return self.ledger.claims.take(self.pipeline.model, self.worker)
        except LtxqError as exc:
            log.warning("No job is claimed; a supervisor wakes a worker again: %s", exc)
            return None

    def run(
        self, claim: Claim, gpu_free: Callable[[], None] = lambda: None
    ) -> VideoResult | JobError | None:
        """Bring a job to a final state.

        Args:
            gpu_free: called when the job no longer needs the GPU.

        Returns:
            The outcome that stands; None if the claim was lost on the way.
        """
        with about_job(claim.job_id):
            log.info("%s claimed (attempt %d)", claim.job_id, claim.attempt)
            try:
                return self._run(claim, gpu_free)
            finally:
                self.events.ended(claim)

    def _run(self, claim: Claim, gpu_free: Callable[[], None]) -> VideoResult | JobError | None:
        attempt = Attempt(
            self.ledger,
            claim,
            lease=self.settings.lease,
            stats=self.stats,
            events=self.events,
            gpu_free=gpu_free,
        )
        self._attempts.add(attempt)
        try:
            if self._ending:  # claimed while the others were given back
                self.give_back()
            with attempt:
                return self._finish(attempt, self._outcome(attempt))
        except ClaimLost:
            log.warning("%s was deleted, or lost to another claim; dropped", claim.job_id)
            self._remove_objects(claim)
            return None
        except DiskFull as exc:
            self._postpone(claim, exc)
            return None
        except LtxqError as exc:  # Redis was away for longer than LTXQ_UPLOAD_PATIENCE
            log.error("%s ended, and its outcome is not recorded: %s", claim.job_id, exc)
            return None
        finally:
            self._attempts.discard(attempt)

    def listen(self, until: threading.Event) -> None:
        """Stop jobs the moment they are cancelled. Runs in a separate thread.

        Progress reports learn of a cancellation too, but up to half a second later, for which the
        GPU would work in vain.
        """
        while not until.is_set():
            try:
                with self.ledger.changes.cancellations(self.worker) as cancellations:
                    while not until.is_set():
                        if job_id := cancellations.next(LISTEN_SECONDS):
                            self._cancel(job_id)
            except LtxqError as exc:
                log.info(
                    "Cancellations take up to half a second longer until Redis is back: %s", exc
                )
                until.wait(LISTEN_SECONDS)

    def _cancel(self, job_id: str) -> None:
        for attempt in list(self._attempts):
            if attempt.claim.job_id == job_id:
                attempt.cancel()

    def give_back(self) -> None:
        """Queue all jobs of this worker again, uncharged, because its process ends.

        From now on it claims no jobs and records no failures: an attempt may fail only because its
        spool was removed.
        """
        self._ending = True  # before the attempts are listed: a later one gives itself back
        self.close()
        self.events.given_back(
            *[self.ledger.claims.give_back(a.claim, charged=False) for a in list(self._attempts)]
        )

    def _outcome(self, attempt: Attempt) -> VideoResult | JobError:
        try:
            with clip_folder(self.spool) as folder, full_disk_named(self.spool):
                encoded = self._make(attempt, Path(folder))
                return self._uploader.upload(attempt, encoded, Path(folder))
        except (ClaimLost, DiskFull):
            raise
        except Cancelled:
            return CANCELLED
        except LtxqError as exc:
            log.warning("%s failed: %s", attempt.claim.job_id, exc)
            return exc.as_job_error()
        except Exception as exc:
            log.exception("%s failed", attempt.claim.job_id)
            return JobError(
                code="internal",
                message=f"The worker failed with an unexpected error ({type(exc).__name__}).",
                hint=f"The log of {self.worker} has the details.",
                retryable=True,
            )
        finally:
            attempt.free_gpu()  # it may have ended before its GPU work

    def _make(self, attempt: Attempt, folder: Path) -> Encoded:
        with Encoding(attempt.claim.request, folder) as encoding:
            on_device = self.gpu.run(lambda: self._generate(attempt, encoding))
            encoded = encoding.finish(attempt.report)
        attempt.encoded(on_device)
        return encoded

    def _generate(self, attempt: Attempt, encoding: Encoding) -> dict[Stage, float]:
        """Make the clip, from the prompt to the last frame. Runs on the GPU's thread.

        Returns:
            Seconds by stage, on the device's own clock.
        """
        try:
            attempt.report("encode_text", 0, 1)
            clip = self.pipeline.generate(attempt.claim.request, attempt.report)
            encoding.take(clip)
        except DeviceBroken as exc:
            # At once, while the ledger still says that this job holds the GPU.
            log.error("%s: %s. This process is replaced.", attempt.claim.job_id, exc)
            self.end_process()
            raise
        finally:
            attempt.free_gpu()
        return clip.timings

    def _postpone(self, claim: Claim, exc: DiskFull) -> None:
        """Give a job back, since another worker's disk may have room. The attempt is charged, so
        the job does not return for ever.
        """
        log.error(
            "%s is given back, and no job taken for %g s: %s", claim.job_id, FULL_DISK_SECONDS, exc
        )
        self._rests_until = time.monotonic() + FULL_DISK_SECONDS
        try:
            self.events.given_back(
                self.ledger.claims.give_back(claim, charged=True, why=exc.as_job_error())
            )
        except LtxqError as unavailable:
            log.warning("%s: %s The sweep does it.", claim.job_id, unavailable)

    def _spool_is_full(self) -> bool:
        attempts = list(self._attempts)
        return len(attempts) > self.settings.spool_jobs and not any(a.on_gpu for a in attempts)

    def _finish(
        self, attempt: Attempt, outcome: VideoResult | JobError
    ) -> VideoResult | JobError | None:
        claim = attempt.claim
        if self._ending and isinstance(outcome, JobError):
            raise ClaimLost(claim.job_id)
        # For a finished clip the worker waits for Redis as long as for storage.
        if not self.ledger.claims.finish(claim, outcome, patience=self.settings.upload_patience):
            raise ClaimLost(claim.job_id)
        self.events.finished(claim)
        if isinstance(outcome, VideoResult):
            log.info("%s succeeded in %.1f s", claim.job_id, attempt.seconds())
            self.stats.finished(outcome.timings)
        else:
            log.info("%s ended: %s", claim.job_id, outcome.code)
        return outcome

    def _remove_objects(self, claim: Claim) -> None:
        """Delete what was uploaded under a lost claim; the ledger may not know of it."""
        try:
            for reason in self.storage.delete_clips([claim.objects]).values():
                log.warning("Objects under %s are left behind: %s", claim.objects, reason)
        except LtxqError as exc:
            log.warning("Objects under %s are left behind: %s", claim.objects, exc)
