"""Commands for operators of a fleet: calls of `Operator`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from ltxq.cli import screen
from ltxq.cli.options import AsJson, WaitTimeoutSeconds
from ltxq.errors import WaitTimeout

if TYPE_CHECKING:
    from ltxq.ledger import QueueStats
    from ltxq.ops.operator import Operator

_LOOK_SECONDS = 0.5  # between two checks whether a host is drained
_AT_REST = ("drained", "away")


def workers(as_json: AsJson = False) -> None:
    """Show all workers, their states and their jobs."""
    from ltxq.ops.operator import Operator

    with Operator() as operator:
        found, draining = operator.workers(), operator.draining()
    if as_json:
        rows = [dataclasses.asdict(worker) for worker in found]
        screen.emit({"workers": rows, "draining": sorted(draining)})
        return
    cells = [
        (
            *(worker.name, worker.model, worker.state),
            "now" if worker.state != "away" else f"silent for {_span(worker.seen)}",
            ", ".join(worker.jobs) or "no job",
        )
        for worker in found
    ]
    if found:
        screen.table([("worker", "model", "state", "heartbeat", "jobs"), *cells])
    else:
        screen.note("No worker reported within a day. Start one with: ltxq worker")
    for host in sorted(draining):
        screen.note(f"{host} is draining. Undo with: ltxq drain {host} --undo")


def queue(as_json: AsJson = False) -> None:
    """Show the waiting jobs by model and priority, and how long they will take."""
    from ltxq.ops.operator import Operator

    with Operator() as operator:
        queues, finished = operator.queues()
    if as_json:
        rows = [dataclasses.asdict(q) | {"depth": q.depth, "empty_in": q.empty_in} for q in queues]
        screen.emit({"queues": rows, "finished_within_an_hour": finished})
        return
    for found in queues:
        screen.say(*_queue_lines(found))
    if not queues:
        screen.note("No job was submitted yet, and no worker has started.")
    screen.say(f"{finished} job{'' if finished == 1 else 's'} finished within the last hour.")


def drain(
    host: Annotated[str, typer.Argument(help="Host name, as `ltxq workers` shows it after the @.")],
    undo: Annotated[bool, typer.Option("--undo", help="Let its workers take jobs again.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until its workers have stopped.")
    ] = False,
    wait_timeout: WaitTimeoutSeconds = None,
    as_json: AsJson = False,
) -> None:
    """Let a host's workers finish their jobs and stop.

    This survives restarts, until --undo. The host's supervisor goes on sweeping.
    """
    from ltxq.ops.operator import Operator

    with Operator() as operator:
        operator.drain(host, undo=undo)
        if wait and not undo:
            _wait_until_drained(operator, host, wait_timeout)
    if undo:
        outcome = "takes jobs again."
    elif wait:
        outcome = "is drained."
    else:
        outcome = "takes no more jobs. Its running jobs: ltxq workers"
    screen.result({"host": host, "draining": not undo}, f"{host} {outcome}", as_json=as_json)


def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove orphaned objects: those in the bucket that belong to no job.

    Supervisors do this four times a day.
    """
    from ltxq.ops.operator import Operator

    with Operator() as operator:
        found = operator.clean(remove=not dry_run)
    screen.result(
        {**dataclasses.asdict(found), "removed": not dry_run},
        f"{'Found' if dry_run else 'Removed'} {found} without a job.",
        as_json=as_json,
    )
    if found.refused:
        screen.note(f"The storage refuses to delete {found.refused} objects: see `ltxq doctor`.")
        raise typer.Exit(1)


def _wait_until_drained(operator: Operator, host: str, timeout: float | None) -> None:
    end = None if timeout is None else time.monotonic() + timeout
    while busy := [
        worker
        for worker in operator.workers()
        if worker.host == host and worker.state not in _AT_REST
    ]:
        if end is not None and time.monotonic() > end:
            raise WaitTimeout(
                f"{', '.join(worker.name for worker in busy)} still at work after {timeout:g} s.",
                hint="The host goes on draining: see `ltxq workers`.",
            )
        time.sleep(_LOOK_SECONDS)


def _queue_lines(queue: QueueStats) -> Iterable[str]:
    yield f"{queue.model}"
    for priority, waiting in queue.waiting.items():
        oldest = f", the oldest for {_span(waiting.oldest)}" if waiting.jobs else ""
        yield f"  {priority:8} {waiting.jobs:>7} queued{oldest}"
    workers = f"{queue.workers} ready worker{'' if queue.workers == 1 else 's'}"
    yield f"  {queue.running:>16} running on {workers}"
    if queue.gpu_seconds is not None:
        yield f"  a job has the GPU for about {_span(queue.gpu_seconds)}"
    if queue.depth and queue.empty_in is not None:
        yield f"  all of it done in about {_span(queue.empty_in)}"
    elif queue.depth and not queue.workers:
        yield f"  no worker is ready: ltxq worker --model {queue.model}"


def _span(seconds: float) -> str:
    """'0.5 s', '40 s', '3 min', '2.5 h'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
