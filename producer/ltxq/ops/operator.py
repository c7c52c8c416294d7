"""An operator's view of a running fleet, straight from its Redis and its bucket: workers, queues,
draining hosts, orphaned objects.
"""

from __future__ import annotations

from typing import Self

from ltxq.errors import ConfigurationError, InvalidRequest
from ltxq.ledger import Ledger, QueueStats, Worker
from ltxq.ops.orphans import Cleaned, clean
from ltxq.settings import Settings
from ltxq.storage import Storage


class Operator:
    """Reads and controls a fleet.

    Raises (every method): QueueUnavailable, ConfigurationError, as `Ledger` does.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Connects on first use.

        Raises:
            ConfigurationError: LTXQ_URL is an HTTP gateway's.
        """
        self._settings = settings or Settings.read()
        if self._settings.is_gateway:
            raise ConfigurationError(
                "This command needs Redis, and LTXQ_URL names a gateway.",
                hint="Set LTXQ_URL to the Redis URL of the queue.",
            )
        self._ledger = Ledger(self._settings)

    def workers(self) -> tuple[Worker, ...]:
        """The workers with a heartbeat within a day, by name."""
        return self._ledger.fleet.workers()[0]

    def draining(self) -> frozenset[str]:
        """The hosts that are to drain."""
        return self._ledger.fleet.workers()[1]

    def queues(self) -> tuple[tuple[QueueStats, ...], int]:
        """The queue of each model, and how many jobs finished within the last hour."""
        return self._ledger.fleet.queues(retention=self._settings.retention)

    def drain(self, host: str, *, undo: bool = False) -> None:
        """Make a host's workers finish their jobs and take no more, until `undo`.

        This survives restarts of the supervisor, which goes on sweeping and sending webhooks.

        Raises:
            InvalidRequest: the host has had no worker within a day and is not draining.
        """
        workers, draining = self._ledger.fleet.workers()
        hosts = {worker.host for worker in workers} | draining
        if host not in hosts:
            raise InvalidRequest(
                f"No worker of the host {host!r} reported within a day.",
                hint=f"There are: {', '.join(sorted(hosts)) or 'none'}.",
            )
        self._ledger.fleet.drain(host, undo=undo)

    def clean(self, *, remove: bool) -> Cleaned:
        """Find objects in the bucket that belong to no job; remove them if `remove`.

        Raises:
            BucketShared, StorageRefused, StorageUnavailable
        """
        storage = Storage.from_settings(self._settings)
        return clean(self._ledger, storage, self._settings.retention, remove=remove)

    def close(self) -> None:
        """Close the connections."""
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
