"""Uploads finished clips. While the storage is away, clips wait in the spool."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from ltxq.download_name import download_name
from ltxq.errors import QueueUnavailable, StorageUnavailable
from ltxq.job import VideoResult
from ltxq.links import Links
from ltxq.settings import Settings
from ltxq.storage import Storage
from ltxq_worker.encode.clip import Encoded, write_sidecar
from ltxq_worker.pipeline import Pipeline
from ltxq_worker.process.attempt import Attempt
from ltxq_worker.process.stats import WorkerStats

log = logging.getLogger("ltxq.worker")

T = TypeVar("T")


class Uploader:
    """Puts the files of a clip into the bucket. Thread-safe."""

    def __init__(
        self,
        storage: Storage,
        pipeline: Pipeline,
        settings: Settings,
        stats: WorkerStats,
        spool_is_full: Callable[[], bool],
        links: Links | None,
    ) -> None:
        self._storage = storage
        self._links = links
        self._pipeline = pipeline
        self._settings = settings
        self._stats = stats
        self._spool_is_full = spool_is_full
        self._said_full = False  # whether the log says that no more jobs are taken

    def upload(self, attempt: Attempt, encoded: Encoded, folder: Path) -> VideoResult:
        """Upload a clip with its poster, spritesheet and sidecar; the files are in `folder`.

        Raises:
            ClaimLost, Cancelled: while it waited for the storage.
            StorageUnavailable: for longer than LTXQ_UPLOAD_PATIENCE.
            StorageRefused
        """
        claim, request = attempt.claim, attempt.claim.request
        assert request.seed is not None  # noqa: S101  the ledger records it resolved
        sidecar = folder / "clip.json"
        keys = self._storage.clip_keys(claim.objects)
        # The clip comes last: where a clip exists, its other files exist too.
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
            model=self._pipeline.model,
            versions=self._pipeline.versions,
            timings=attempt.timings,
            encoded=encoded,
            job_id=claim.job_id,
        )
        name = download_name(request.prompt, request.seed)
        for done, (key, path, content_type) in enumerate(files, start=1):
            put = partial(self._storage.put, key, path, content_type)
            self._patiently(attempt, partial(put, name=name) if key == keys.clip else put)
            attempt.report("upload", done, len(files))
        # This may wait too: for the source of the storage's credentials, or Redis.
        until = datetime.now(UTC) + timedelta(seconds=self._settings.retention)
        sign = partial(self._storage.clip_urls, keys.clip, request.expires_in, name, until)
        if self._links is not None:
            sign = partial(self._links.urls, claim.job_id, request.expires_in, until)
        return VideoResult(
            **self._patiently(attempt, sign),
            key=keys.clip,
            sha256=encoded.sha256,
            size=encoded.size,
            width=encoded.width,
            height=encoded.height,
            num_frames=encoded.num_frames,
            frame_rate=encoded.frame_rate,
            duration=encoded.duration,
            seed=request.seed,
            model=self._pipeline.model,
            timings=attempt.end_timings(),
        )

    def _patiently(self, attempt: Attempt, call: Callable[[], T]) -> T:
        def once() -> T:
            attempt.check()
            return call()

        def before_retry(state: Any) -> None:
            error = state.outcome.exception() if state.outcome else None
            what = "the queue" if isinstance(error, QueueUnavailable) else "storage"
            log.warning("%s waits for %s: %s", attempt.claim.job_id, what, error)
            if what == "storage":
                self._stats.count("storage_failures")
            if self._spool_is_full() and not self._said_full:
                self._said_full = True
                log.error(
                    "No more jobs are taken: the spool holds as many finished clips as "
                    "LTXQ_SPOOL_JOBS=%d allows. They are kept, and uploaded when storage answers.",
                    self._settings.spool_jobs,
                )

        done = Retrying(
            retry=retry_if_exception_type((StorageUnavailable, QueueUnavailable)),
            stop=stop_after_delay(self._settings.upload_patience),
            wait=wait_exponential_jitter(multiplier=0.5, max=30),
            before_sleep=before_retry,
            reraise=True,
        )(once)
        if self._said_full:
            self._said_full = False
            log.info("Storage answers: jobs are taken again.")
        return done
