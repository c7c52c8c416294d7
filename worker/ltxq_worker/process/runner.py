"""One job from claim to final state: generate, encode, upload, finish. A turn, which is what a
Celery task is, ends as soon as the frames are decoded; the rest goes on beside the next job.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from ltxq.errors import JobError, LtxqError, StorageUnavailable
from ltxq.job import Stage, VideoResult
from ltxq.ledger import CANCELLED, Claim, Ledger
from ltxq.logs import about_job
from ltxq.settings import Settings
from ltxq.storage import Storage
from ltxq_worker.encode.clip import DiskFull, Encoded, Encoding, full_disk_named, write_sidecar
from ltxq_worker.pipeline import DeviceBroken, Pipeline
from ltxq_worker.pipeline.thread import GpuThread
from ltxq_worker.process.attempt import Attempt, Cancelled, ClaimLost
from ltxq_worker.process.job_events import JobEvents
from ltxq_worker.process.stats import WorkerStats

log = logging.getLogger("ltxq.worker")

LISTEN_SECONDS = 1.0  # between looks at whether to go on listening
FULL_DISK_SECONDS = 30.0  # without new jobs after the spool's disk was full


@dataclass(kw_only=True)
class Runner:
    """What a worker process needs to run jobs, one turn after the other. Each job has a thread,
    which encodes, uploads and waits; what needs the GPU is done on a thread of its own.
    """

    ledger: Ledger
    storage: Storage
    pipeline: Pipeline
    settings: Settings
    worker: str  # this worker's stable name
    spool: Path  # this worker's own folder for clips on their way to storage
    events: JobEvents = field(default_factory=JobEvents)
    stats: WorkerStats = field(default_factory=WorkerStats)
    gpu: GpuThread = field(default_factory=GpuThread)  # the one `pipeline` was loaded on
    end_process: Callable[[], None] = lambda: os._exit(1)  # the supervisor sees to the jobs

    def __post_init__(self) -> None:
        self._attempts: set[Attempt] = set()
        self._threads = ThreadPoolExecutor(1 + self.settings.spool_jobs, thread_name_prefix="job")
        self._spool_places = threading.Semaphore(self.settings.spool_jobs)
        self._said_full = False  # that no more jobs are taken, for storage does not answer
        self._rests_until = 0.0  # on the monotonic clock
        self._closed = threading.Event()

    def take_turn(self) -> str | None:
        """Claim the job that is first and run it, until the next one may have the GPU: this one
        does not need it any more, and has one of the spool's places.

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
        """Claim no more, for good."""
        self._closed.set()

    def join(self) -> None:
        """Wait for the jobs that are still encoded or uploaded."""
        self._threads.shutdown()

    def claim(self) -> Claim | None:
        """The job that is first, if one waits."""
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
            gpu_free: told when the job does not need the GPU any more.

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
            with attempt:
                return self._finish(attempt, self._outcome(attempt))
        except ClaimLost:
            log.warning("%s was lost to another claim; dropped", claim.job_id)
            self._remove_objects(claim)
            return None
        except DiskFull as exc:
            self._postpone(claim, exc)
            return None
        except LtxqError as exc:  # Redis was away for longer than a finished clip is worth
            log.error("%s ended, and its outcome is not recorded: %s", claim.job_id, exc)
            return None
        finally:
            self._attempts.discard(attempt)

    def listen(self, until: threading.Event) -> None:
        """Hear of cancelled jobs the moment they are; in a thread of its own.

        Reports hear of them as well, up to half a second later: this is for the GPU's sake.
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
        """Queue again all jobs of this worker, uncharged: it is going away."""
        self.events.given_back(
            *[self.ledger.claims.give_back(a.claim, charged=False) for a in list(self._attempts)]
        )

    def _outcome(self, attempt: Attempt) -> VideoResult | JobError:
        try:
            with (
                full_disk_named(self.spool),
                tempfile.TemporaryDirectory(dir=self.spool, prefix="clip-") as folder,
            ):
                encoded = self._make(attempt, Path(folder))
                return self._upload(attempt, encoded, Path(folder))
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
            attempt.free_gpu()  # where its turn did not come

    def _make(self, attempt: Attempt, folder: Path) -> Encoded:
        with Encoding(attempt.claim.request, folder) as encoding:
            on_device = self.gpu.run(lambda: self._generate(attempt, encoding))
            encoded = encoding.finish(attempt.report)
        attempt.encoded(on_device)
        return encoded

    def _generate(self, attempt: Attempt, encoding: Encoding) -> dict[Stage, float]:
        """On the GPU's thread: from the prompt to the last frame.

        Returns:
            Seconds by stage, on the device's own clock.
        """
        try:
            attempt.report("encode_text", 0, 1)
            clip = self.pipeline.generate(attempt.claim.request, attempt.report)
            encoding.take(clip)
        except DeviceBroken as exc:
            # At once: the ledger must still know that it was this job that had the GPU.
            log.error("%s: %s. This process is replaced.", attempt.claim.job_id, exc)
            self.end_process()
            raise
        finally:
            attempt.free_gpu()
        return clip.timings

    def _upload(self, attempt: Attempt, encoded: Encoded, folder: Path) -> VideoResult:
        claim, request = attempt.claim, attempt.claim.request
        assert request.seed is not None  # noqa: S101  the ledger records it resolved
        sidecar = folder / "clip.json"
        keys = self.storage.clip_keys(claim.objects)
        # The clip last: where it is, the rest is.
        files = [
            (keys.poster, encoded.poster, "image/jpeg"),
            (keys.spritesheet, encoded.spritesheet, "image/jpeg"),
            (keys.sidecar, sidecar, "application/json"),
            (keys.clip, encoded.mp4, "video/mp4"),
        ]
        attempt.report("upload", 0, len(files))
        write_sidecar(
            sidecar,
            request=request,
            seed=request.seed,
            model=self.pipeline.model,
            versions=self.pipeline.versions,
            timings=attempt.timings,
            encoded=encoded,
            job_id=claim.job_id,
        )
        for done, (key, path, content_type) in enumerate(files, start=1):
            self._put(attempt, key, path, content_type)
            attempt.report("upload", done, len(files))
        return VideoResult(
            **self.storage.clip_urls(keys.clip, request.expires_in),
            key=keys.clip,
            sha256=encoded.sha256,
            size=encoded.size,
            width=encoded.width,
            height=encoded.height,
            num_frames=encoded.num_frames,
            frame_rate=encoded.frame_rate,
            duration=encoded.duration,
            seed=request.seed,
            model=self.pipeline.model,
            timings=attempt.end_timings(),
        )

    def _postpone(self, claim: Claim, exc: DiskFull) -> None:
        """Another worker may have room. It counts as a lost one: no job is made for ever."""
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

    def _put(self, attempt: Attempt, key: str, path: Path, content_type: str) -> None:
        def put() -> None:
            attempt.check()
            self.storage.put(key, path, content_type)

        def wait(state: Any) -> None:
            log.warning("%s waits for storage: %s", attempt.claim.job_id, _error(state))
            self.stats.count("storage_failures")
            if self._spool_is_full() and not self._said_full:
                self._said_full = True
                log.error(
                    "No more jobs are taken: the spool holds as many finished clips as "
                    "LTXQ_SPOOL_JOBS=%d allows. They are kept, and uploaded when storage answers.",
                    self.settings.spool_jobs,
                )

        Retrying(
            retry=retry_if_exception_type(StorageUnavailable),
            stop=stop_after_delay(self.settings.upload_patience),
            wait=wait_exponential_jitter(multiplier=0.5, max=30),
            before_sleep=wait,
            reraise=True,
        )(put)
        if self._said_full:
            self._said_full = False
            log.info("Storage answers: jobs are taken again.")

    def _spool_is_full(self) -> bool:
        attempts = list(self._attempts)
        return len(attempts) > self.settings.spool_jobs and not any(a.on_gpu for a in attempts)

    def _finish(
        self, attempt: Attempt, outcome: VideoResult | JobError
    ) -> VideoResult | JobError | None:
        claim = attempt.claim
        # A finished clip is worth waiting for Redis as long as for storage.
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
        """What was uploaded under a claim that was lost: the ledger may not know of it."""
        try:
            self.storage.delete_clips([claim.objects])
        except LtxqError as exc:
            log.warning("Objects under %s are left behind: %s", claim.objects, exc)


def _error(state: Any) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
