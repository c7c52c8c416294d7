"""How a worker process ends: after its running jobs, or at once, when it gives them back."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from pathlib import Path

from ltxq.errors import LtxqError
from ltxq.stopping import stop_signals
from ltxq_worker.process.runner import Runner
from ltxq_worker.process.supervisor_link import SupervisorLink

log = logging.getLogger("ltxq.worker")

ALONE_SECONDS = 1.0  # after a signal, for the supervisor's order: it may have had the signal too


class Ending:
    """Ends the process as its supervisor orders.

    A signal is no order: systemd signals supervisor and workers together, and that is one request,
    which the supervisor counts. A worker that alone is signalled drains, however often, and the
    supervisor replaces it.
    """

    def __init__(self, supervisor: SupervisorLink, spool: Path) -> None:
        """Obeys from now on. While the model loads, every order and signal ends the process."""
        self._supervisor, self._spool = supervisor, spool
        self._runner: Runner | None = None
        self._draining = False
        self._changing = threading.Lock()
        for number in stop_signals():
            signal.signal(number, signal.SIG_DFL)
        threading.Thread(target=self._obey, name="supervisor", daemon=True).start()

    def finish_first(self, runner: Runner) -> None:
        """From now on the process has jobs, which it finishes or gives back."""
        with self._changing:
            self._runner = runner
        for number in stop_signals():
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        timer = threading.Timer(ALONE_SECONDS, self._drain)
        timer.daemon = True
        timer.start()

    def _obey(self) -> None:
        for order in self._supervisor.orders():
            if order == "drain":
                self._drain()
            else:
                self._exit(0)
        log.error("The supervisor has died: jobs are given back, this worker ends.")
        self._exit(1)

    def _drain(self) -> None:
        """Take no more jobs and finish the running ones."""
        from celery.worker import state

        with self._changing:
            again, self._draining = self._draining, True
        if self._runner is None:
            self._exit(0)
        elif not again:
            self._runner.close()
            state.should_stop = 0
            log.info("draining: running jobs finish, no more are taken")

    def _exit(self, code: int) -> None:
        """Give the jobs back, if there are any, and end at once."""
        with self._changing:
            runner = self._runner
        try:
            if runner is not None:
                runner.give_back()
        except LtxqError as exc:
            log.warning("Not all jobs were given back; their leases end instead: %s", exc)
        shutil.rmtree(self._spool, ignore_errors=True)
        logging.shutdown()
        os._exit(code)  # the threads that run the jobs cannot be stopped
