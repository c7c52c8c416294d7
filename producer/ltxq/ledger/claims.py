"""The right to run a job: taken, renewed, given back, and ended with the job's final state."""

from __future__ import annotations

import logging
import secrets

from pydantic import BaseModel, ValidationError

from ltxq.errors import JobError
from ltxq.job import Progress, VideoRequest, VideoResult
from ltxq.ledger.connection import PATIENCE
from ltxq.ledger.records import (
    CANCELLED,
    EXPIRED,
    WORKER_LOST,
    Claim,
    Returned,
    RunningJob,
    Standing,
    queue_name,
    read_returned,
    read_timeout,
    unreadable,
)
from ltxq.ledger.script import Script
from ltxq.settings import Settings

log = logging.getLogger("ltxq")


class Claims:
    """What workers, and the supervisors of workers that died, do with claims."""

    def __init__(self, script: Script, settings: Settings) -> None:
        self._script = script
        self._lease = int(settings.lease * 1000)
        self._retention = int(settings.retention * 1000)
        self._max_lost = settings.max_lost

    # --- a worker's -----------------------------------------------------------------------

    def take(self, model: str, worker: str, *, nonce: str | None = None) -> Claim | None:
        """Claim the first job that waits for `model`; None where no job waits.

        The order is priority, then fairness between owners. A job whose request cannot be read
        fails, and the next one is taken.
        """
        nonce = nonce or secrets.token_hex(8)
        while True:
            answer = self._script.run(
                "claim", queue_name(model), nonce, worker, self._lease, self._retention,
                EXPIRED.model_dump_json(),
            )  # fmt: skip
            if answer[0] == "none":
                return None
            _, job_id, attempt, text, waited = answer
            try:
                request = VideoRequest.model_validate_json(text or "")
            except (ValidationError, UnicodeEncodeError):
                damage = unreadable(job_id)
                log.error("%s It has failed.", damage.message)
                self._finish(job_id, nonce, "failed", "error", damage.as_job_error())
                nonce = secrets.token_hex(8)
            else:
                return Claim(
                    job_id=job_id,
                    nonce=nonce,
                    attempt=attempt,
                    request=request,
                    waited=waited / 1000,
                )

    def renew(self, claim: Claim) -> Standing:
        """Extend the lease to its whole length from now."""
        return self._script.run("renew", claim.job_id, claim.nonce, self._lease)  # type: ignore[no-any-return]

    def report(self, claim: Claim, progress: Progress, *, on_gpu: bool) -> Standing:
        """Record the job's progress, and whether it still holds the GPU."""
        return self._script.run(  # type: ignore[no-any-return]
            "report", claim.job_id, claim.nonce, progress.model_dump_json(), int(on_gpu)
        )

    def finish(
        self, claim: Claim, outcome: VideoResult | JobError, *, patience: float = PATIENCE
    ) -> bool:
        """Write the final state: succeeded for a result, failed or cancelled for an error.

        Returns:
            True if this outcome stands (also when an earlier, unanswered call wrote it); False
            if the claim was lost.
        """
        if isinstance(outcome, VideoResult):
            state, field = "succeeded", "result"
        else:
            state, field = ("cancelled" if outcome.code == "cancelled" else "failed"), "error"
        return self._finish(claim.job_id, claim.nonce, state, field, outcome, patience)

    def _finish(
        self, job_id: str, nonce: str, state: str, field: str, outcome: BaseModel,
        patience: float = PATIENCE,
    ) -> bool:  # fmt: skip
        answer = self._script.run(
            "finish", job_id, nonce, state, field, outcome.model_dump_json(), self._retention,
            patience=patience,
        )  # fmt: skip
        return bool(answer[0] == "finished")

    def give_back(self, claim: Claim, *, charged: bool, why: JobError = WORKER_LOST) -> Returned:
        """Queue the job again, at the head of its priority.

        Args:
            charged: the job held the GPU when its worker was lost; after `max_lost` such losses
                it fails with `why` instead.
        """
        return read_returned(
            self._script.run(
                "give_back", claim.job_id, claim.nonce, int(charged), self._max_lost,
                self._retention, why.model_dump_json(), CANCELLED.model_dump_json(),
            )
        )  # fmt: skip

    def taken_key(self, worker: str) -> str:
        """Redis's key of the list that holds the Celery message a worker is working on. The
        message is put back into the queue when the worker has ended.
        """
        return self._script.key("taken", worker)

    # --- a supervisor's -------------------------------------------------------------------

    def give_back_all(
        self, worker: str, *, instance: str = "", why: JobError = WORKER_LOST
    ) -> tuple[Returned, ...]:
        """Queue again all jobs of a worker that has died; the one on the GPU is charged.

        Nothing is queued where another supervisor's `instance` holds the worker's name by now
        (`FleetStore.heartbeat`).
        """
        answer = self._script.run(
            "give_back_all", worker, instance, self._lease, self._max_lost, self._retention,
            why.model_dump_json(), CANCELLED.model_dump_json(),
        )  # fmt: skip
        return tuple(read_returned(row) for row in answer)

    def running_on(self, worker: str) -> tuple[RunningJob, ...]:
        """The running jobs of a worker."""
        return tuple(
            RunningJob(
                job_id=job_id,
                attempt=attempt,
                on_gpu=bool(gpu),
                running=ms / 1000,
                timeout=timeout,
            )
            for job_id, attempt, gpu, ms, request in self._script.run("running_on", worker)
            if (timeout := read_timeout(request)) is not None
        )
