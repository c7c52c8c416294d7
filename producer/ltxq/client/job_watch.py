"""What a watcher of one job does next. It has no I/O and no clock: `Client.watch` (threads) and the
gateway's `QueueReader.follow` (asyncio) read the job, wait, and ask it in between.
"""

from __future__ import annotations

from ltxq.errors import WaitTimeout
from ltxq.job import Job

OUTAGE_PATIENCE = 60.0  # seconds a watcher survives while the queue cannot be reached


class JobWatch:
    """Times are in seconds of any one monotonic clock.

    Args:
        now: when the watch begins.
        timeout: seconds until `pause` raises `WaitTimeout`; None: never.
    """

    def __init__(self, *, now: float, timeout: float | None = None) -> None:
        self._began, self._timeout = now, timeout
        self._last: Job | None = None  # as read last
        self._outage_since: float | None = None

    def changed(self, job: Job) -> bool:
        """Whether the job just read differs from the one read before it: then it is yielded."""
        self._outage_since = None
        last, self._last = self._last, job
        # eta_seconds changes with time, ready_workers with the fleet: the job itself is unchanged.
        aside = {"eta_seconds": job.eta_seconds, "ready_workers": job.ready_workers}
        return last is None or job != last.model_copy(update=aside)

    def survives_outage(self, now: float) -> bool:
        """Whether to read again although the queue could not be reached. False: raise the error.

        The first reading of a watch has no patience: its caller may have a wrong URL.
        """
        if self._outage_since is None:
            self._outage_since = now
        return self._last is not None and now - self._outage_since <= OUTAGE_PATIENCE

    def pause(self, at_most: float, now: float) -> float:
        """Seconds to wait for a change before the next reading.

        Raises:
            WaitTimeout: the timeout is over, and the job is not final.
        """
        if self._timeout is None or self._last is None:
            return at_most
        left = self._began + self._timeout - now
        if left <= 0:
            raise WaitTimeout(
                f"{self._last.id} is still {self._last.state} after {self._timeout:g} s.",
                hint="The job continues: wait again, or cancel it.",
            )
        return min(left, at_most)
