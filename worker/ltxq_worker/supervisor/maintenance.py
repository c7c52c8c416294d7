"""What a supervisor does for the whole fleet: it sweeps the ledger and deletes objects that no job
needs. Any supervisor may do it at any time; the ledger lets one of them do each piece of work.
"""

from __future__ import annotations

import logging
import threading
from itertools import islice

from celery import Celery

from ltxq.celery import follow_up, report_outcome
from ltxq.errors import LtxqError
from ltxq.ledger import Ledger
from ltxq.logs import about_job
from ltxq.ops.orphans import CLEAN_SECONDS, clean
from ltxq.settings import Settings
from ltxq.storage import Storage

log = logging.getLogger("ltxq.supervisor")

SWEEP_SECONDS = 2.0  # between sweeps of the whole fleet
REFUSED_LOGGED = 3  # claims of a hundred whose undeleted files are named in the log
GARBAGE_SECONDS = 5.0  # between looks for objects of ended claims


class Maintenance:
    """The sweep, which the supervisor calls, and two threads that wait for the storage."""

    def __init__(self, app: Celery, ledger: Ledger, storage: Storage, settings: Settings) -> None:
        self._app = app
        self._ledger = ledger
        self._storage = storage
        self._settings = settings

    def start(self, ended: threading.Event) -> list[threading.Thread]:
        """Start the threads; they stop when `ended` is set."""
        threads = [
            threading.Thread(target=self._delete_garbage, args=(ended,), name="garbage"),
            threading.Thread(target=self._delete_orphans, args=(ended,), name="orphans"),
        ]
        for thread in threads:
            thread.daemon = True
            thread.start()
        return threads

    def sweep(self) -> None:
        """Sweep once, and store Celery's results of the jobs that ended so.

        Raises:
            QueueUnavailable, ConfigurationError
        """
        swept = self._ledger.sweeper.sweep(interval=SWEEP_SECONDS)
        for returned in swept.lease_ended:
            with about_job(returned.job_id):
                log.warning("%s: its lease ended; %s", returned.job_id, returned.state)
        follow_up(self._app, self._ledger, *swept.lease_ended)
        for job_id in swept.unreported:
            report_outcome(self._app, self._ledger, job_id)
        if swept.corrupt:
            log.error("An index of the jobs in Redis was written over: built anew from the records")
            self._ledger.sweeper.rebuild()

    def _delete_garbage(self, ended: threading.Event) -> None:
        """Delete the objects of claims that ended without a result, and of removed jobs."""
        while not ended.wait(GARBAGE_SECONDS):
            try:
                more = True
                while more and not ended.is_set():
                    claims, more = self._ledger.sweeper.take_garbage()
                    refused = self._storage.delete_clips(claims)
                    self._ledger.sweeper.garbage_refused(list(refused))
                    gone = [claim for claim in claims if claim not in refused]
                    self._ledger.sweeper.garbage_deleted(gone)
                    for claim, reason in islice(refused.items(), REFUSED_LOGGED):
                        log.warning("Files under %s stay: %s", claim, reason)
            except LtxqError as exc:
                log.warning("Objects of ended claims are not deleted now: %s", exc)
            except Exception:
                log.exception("Deleting objects of ended claims failed with an unexpected error.")

    def _delete_orphans(self, ended: threading.Event) -> None:
        """Delete objects that belong to no job, a few times a day."""
        while True:
            try:
                if self._ledger.sweeper.may_clean(CLEAN_SECONDS):
                    found = clean(
                        self._ledger,
                        self._storage,
                        self._settings.retention,
                        unwanted=ended.is_set,
                    )
                    if found.objects:
                        log.info("removed %s without a job", found)
                    if found.refused:
                        log.warning(
                            "The storage refuses to delete %d objects without a job: `ltxq doctor` "
                            "names some.",
                            found.refused,
                        )
            except LtxqError as exc:
                log.warning("Orphaned objects are not removed now: %s", exc)
            except Exception:
                log.exception("Removing orphaned objects failed with an unexpected error")
            if ended.wait(CLEAN_SECONDS / 10):
                return
