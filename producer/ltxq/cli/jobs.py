"""Commands for jobs: calls of `Client`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import ltxq
from ltxq.cli import screen
from ltxq.cli.options import (
    AsJson,
    IdempotencyKey,
    Prompt,
    RequireWorker,
    WaitTimeoutSeconds,
    request_options,
)
from ltxq.job import Job, JobState

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job, as `submit` printed it.")]


@request_options()
def submit(
    prompt: Prompt,
    *,
    fields: dict[str, Any],
    idempotency_key: IdempotencyKey = None,
    require_worker: RequireWorker = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the clip.")] = False,
    wait_timeout: WaitTimeoutSeconds = None,
    as_json: AsJson = False,
) -> None:
    """Submit a prompt. Prints the job's id or, with --wait, the clip's URL."""
    with ltxq.Client() as client:
        job = client.submit(
            prompt, idempotency_key=idempotency_key, require_worker=require_worker, **fields
        )
        if wait:
            _show_outcome(screen.follow(client, job.id, wait_timeout), as_json)
            return
    screen.result(job, job.id, as_json=as_json)
    if not as_json:
        seed = f"{job.state.capitalize()} with seed {job.request.seed}."
        none = f" No worker is ready for {job.request.model}." if job.ready_workers == 0 else ""
        screen.note(f"{seed}{none} Follow it with: ltxq watch {job.id}")


def status(job_id: JobId, as_json: AsJson = False) -> None:
    """Show the current state of a job. Exits with 0, also if the job failed."""
    with ltxq.Client() as client:
        job = client.get(job_id)
    screen.result(job, *screen.job_lines(job), as_json=as_json)


def watch(job_id: JobId, wait_timeout: WaitTimeoutSeconds = None, as_json: AsJson = False) -> None:
    """Follow a job to its end. Prints the clip's URL; exits with 1 if it failed."""
    with ltxq.Client() as client:
        _show_outcome(screen.follow(client, job_id, wait_timeout), as_json)


def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Cancel a job.

    A queued one at once, a running one within a denoising step.
    """
    with ltxq.Client() as client:
        job = client.cancel(job_id)
    outcomes = {"running": "was asked to stop", "cancelled": "is cancelled"}
    outcome = outcomes.get(job.state, f"had already {job.state}")
    screen.result(job, f"{job.id} {outcome}.", as_json=as_json)


def retry(job_id: JobId, idempotency_key: IdempotencyKey = None, as_json: AsJson = False) -> None:
    """Submit a job's request again, as a new job. Prints the new id."""
    with ltxq.Client() as client:
        job = client.retry(job_id, idempotency_key=idempotency_key)
    screen.result(job, job.id, as_json=as_json)


def delete(job_id: JobId, as_json: AsJson = False) -> None:
    """Delete a job and its clip. An unfinished job is cancelled."""
    with ltxq.Client() as client:
        client.delete(job_id)
    screen.result({"id": job_id, "deleted": True}, f"{job_id} is deleted.", as_json=as_json)


def list_jobs(
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Number of jobs.")] = 20,
    after: Annotated[
        str | None, typer.Option(help="Continue after this job; each page names it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show jobs, the newest first."""
    with ltxq.Client() as client:
        page = client.list(state=state, limit=limit, after=after)
    if as_json:
        screen.emit(page)
        return
    for job in page.jobs:
        screen.say(screen.job_row(job))
    if not page.jobs:
        screen.note("No jobs.")
    if page.after:
        only = f" --state {state}" if state else ""
        screen.note(f"More jobs: ltxq list{only} --limit {limit} --after {page.after}")


def _show_outcome(job: Job, as_json: bool) -> None:
    if as_json:
        screen.emit(job)
    elif job.result is not None:
        screen.say(job.result.url)
    else:
        screen.note(f"{job.id} {job.state}.")
        if job.error is not None:
            screen.error(job.error.model_dump(), as_json=False)
    if job.state != "succeeded":
        raise typer.Exit(1)
