"""Finds and removes objects in the bucket that belong to no job.

A job's objects are deleted with its record. Some stay behind if the storage was away at that moment
or a worker was lost while it uploaded. Such an object's job id has no record, and the object is
older than the retention. No other object is touched, and nothing is removed from a bucket that
another queue uses too, whose jobs are unknown here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

from ltxq.errors import BucketShared
from ltxq.ledger import Ledger
from ltxq.storage import Storage
from ltxq.storage.deletion import PAGE
from ltxq.storage.operations import CHECKS

log = logging.getLogger("ltxq")

CLEAN_SECONDS = 6 * 3600.0  # between two looks at the whole bucket, by the whole fleet
REFUSED_LOGGED = 3  # objects that a search names in the log
REFUSED_MOST = 1000  # claims that it reports
MARGIN = timedelta(days=1)  # beyond the retention, for slow uploads and clocks that differ
# This folder has an empty object for each queue that keeps clips under the prefix, by its name.
MARKS = ".queues/"


@dataclass(frozen=True)
class Cleaned:
    """Objects without a job."""

    objects: int = 0
    size: int = 0  # bytes
    refused: int = 0  # further objects, which the storage refuses to delete

    def __str__(self) -> str:
        return f"{self.objects} object{'' if self.objects == 1 else 's'}, {self.size / 1e6:.1f} MB"


def clean(
    ledger: Ledger,
    storage: Storage,
    retention: float,
    *,
    remove: bool = True,
    unwanted: Callable[[], bool] = lambda: False,
) -> Cleaned:
    """Search the whole bucket and remove objects without a job.

    Args:
        retention: seconds; the longest of all workers.
        remove: False: only count them.
        unwanted: asked between pages; True ends the search.

    Raises:
        BucketShared: another queue has clips there; nothing was removed.
        StorageRefused: the whole bucket is refused; single objects are counted instead.
        StorageUnavailable, QueueUnavailable: some objects may have been removed.
    """
    _claim(storage, ledger.queue_id())
    before = datetime.now(UTC) - timedelta(seconds=retention) - MARGIN
    found, refused = Cleaned(), set[str]()
    old = (stored for stored in storage.entries() if stored.modified < before)
    while not unwanted() and (page := list(islice(old, PAGE))):
        claims = {stored.key: storage.claim_of(stored.key) for stored in page}
        jobs = {key: claim.partition("/")[0] for key, claim in claims.items() if claim}
        known = ledger.jobs.existing(set(jobs.values()))
        orphans = [
            stored
            for stored in page
            if (stored.key in jobs and jobs[stored.key] not in known)
            # The probe's own, of a start at which nothing could be deleted.
            or stored.key.startswith(storage.prefix + CHECKS)
        ]
        kept = list(storage.try_delete(s.key for s in orphans)) if remove else []
        for key, reason in kept[: REFUSED_LOGGED if not refused else 0]:
            log.warning("%s stays: %s", key, reason)
        stay = {key for key, _ in kept}
        refused.update(claim for key in stay if (claim := claims[key]))
        gone = [stored for stored in orphans if stored.key not in stay]
        found = Cleaned(
            found.objects + len(gone),
            found.size + sum(stored.size for stored in gone),
            found.refused + len(stay),
        )
    if remove and not unwanted():
        ledger.sweeper.orphans_refused(sorted(refused)[:REFUSED_MOST])
    return found


def _claim(storage: Storage, queue_id: str) -> None:
    mine = storage.prefix + MARKS + queue_id
    marks = set(storage.list(MARKS))
    if others := sorted(marks - {mine}):
        raise BucketShared(
            f"Another queue keeps clips under {storage.prefix} in the bucket {storage.bucket} too "
            f"({others[0]}): objects without a job here may be that queue's, and stay.",
            hint="Give each queue an LTXQ_S3_PREFIX of its own; if the other queue is gone, delete "
            f"{others[0]}.",
        )
    if not marks:
        storage.mark(mine)
