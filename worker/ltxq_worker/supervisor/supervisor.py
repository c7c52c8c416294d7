"""`ltxq worker`: keeps one worker process per GPU running, and shares in the fleet's maintenance
(maintenance.py) and webhooks.

The supervisor loads no torch, so it survives whatever a GPU does to a process. When a worker dies,
the supervisor queues its jobs again and then replaces it under the same name.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from celery import Celery

from ltxq.celery import follow_up, make_app
from ltxq.errors import LtxqError, NameTaken, QueueUnavailable
from ltxq.ledger import TIMED_OUT, WORKER_LOST, Ledger, WorkerState
from ltxq.limits import ModelLimits
from ltxq.logs import about_job
from ltxq.ops.metrics import MetricsServer
from ltxq.settings import Settings
from ltxq.stopping import StopRequests, stop_signals
from ltxq.storage import Storage
from ltxq.systemd import Service
from ltxq_worker.pipeline.registry import family_of, limits_of, model_folder
from ltxq_worker.supervisor.child import (
    WorkerProcess,
    WorkerSlot,
    find_slots,
    lock_slot,
    note_instance,
    read_instance,
    spool_root,
)
from ltxq_worker.supervisor.maintenance import SWEEP_SECONDS, Maintenance
from ltxq_worker.supervisor.metrics import WorkerMetrics
from ltxq_worker.webhooks.sender import Webhooks

log = logging.getLogger("ltxq.supervisor")

LOOK_SECONDS = 0.1  # between two looks at the processes
REFUSED_SECONDS = 5.0  # between attempts at what Redis refuses, until somebody grants it
NAME_SECONDS = 0.5  # between attempts to get the workers' names
STUCK_SECONDS = 60.0  # without a look at the processes, after which the supervisor itself hangs
HUNG_SECONDS = 30.0  # past its timeout, after which a job that still holds the GPU is hung
BACKOFF = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds before each replacement in a row
STEADY_SECONDS = 60.0  # of running, after which a worker's next replacement is the first again
_NEVER = float("inf")


@dataclass
class SupervisedSlot:
    """A worker slot with its lock, its spool folder, and its process, if one runs."""

    identity: WorkerSlot
    lock: IO[str]
    spool: Path
    worker: WorkerProcess | None = None
    ends: int = 0  # how many processes in a row have ended
    start_at: float = 0.0  # no process starts before this moment of the monotonic clock
    give_back_at: float = 0.0  # its jobs are not given back before this moment
    holds_jobs: bool = True  # an ended process, perhaps from before a reboot, may hold jobs
    hung: bool = False  # the last process was killed for a job past its timeout
    leaves: bool = False  # the process was asked to finish and end, because the host is to drain


class Supervisor:
    """Keeps a worker process running in each slot until it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        limits: ModelLimits,
        host: str,
        slots: list[SupervisedSlot],
    ) -> None:
        self._model = model
        self._limits = limits
        self._host = host
        self._slots = slots
        self._settings = settings
        self._instance = secrets.token_hex(
            8
        )  # the ledger's name for the holder of the workers' names
        self._gone = {slot.identity.name: read_instance(slot.lock) for slot in slots}
        self._noted = False  # whether the slots' lock files name the instance
        self._name_taken: NameTaken | None = None  # set when this supervisor must end
        self._drained = False  # whether the operator has drained this host
        self._app: Celery = make_app(settings)
        self._ledger = Ledger(settings, "worker")
        self._storage = Storage.from_settings(settings)
        self._maintenance = Maintenance(self._app, self._ledger, self._storage, settings)
        self._webhooks = Webhooks(self._ledger, self._storage, settings)
        self._metrics = WorkerMetrics(model, [slot.identity for slot in slots], settings.spool_jobs)
        self._looked = time.monotonic()  # the last look at the slots
        self._requests = StopRequests()
        self._service = Service()
        self._given_up = False  # the parent wants the jobs given back
        self._parent: int | None = None  # the process that manages this one
        self._ended = threading.Event()

    def run(self, *, managed: bool = False) -> int:
        """Run until a signal asks to stop. After the first request running jobs finish; after a
        second one they are given back to the queue.

        Args:
            managed: a parent, which may be signalled together with this process, decides how to
                stop: signals are the first request. SIGUSR1, or the parent's death, is the second.

        Returns:
            0; 1 if no worker can ever start.

        Raises:
            NameTaken: another supervisor holds these workers' names.
        """
        self._listen_for_signals(managed)
        self._check_redis()
        self._take_names()
        metrics = self._serve_metrics()
        threads = [
            threading.Thread(target=self._keep_sweeping, name="sweep", daemon=True),
            *self._maintenance.start(self._ended),
            *self._webhooks.start(self._ended),
        ]
        threads[0].start()
        try:
            while True:
                self._looked = time.monotonic()
                if self._name_taken:
                    raise self._name_taken
                for slot in self._slots:
                    self._tend(slot)
                self._tell_systemd()
                self._notice_orphaned()
                if all(slot.worker is None for slot in self._slots) and self._stopping:
                    return 0
                if all(slot.start_at == _NEVER for slot in self._slots):
                    return 1
                time.sleep(LOOK_SECONDS)
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()
            for slot in self._slots:
                if slot.worker:
                    slot.worker.kill()
                    self._give_back(slot)
                shutil.rmtree(slot.spool, ignore_errors=True)
            with suppress(LtxqError):  # if Redis is away, the names are free after a lease
                self._ledger.fleet.leave(self._instance, list(self._gone))
            if metrics:
                metrics.close()

    def _check_redis(self) -> None:
        """Refuse to start on a Redis that would refuse the work, or lose it.

        Raises:
            ConfigurationError
        """
        try:
            self._ledger.check()
        except QueueUnavailable as exc:
            log.warning("Redis takes no jobs now; this worker waits for it: %s", exc)

    def _notice_orphaned(self) -> None:
        """Without its parent, this one's Redis and storage are gone too."""
        if self._parent is not None and os.getppid() != self._parent:
            self._given_up = True

    def _tell_systemd(self) -> None:
        self._service.alive()
        if self._drained or any(slot.worker and slot.worker.ready for slot in self._slots):
            self._service.ready()
        if self._stopping:
            self._service.stopping()

    def _serve_metrics(self) -> MetricsServer | None:
        return self._metrics.serve(
            self._settings,
            self._ledger,
            [slot.identity for slot in self._slots],
            spool_root(self._settings),
            healthy=lambda: time.monotonic() - self._looked < STUCK_SECONDS,
            state=lambda slot: next(self._state(s) for s in self._slots if s.identity == slot),
        )

    def _listen_for_signals(self, managed: bool) -> None:
        # The handlers only count: they may interrupt the loop while it holds a lock.
        def ask(number: int, _: object) -> None:
            if not (managed and self._requests.begun):
                self._requests.note(number)

        def give_up(*_: object) -> None:
            self._given_up = True

        for number in stop_signals():
            signal.signal(number, ask)
        if managed:
            self._parent = os.getppid()
            signal.signal(signal.SIGUSR1, give_up)

    @property
    def _stops(self) -> int:
        """How many times it was asked to stop."""
        return 2 if self._given_up else self._requests.count

    @property
    def _stopping(self) -> bool:
        return self._given_up or self._requests.begun > 0

    def _tend(self, slot: SupervisedSlot) -> None:
        if slot.worker and slot.worker.has_ended:
            self._note_end(slot, slot.worker)
        if slot.worker:
            if self._drained and not (slot.leaves or self._stopping):
                slot.leaves = True
                slot.worker.ask_to_stop()
            elif slot.worker.stops < self._stops:
                slot.worker.ask_to_stop()
            return
        if slot.holds_jobs and time.monotonic() < slot.give_back_at:
            return
        if slot.holds_jobs and not self._give_back(slot):
            return
        if not (self._stopping or self._drained) and time.monotonic() >= slot.start_at:
            slot.worker = WorkerProcess.start(
                slot.identity, self._model, slot.spool, slot.lock, self._metrics.add
            )
            self._metrics.started(slot.identity)
            log.info("%s starts (%s)", slot.identity.name, self._model)

    def _note_end(self, slot: SupervisedSlot, worker: WorkerProcess) -> None:
        slot.worker, slot.holds_jobs, slot.hung = None, True, worker.hung
        self._metrics.ended(slot.identity)
        lived = time.monotonic() - worker.started
        slot.ends = 1 if worker.ready and lived > STEADY_SECONDS else slot.ends + 1
        wait = BACKOFF[min(slot.ends, len(BACKOFF)) - 1]
        slot.start_at = _NEVER if worker.failure_is_final else time.monotonic() + wait
        if slot.leaves:
            slot.leaves, slot.ends, slot.start_at = False, 0, 0.0
            log.info("%s is drained", slot.identity.name)
        elif not self._stopping:
            log.error("%s ended (%s)", slot.identity.name, worker.describe_end())

    def _give_back(self, slot: SupervisedSlot) -> bool:
        """Queue the jobs of this slot's dead process again. Returns False while Redis is away."""
        try:
            why = TIMED_OUT if slot.hung else WORKER_LOST
            returned = self._ledger.claims.give_back_all(
                slot.identity.name, instance=self._instance, why=why
            )
        except LtxqError as exc:
            log.warning("The jobs of %s are not given back yet: %s", slot.identity.name, exc)
            if not exc.retryable:  # Redis refused at once
                slot.give_back_at = time.monotonic() + REFUSED_SECONDS
            return False
        for job in returned:
            with about_job(job.job_id):
                again = job.state == "queued"
                log.warning("%s is %s", job.job_id, "queued again" if again else job.state)
        follow_up(self._app, self._ledger, *returned)
        slot.holds_jobs = slot.hung = False
        return True

    def _keep_sweeping(self) -> None:
        away = False
        while not self._ended.wait(SWEEP_SECONDS):
            try:
                self._send_heartbeat()
                with self._metrics.sweep():
                    self._maintenance.sweep()
                self._kill_hung()
                away = False
            except NameTaken as exc:  # this supervisor was silent for a lease
                self._name_taken = exc
                return
            except LtxqError as exc:
                if not away:
                    log.warning("No sweep: %s", exc)
                away = True
            except Exception:
                log.exception(
                    "A sweep failed with an unexpected error; the next one runs as usual."
                )

    def _send_heartbeat(self) -> None:
        """Record the workers in the ledger, and learn whether this host is to drain."""
        states = {slot.identity.name: self._state(slot) for slot in self._slots}
        drained = self._ledger.fleet.heartbeat(
            self._model,
            self._host,
            states,
            limits=self._limits,
            instance=self._instance,
            gone=self._gone,
        )
        if not self._noted:  # the next supervisor of these slots reads it
            for slot in self._slots:
                note_instance(slot.lock, self._instance)
            self._noted = True
        if drained != self._drained:
            log.info(
                "%s is to drain: running jobs finish, no more are taken"
                if drained
                else "%s takes jobs again",
                self._host,
            )
        self._drained = drained

    def _take_names(self) -> None:
        """Wait until the workers' names are free, before any process starts. While Redis is away,
        the first sweep takes the names instead.

        Raises:
            NameTaken: another supervisor holds a name, and has sent a heartbeat meanwhile.
        """
        silent = 0.0
        while not self._stopping:
            try:
                self._send_heartbeat()
            except NameTaken as exc:
                if exc.silent < silent:
                    raise
                if not silent:
                    log.warning(
                        "%s Waiting until that one is silent or reports again.", exc.message
                    )
                silent = exc.silent + 0.001
                with suppress(LtxqError):  # if Redis is away, the next heartbeat shows it
                    self._maintenance.sweep()  # no name is free while no supervisor sweeps
                time.sleep(NAME_SECONDS)
            except LtxqError as exc:
                log.warning("Whether this host is to drain is not known yet: %s", exc)
                return
            else:
                return

    def _state(self, slot: SupervisedSlot) -> WorkerState:
        worker = slot.worker  # the main loop may remove it meanwhile
        if worker is None:
            return "drained" if self._drained else "down"
        if slot.leaves or self._stopping:
            return "draining"
        return "ready" if worker.ready else "loading"

    def _kill_hung(self) -> None:
        """Kill the workers whose jobs are far past their timeout."""
        for slot in self._slots:
            worker = slot.worker  # the main loop may remove it meanwhile
            if not worker:
                continue
            for job in self._ledger.claims.running_on(slot.identity.name):
                if job.on_gpu and job.running > job.timeout + HUNG_SECONDS:
                    with about_job(job.job_id):
                        log.error("%s hangs in %s: killed", slot.identity.name, job.job_id)
                    worker.hung = True
                    worker.process.kill()


def main(
    settings: Settings,
    *,
    model: str,
    gpus: str = "all",
    name: str | None = None,
    managed: bool = False,
) -> int:
    """Run workers for `model` until told to stop.

    Args:
        gpus: 'all', CUDA indexes ('0,1'), or 'cpu'.
        name: of this machine, the same after a restart; default: its host name.
        managed: as `Supervisor.run` takes it.

    Returns:
        The exit code: 0, or 1 if no worker can ever start.

    Raises:
        ConfigurationError: no such GPU, no bucket, or another supervisor is at work here.
        ModelUnusable: the model's folder is missing or broken.
    """
    # The files are checked before any GPU is set up.
    limits = limits_of(family_of(model).open(model_folder(settings, model)))
    host = name or socket.gethostname()
    identities = find_slots(gpus, host)
    root = spool_root(settings)
    slots = [
        SupervisedSlot(identity=slot, lock=lock_slot(slot, root), spool=root / slot.file_name)
        for slot in identities
    ]
    return Supervisor(settings, model, limits, host, slots).run(managed=managed)
