"""What supervisors repair in the ledger, and what they clear away."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from ltxq.ledger.records import (
    CANCELLED,
    EXPIRED,
    READ_MOST,
    WORKER_LOST,
    Swept,
    read_returned,
)
from ltxq.ledger.script import Script
from ltxq.settings import Settings

GRACE = 3.0  # seconds after a job's end in which its worker or client stores Celery's result
GARBAGE_MOST = 100  # claims that one supervisor takes at once
GARBAGE_LEASE = 600.0  # seconds it has to delete their objects
REFUSED_AGAIN = 3600.0  # seconds after which a refused deletion is tried again
GARBAGE_KEPT = 2 * 86400.0  # seconds beyond the retention for which it is tried so
UNDELETED_SHOWN = 3  # claims that are named
SWEEP_MOST = 1000  # jobs of each kind in one sweep; the next one goes on


class Sweeper:
    """Any supervisor may call these at any time: the ledger sees to it that one of them works."""

    def __init__(self, script: Script, settings: Settings) -> None:
        self._script = script
        self._lease = int(settings.lease * 1000)
        self._retention = int(settings.retention * 1000)
        self._max_lost = settings.max_lost

    def sweep(self, *, interval: float = 2.0) -> Swept:
        """End leases that are over, wake workers for jobs whose time has come or whose message
        was lost, and find results that were not stored for Celery.

        Args:
            interval: seconds between two sweeps of each supervisor. If any supervisor swept
                within half of it, this call does nothing. If none did within three times, Redis
                was away, and leases are extended instead of ended.
        """
        answer = self._script.run(
            "sweep", int(interval * 1000), self._lease, int(GRACE * 1000), SWEEP_MOST,
            self._max_lost, self._retention, WORKER_LOST.model_dump_json(),
            CANCELLED.model_dump_json(), EXPIRED.model_dump_json(),
        )  # fmt: skip
        if answer[0] != "swept":
            return Swept()
        _, given, unreported, corrupt = answer
        return Swept(
            unreported=tuple(unreported),
            corrupt=bool(corrupt),
            lease_ended=tuple(read_returned(row) for row in given),
        )

    def rebuild(self) -> None:
        """Build the indexes anew from the records, after a sweep found an index corrupt.

        A job that only the corrupt index knew is found again; a running one gets a new lease.
        """
        prefix = self._script.key("job", "")
        redis, ask = self._script.redis, self._script.ask
        cursor: int | None = None
        while cursor != 0:
            scan = partial(redis.scan, cursor or 0, match=f"{prefix}*", count=READ_MOST)
            cursor, keys = ask(scan)
            ids = [str(key).removeprefix(prefix) for key in keys]
            self._script.run("index", self._lease, self._retention, *ids)
        ask(lambda: redis.delete(self._script.key("corrupt")))

    def take_garbage(self) -> tuple[tuple[str, ...], bool]:
        """Remove records past their retention, and lease claims whose objects are garbage: claims
        of removed jobs, of deleted jobs, and of lost attempts.

        Returns:
            '<job id>/<nonce>' of each claim, and whether there may be more. The caller deletes
            the claims' objects and then calls `garbage_deleted`; a claim of which it does not
            is handed out again in ten minutes.
        """
        claims, expired = self._script.run("take_garbage", int(GARBAGE_LEASE * 1000), GARBAGE_MOST)
        return tuple(claims), max(len(claims), expired) >= GARBAGE_MOST

    def garbage_deleted(self, claims: Collection[str]) -> None:
        """The objects of these claims are gone."""
        if claims:
            self._script.run("garbage_deleted", *claims)

    def garbage_refused(self, claims: Collection[str]) -> None:
        """The storage refuses to delete objects of these claims. They are handed out again in an
        hour, until `GARBAGE_KEPT` after the retention: the search for orphaned objects has found
        them by then.
        """
        if claims:
            keep = self._retention + int(GARBAGE_KEPT * 1000)
            self._script.run("garbage_refused", int(REFUSED_AGAIN * 1000), keep, *claims)

    def orphans_refused(self, claims: Collection[str]) -> None:
        """A search of the whole bucket has ended; of these claims orphaned objects are refused."""
        self._script.run("orphans_refused", *claims)

    def undeleted(self) -> tuple[int, tuple[str, ...]]:
        """How many claims have an object that the storage refuses to delete (at most 1000 are
        counted), and the first of them.
        """
        count, first = self._script.run("undeleted", UNDELETED_SHOWN)
        return count, tuple(first)

    def may_clean(self, every: float) -> bool:
        """Whether the caller may look for objects that belong to no job. One supervisor of the
        fleet may, once in `every` seconds.
        """
        return bool(self._script.run("may_clean", int(every * 1000)))
