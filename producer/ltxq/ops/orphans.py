"""Finds and removes objects in the bucket that belong to no job.

A job's objects are deleted with its record. Some stay behind if the storage was away at that moment
or a worker was lost while it uploaded. Such an object's job id has no record, and the object is
older than the retention. No other object is touched, and nothing is removed from a bucket that
another queue uses too, whose jobs are unknown here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

from ltxq.errors import BucketShared
from ltxq.ledger import Ledger
from ltxq.storage.s3 import PAGE, Storage

CLEAN_SECONDS = 6 * 3600.0  # between two looks at the whole bucket, by the whole fleet
MARGIN = timedelta(days=1)  # beyond the retention, for slow uploads and clocks that differ
# This folder has an empty object for each queue that keeps clips under the prefix, by its name.
MARKS = ".queues/"


@dataclass(frozen=True)
class Cleaned:
    """Objects without a job."""

    objects: int = 0
    size: int = 0  # bytes

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
        StorageRefused, StorageUnavailable, QueueUnavailable: some objects may have been removed.
    """
    _claim(storage, ledger.queue_id())
    before = datetime.now(UTC) - timedelta(seconds=retention) - MARGIN
    found = Cleaned()
    old = (stored for stored in storage.entries() if stored.modified < before)
    while not unwanted() and (page := list(islice(old, PAGE))):
        claims = {stored.key: storage.claim_of(stored.key) for stored in page}
        jobs = {key: claim.partition("/")[0] for key, claim in claims.items() if claim}
        known = ledger.jobs.existing(set(jobs.values()))
        orphans = [s for s in page if s.key in jobs and jobs[s.key] not in known]
        if remove:
            storage.delete(stored.key for stored in orphans)
        found = Cleaned(found.objects + len(orphans), found.size + sum(s.size for s in orphans))
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
