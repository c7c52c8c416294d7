"""What can be asked of the job records without changing them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any, get_args

import redis

from ltxq.errors import JobNotFound, JobUnreadable
from ltxq.job import CONTRACT, Job, JobPage, JobState, Order, is_job_id
from ltxq.ledger.connection import PATIENCE, patiently
from ltxq.ledger.records import read_job, read_queue_position, unreadable

PREFIX = f"ltxq:{CONTRACT}:"
ALL_STATES: tuple[JobState, ...] = get_args(JobState)
# The files of script/, each after those whose functions it calls.
_SCRIPT = ("keys", "figures", "webhooks", "states", "damage",
           "clients", "workers", "fleet", "sweep", "run")  # fmt: skip
READ_MOST = 200  # records in one call of the script, which holds up all of Redis

_Row = tuple[dict[str, str] | None, Sequence[Any], int]
"""A job's record (empty: there is none; None: it is damaged), its place, and when it was read."""


class JobReader:
    """Reads the job records; `Ledger` adds what changes them."""

    def __init__(self, connection: redis.Redis) -> None:
        self._redis = connection
        folder = files("ltxq.ledger").joinpath("script")
        parts = (folder.joinpath(f"{part}.lua").read_text("utf-8") for part in _SCRIPT)
        self._script = connection.register_script("\n".join(parts))

    def get(self, job_id: str) -> Job:
        """The job as it is now.

        Raises:
            JobNotFound, JobUnreadable.
        """
        return _read(job_id, self._rows([job_id])[0])

    def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        """Those of the jobs that exist and can be read, by id, in one or few calls."""
        ids = list(dict.fromkeys(job_ids))
        jobs = {}
        for job_id, row in zip(ids, self._rows(ids), strict=True):
            with suppress(JobNotFound, JobUnreadable):
                jobs[job_id] = _read(job_id, row)
        return jobs

    def list(
        self,
        *,
        state: JobState | None = None,
        limit: int = 20,
        after: str | None = None,
        order: Order = "desc",
        owner: str | None = None,
    ) -> JobPage:
        """Jobs by their submission; `after` is the id of the last one already seen.

        Those that cannot be read are left out.

        Args:
            order: desc: the newest first.
            owner: of whom; None: everybody's.

        Raises:
            JobNotFound: `after` is no job, or not the owner's.
        """
        states = (state,) if state else ALL_STATES
        ids = patiently(
            self._redis, lambda: self._ids(states, limit + 1, after, order == "desc", owner)
        )
        jobs = self.get_many(ids[:limit])
        return JobPage(
            jobs=tuple(jobs.values()), after=ids[limit - 1] if len(ids) > limit else None
        )

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _ids(
        self,
        states: tuple[JobState, ...],
        most: int,
        after: str | None,
        newest_first: bool,
        owner: str | None,
    ) -> Sequence[str]:
        """Ids of the jobs next to `after`, in order."""

        def index(state: JobState) -> str:
            return self._key("owned", owner, state) if owner else self._key("state", state)

        low, high = "-inf", "+inf"
        if after is not None:
            pipe = self._redis.pipeline(transaction=True)
            for state in ALL_STATES:
                pipe.zscore(index(state), after)
            places = [seq for seq in pipe.execute() if seq is not None]
            if not places:
                raise not_found(after)
            edge = f"({places[0]:.0f}"
            low, high = (low, edge) if newest_first else (edge, high)
        pipe = self._redis.pipeline(transaction=True)
        for state in states:
            if newest_first:
                pipe.zrevrangebyscore(index(state), high, low, 0, most, withscores=True)
            else:
                pipe.zrangebyscore(index(state), low, high, 0, most, withscores=True)
        found = [row for rows in pipe.execute() for row in rows]
        found.sort(key=lambda row: row[1], reverse=newest_first)
        return [job_id for job_id, _seq in found[:most]]

    def _rows(self, ids: Sequence[str]) -> Sequence[_Row]:
        found: list[_Row] = []
        for start in range(0, len(ids), READ_MOST):
            now, rows = self._run("read", *ids[start : start + READ_MOST])
            for row in rows:
                if row == ["damaged"]:
                    found.append((None, (), now))
                else:
                    fields, place = row
                    record = dict(zip(fields[::2], fields[1::2], strict=True))
                    found.append((record, place, now))
        return found

    def _key(self, *parts: str) -> str:
        return PREFIX + ":".join(parts)

    def _run(self, operation: str, *arguments: str | int, patience: float = PATIENCE) -> Any:
        """One operation of script/, repeated while Redis is away."""
        return patiently(
            self._redis, lambda: self._script(keys=[PREFIX], args=[operation, *arguments]), patience
        )


def not_found(job_id: str) -> JobNotFound:
    """What to say of an id that is no job's."""
    if not is_job_id(job_id):
        return JobNotFound(f"{job_id[:80]!r} is no job id.", hint="Ids look like video_0123….")
    return JobNotFound(
        f"There is no job {job_id}.", hint="It was never submitted, or is past its retention."
    )


def _read(job_id: str, row: _Row) -> Job:
    record, place, now = row
    if record is None:
        raise unreadable(job_id)
    if not record:
        raise not_found(job_id)
    return read_queue_position(read_job(job_id, record), place, now)
