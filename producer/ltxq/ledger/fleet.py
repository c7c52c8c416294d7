"""The fleet: workers, queues, and hosts that are to drain."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from ltxq.errors import NameTaken
from ltxq.job import Priority
from ltxq.ledger.records import BANDS, QUEUE_PREFIX, queue_name
from ltxq.ledger.script import Script
from ltxq.limits import ModelLimits, ServedModel
from ltxq.settings import Settings

WorkerState = Literal["loading", "ready", "draining", "drained", "down"]
"""loading: the worker loads its model; ready: it takes jobs; draining: it finishes its jobs and
takes no more; drained: it is stopped, because its host is to drain; down: it has ended and is not
replaced yet."""

AWAY_SECONDS = 10.0  # without a heartbeat, after which a worker counts as away


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker of the fleet, from its supervisor's last heartbeat."""

    name: str  # "gpu0@host"
    host: str
    model: str
    state: WorkerState | Literal["away"]  # away: no heartbeat for 10 s
    seen: float  # seconds since the last heartbeat
    jobs: tuple[str, ...]  # ids: one on the GPU, others encoding or uploading


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """The queued jobs of one priority."""

    jobs: int
    oldest: float  # seconds since the first of them was submitted; 0 without jobs


@dataclass(frozen=True, kw_only=True)
class QueueStats:
    """The queue of one model."""

    model: str
    waiting: Mapping[Priority, Waiting]
    running: int
    workers: int  # ready now
    gpu_seconds: float | None  # for which recent jobs held the GPU, about
    job_seconds: float | None  # from claim to URL of recent jobs, about

    @property
    def depth(self) -> int:
        """The number of queued jobs."""
        return sum(waiting.jobs for waiting in self.waiting.values())

    @property
    def empty_in(self) -> float | None:
        """Estimated seconds until all jobs that wait now are done; None without an estimate."""
        pace = self.gpu_seconds or self.job_seconds
        if not self.depth:
            return 0.0
        if not self.workers or pace is None:
            return None
        return self.depth / self.workers * pace + (self.job_seconds or 0.0)


@dataclass(frozen=True, kw_only=True)
class FleetFigures:
    """The numbers behind the fleet's metrics."""

    queues: tuple[QueueStats, ...]
    workers: tuple[Worker, ...]
    served: frozenset[str]  # models that had a worker within a week
    totals: Mapping[str, Mapping[str, int]]  # model → event → how often it has happened
    webhooks: int  # due now or later
    webhooks_overdue: float  # seconds for which a webhook has been due, at most
    leases_overdue: int  # leases that have ended and are not swept yet
    unreported: int  # final states without Celery's result
    sweep_age: float | None  # seconds since the last sweep
    memory_used: float | None  # bytes, of Redis
    memory_limit: float | None  # its maxmemory; 0: none
    undeleted: int  # claims with an object that the storage refuses to delete


class FleetStore:
    """What supervisors record about their workers, and what operators and metrics read."""

    def __init__(self, script: Script, settings: Settings) -> None:
        self._script = script
        self._lease = int(settings.lease * 1000)

    def heartbeat(
        self,
        model: str,
        host: str,
        workers: Mapping[str, WorkerState],
        *,
        limits: ModelLimits | None = None,
        instance: str = "",
        gone: Mapping[str, str] = MappingProxyType({}),
    ) -> bool:
        """Record a supervisor's workers. A worker counts as alive for 10 s after it was `ready`.
        The supervisor holds the workers' names until it has been silent for a lease, or `leave`s.

        Args:
            limits: which clips the model can make.
            instance: a random name of this supervisor: two hosts may have the same host name.
            gone: by worker, the instance that held its name before and is known to have ended.

        Returns:
            Whether the host is to drain: to finish its running jobs and take no more.

        Raises:
            NameTaken: another instance holds one of the names; nothing was recorded.
        """
        rows = [w for name, state in workers.items() for w in (name, state, gone.get(name, ""))]
        outcome, *answer = self._script.run(
            "heartbeat",
            queue_name(model),
            host,
            instance,
            self._lease,
            limits.model_dump_json() if limits else "",
            *rows,
        )
        if outcome == "taken":
            name, silent = answer
            raise NameTaken(name, silent / 1000)
        return bool(answer[0])

    def leave(self, instance: str, workers: Collection[str]) -> None:
        """Free the names of a supervisor's workers, as it ends."""
        self._script.run("leave", instance, *workers)

    def drain(self, host: str, *, undo: bool = False) -> None:
        """Make a host's workers finish their jobs and stop; `undo`: start again."""
        self._script.run("drain", host, int(undo))

    def served(self) -> dict[str, ServedModel]:
        """The models that had a worker within the last week."""
        return {
            queue.removeprefix(QUEUE_PREFIX): ServedModel(
                ready_workers=ready, limits=_read_limits(limits)
            )
            for queue, ready, limits in self._script.run("served")
        }

    def workers(self) -> tuple[tuple[Worker, ...], frozenset[str]]:
        """The workers with a heartbeat within a day, by name, and the hosts that are to drain."""
        rows, draining = self._script.run("fleet")
        found = [worker for row in rows if (worker := _read_worker(*row))]
        return tuple(sorted(found, key=lambda worker: worker.name)), frozenset(draining)

    def queues(self, *, retention: float) -> tuple[tuple[QueueStats, ...], int]:
        """The queues by model, and how many jobs of all queues finished within an hour.

        Args:
            retention: seconds, as the workers have it.
        """
        rows, finished = self._script.run("queues", int(retention * 1000))
        return tuple(sorted((_read_queue(*row) for row in rows), key=lambda q: q.model)), finished

    def figures(self) -> FleetFigures:
        """The numbers behind the fleet's metrics, in four calls."""
        queues, _ = self.queues(retention=0)
        workers, _ = self.workers()
        rows, webhooks, overdue, leases, unreported, swept, used, limit, undeleted = (
            self._script.run("totals")
        )
        return FleetFigures(
            queues=queues,
            workers=workers,
            served=frozenset(self.served()),
            totals={queue.removeprefix(QUEUE_PREFIX): _read_totals(row) for queue, row in rows},
            webhooks=webhooks,
            webhooks_overdue=overdue / 1000,
            leases_overdue=leases,
            unreported=unreported,
            sweep_age=_seconds(swept),
            memory_used=_number(used),
            memory_limit=_number(limit),
            undeleted=undeleted,
        )


def _read_worker(name: str, entry: str, silent: int, jobs: list[str]) -> Worker | None:
    try:
        queue, host, state = json.loads(entry)
    except (ValueError, TypeError):  # written over
        return None
    if state not in get_args(WorkerState) or silent / 1000 > AWAY_SECONDS:
        state = "away"
    return Worker(
        name=name,
        host=str(host),
        model=str(queue).removeprefix(QUEUE_PREFIX),
        state=state,
        seen=silent / 1000,
        jobs=tuple(jobs),
    )


def _read_limits(text: str) -> ModelLimits | None:
    try:
        return ModelLimits.model_validate_json(text)
    except ValueError:  # not recorded yet, or written over
        return None


def _read_queue(
    queue: str, bands: list[list[int]], running: int, workers: int, gpu: str, whole: str
) -> QueueStats:
    waiting = {}
    for priority, band in BANDS.items():
        jobs, oldest = bands[band]
        waiting[priority] = Waiting(jobs=jobs, oldest=oldest / 1000)
    return QueueStats(
        model=queue.removeprefix(QUEUE_PREFIX),
        waiting=waiting,
        running=running,
        workers=workers,
        gpu_seconds=_seconds(gpu),
        job_seconds=_seconds(whole),
    )


def _read_totals(row: list[str]) -> dict[str, int]:
    pairs = zip(row[::2], row[1::2], strict=True)
    return {what: int(number) for what, number in pairs if number.isdecimal()}


def _seconds(milliseconds: Any) -> float | None:
    number = _number(milliseconds)
    return None if number is None else number / 1000


def _number(text: Any) -> float | None:
    with suppress(ValueError):  # it may have been written over
        return float(text)
    return None
