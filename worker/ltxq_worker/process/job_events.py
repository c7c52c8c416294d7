"""What a worker reports to Celery and Flower about its jobs, after the ledger has recorded it."""

from __future__ import annotations

from celery import Celery

from ltxq.celery import follow_up, report_outcome
from ltxq.celery.flower import TaskEvents
from ltxq.job import Progress
from ltxq.ledger import Claim, Ledger, Returned


class JobEvents:
    """The events in the life of a worker's jobs. This base class ignores them."""

    def started(self, claim: Claim) -> None:
        """The worker has begun to work on a claim. Called before `progressed`, in its thread."""

    def progressed(self, claim: Claim, progress: Progress) -> None:
        """The ledger has recorded progress of a claim."""

    def finished(self, claim: Claim) -> None:
        """The ledger has recorded the final state of a claim's job."""

    def given_back(self, *returned: Returned) -> None:
        """Jobs were given back to the queue."""

    def ended(self, claim: Claim) -> None:
        """The worker has stopped working on a claim, whatever became of it."""


class CeleryJobEvents(JobEvents):
    """Stores outcomes as Celery's results, and sends Celery's events, which Flower shows."""

    def __init__(self, app: Celery, ledger: Ledger, worker: str) -> None:
        self._app = app
        self._ledger = ledger
        self._task_events = TaskEvents(app, worker)

    def started(self, claim: Claim) -> None:
        self._task_events.begins(claim.job_id)

    def progressed(self, claim: Claim, progress: Progress) -> None:
        self._task_events.progress(claim.job_id, progress)

    def finished(self, claim: Claim) -> None:
        self._task_events.ends(claim.job_id)
        report_outcome(self._app, self._ledger, claim.job_id)

    def given_back(self, *returned: Returned) -> None:
        follow_up(self._app, self._ledger, *returned)

    def ended(self, claim: Claim) -> None:
        self._task_events.ends(claim.job_id)
