"""One attempt at a job: keeps the lease, reports progress, and learns when the job must stop.
runner.py does the work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Self

from ltxq.errors import LtxqError, TimedOut
from ltxq.job import Progress, Stage
from ltxq.ledger import Claim, Ledger, Standing
from ltxq.logs import about_job
from ltxq_worker.process.job_events import JobEvents
from ltxq_worker.process.stats import WorkerStats

log = logging.getLogger("ltxq.worker")

REPORT_SECONDS = 0.2  # between two reports, at least
LISTEN_SECONDS = 0.5  # between two reports, at most: how late a cancellation may be noticed

# About the share of each stage in a job's time, so that a progress bar moves evenly.
SHARES: dict[Stage, float] = {
    "encode_text": 0.05,
    "denoise": 0.6,
    "decode": 0.2,
    "encode": 0.05,
    "upload": 0.1,
}


def progress_at(stage: Stage, step: int, steps: int) -> Progress:
    """`step` of `steps` of a stage as progress of the whole job."""
    before = sum(SHARES[s] for s in list(SHARES)[: list(SHARES).index(stage)])
    fraction = round(before + SHARES[stage] * step / steps, 4)
    return Progress(stage=stage, step=step, steps=steps, fraction=min(fraction, 1.0))


class ClaimLost(Exception):
    """Another worker may have the job: this attempt must write nothing more."""


class Cancelled(Exception):
    """A client has cancelled the job."""


class Attempt:
    """A claim that is being worked on. A context manager: its two threads run inside `with`.

    One thread only renews the lease, so neither a slow report nor a busy GPU can cost it. While
    Redis is away both threads keep trying and the job goes on: its claim may still stand when
    Redis is back.
    """

    def __init__(
        self,
        ledger: Ledger,
        claim: Claim,
        *,
        lease: float,
        stats: WorkerStats | None = None,
        events: JobEvents | None = None,
        gpu_free: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        gpu_free: called when the job no longer needs the GPU.
        """
        self.claim = claim
        self.timings: dict[str, float] = {"queued": round(claim.waited, 3)}  # seconds by stage
        self._ledger = ledger
        self._lease = lease
        self._stats = stats or WorkerStats()
        self._events = events or JobEvents()
        self._began = self._stage_began = time.monotonic()
        self._deadline: float | None = self._began + claim.request.timeout
        self._progress = Progress(stage="encode_text", step=0, steps=1, fraction=0)
        self._gpu_free = gpu_free
        self.on_gpu = True
        self._standing: Standing = "held"
        self._changed = threading.Event()  # there is progress to report
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._with_log,
                args=(act,),
                name=f"{name}-{claim.job_id}",
                daemon=True,
            )
            for name, act in (("lease", self._keep_lease), ("report", self._send_reports))
        ]

    def __enter__(self) -> Self:
        self._stats.begins()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._changed.set()
        for thread in self._threads:
            thread.join()
        self._stats.ends()

    def report(self, stage: Stage, step: int, steps: int) -> None:
        """Note that `step` of `steps` of `stage` are done; raise if the job must stop.

        Raises:
            ClaimLost, Cancelled, TimedOut
        """
        if stage != self._progress.stage:
            self._end_stage()
        self._progress = progress_at(stage, step, steps)
        self._changed.set()
        self.check()

    def check(self) -> None:
        """Raise if the job must stop.

        Raises:
            ClaimLost, Cancelled, TimedOut
        """
        if self._standing == "lost":
            raise ClaimLost(self.claim.job_id)
        if self._standing == "cancel":
            raise Cancelled(self.claim.job_id)
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TimedOut(
                f"The job took longer than its timeout of {self.claim.request.timeout} s "
                f"(in {self._progress.stage}, {self._progress.step} of {self._progress.steps}).",
                hint="Allow more with `timeout`, or ask for fewer frames or a smaller size.",
            )

    def cancel(self) -> None:
        """Make the job stop at its next step."""
        self._learn("cancel")

    def free_gpu(self) -> None:
        """Note that the job no longer holds the GPU: from now on a crash is not charged to it."""
        if not self.on_gpu:
            return
        self.on_gpu = False
        self.timings["gpu"] = round(self.seconds(), 4)  # from the claim on
        self._stats.frees_gpu()
        self._gpu_free()
        self._changed.set()

    def encoded(self, on_device: dict[Stage, float]) -> None:
        """Note that the clip is encoded: the request's timeout no longer applies.

        Args:
            on_device: seconds by stage on the device's own clock. The thread only queued that
                work, so its own times for these stages are replaced.
        """
        self._deadline = None
        self.timings |= {stage: round(seconds, 4) for stage, seconds in on_device.items()}

    def seconds(self) -> float:
        """Seconds since the claim."""
        return time.monotonic() - self._began

    def end_timings(self) -> dict[str, float]:
        """Seconds by stage, and in all."""
        self._end_stage()
        return self.timings | {"total": round(self.seconds(), 3)}

    def _end_stage(self) -> None:
        now = time.monotonic()
        stage = self._progress.stage
        self.timings[stage] = round(self.timings.get(stage, 0) + now - self._stage_began, 3)
        self._stage_began = now

    def _with_log(self, act: Callable[[], None]) -> None:
        with about_job(self.claim.job_id):
            act()

    def _keep_lease(self) -> None:
        while not self._ended.wait(self._lease / 5):
            try:
                self._learn(self._ledger.claims.renew(self.claim))
            except LtxqError as exc:
                self._stats.count("lease_failures")
                log.warning("%s: the lease is not renewed: %s", self.claim.job_id, exc)

    def _send_reports(self) -> None:
        self._events.started(self.claim)
        away = False
        while not self._ended.wait(REPORT_SECONDS):
            self._changed.wait(LISTEN_SECONDS)
            self._changed.clear()
            if self._ended.is_set():
                return
            try:
                self._learn(
                    self._ledger.claims.report(self.claim, self._progress, on_gpu=self.on_gpu)
                )
                self._events.progressed(self.claim, self._progress)
                away = False
            except LtxqError as exc:
                if not away:
                    log.warning("%s: progress is not reported: %s", self.claim.job_id, exc)
                away = True

    def _learn(self, standing: Standing) -> None:
        if self._standing != "lost":  # a lost claim stays lost
            self._standing = standing
