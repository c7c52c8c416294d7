"""A job's outcome as Celery clients see it: `AsyncResult`, Flower. The ledger is the truth; a
result that cannot be stored now is stored by a later sweep.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from ltxq.celery.flower import show_outcome, show_requeued
from ltxq.errors import JobError, JobNotFound, JobUnreadable, LtxqError
from ltxq.job import FINAL_STATES, Job
from ltxq.ledger import Ledger, Returned
from ltxq.logs import about_job

log = logging.getLogger("ltxq")


def follow_up(app: Celery, ledger: Ledger, *returned: Returned) -> None:
    """After jobs were taken from a worker: store Celery's results of the final ones, and show in
    Flower that the others are queued again.
    """
    for taken in returned:
        if taken.state in FINAL_STATES:
            report_outcome(app, ledger, taken.job_id)
    if queued := [taken.job_id for taken in returned if taken.state == "queued"]:
        try:
            jobs = ledger.jobs.get_many(queued)
        except LtxqError as exc:
            log.debug("Events for Flower are not sent: %s", exc)
            return
        for job in jobs.values():
            if job.worker:
                show_requeued(app, job.id, job.worker)


def report_outcome(app: Celery, ledger: Ledger, job_id: str, *, worker: str = "") -> None:
    """Store a finished job's outcome where `AsyncResult(job_id)` looks for it, ledger first.

    succeeded → SUCCESS with the VideoResult as JSON; failed → FAILURE with an exception named
    for the error's code; cancelled → REVOKED. If Redis is away, the sweep does it later. Sends the
    event for Flower too.

    Args:
        worker: in whose name the event is sent, if the job never had a worker.
    """
    with about_job(job_id):
        _report_outcome(app, ledger, job_id, worker)


def _report_outcome(app: Celery, ledger: Ledger, job_id: str, worker: str) -> None:
    try:
        job = ledger.jobs.get(job_id)
        app.backend.store_result(job_id, *_celery_result(job))
        ledger.jobs.reported(job_id)
        if sender := job.worker or worker:
            show_outcome(app, job, sender)
    except (JobNotFound, JobUnreadable) as exc:  # a later try would find the same
        report_refusal(app, job_id, exc.as_job_error())
        with contextlib.suppress(LtxqError):
            ledger.jobs.reported(job_id)
    except (LtxqError, OperationalError, RedisError, OSError) as exc:
        log.warning("Celery's result of %s is not stored yet; the sweep does it: %s", job_id, exc)


def forget_outcome(app: Celery, job_id: str) -> None:
    """Remove what `report_outcome` stored. If Redis is away, it expires after the retention."""
    try:
        app.backend.forget(job_id)
    except (OperationalError, RedisError, OSError) as exc:
        log.warning("Celery's result of %s is not removed: %s", job_id, exc)


def report_refusal(app: Celery, task_id: str, error: JobError) -> None:
    """Store why a job sent by a plain Celery producer was not taken, under its task id."""
    try:
        app.backend.store_result(task_id, *_celery_failure(error))
    except (OperationalError, RedisError, OSError) as exc:
        log.warning("The refusal of %s could not be stored: %s", task_id, exc)


def _celery_result(job: Job) -> tuple[dict[str, Any], str]:
    if job.state == "succeeded" and job.result is not None:
        return job.result.model_dump(mode="json"), "SUCCESS"
    error = job.error or JobError(code="internal", message=f"The job is {job.state}.")
    return _celery_failure(error)


def _celery_failure(error: JobError) -> tuple[dict[str, Any], str]:
    """Celery's JSON form of an exception. Celery makes a class of a name without a module."""
    text = f"{error.message} {error.hint}".strip()
    if error.code in ("cancelled", "expired"):
        name, module, state = "TaskRevokedError", "celery.exceptions", "REVOKED"
    else:
        name, module, state = error.code, None, "FAILURE"
    return {"exc_type": name, "exc_message": [text], "exc_module": module}, state
