"""What an operator asks of a running fleet, straight to its Redis and its bucket: who works, what
waits, which host is to drain, what lies about. One job is `Client`'s.
"""

from __future__ import annotations

from typing import Self

from ltxq.errors import ConfigurationError, InvalidRequest
from ltxq.ledger import Ledger, QueueStats, Worker
from ltxq.ops.orphans import Cleaned, clean
from ltxq.settings import Settings
from ltxq.storage import Storage


class Operator:
    """A fleet, seen and steered by who runs it.

    Raises (every method): QueueUnavailable, ConfigurationError, as `Ledger` does.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Connects on first use, not here.

        Raises:
            ConfigurationError: LTXQ_URL is an HTTP gateway's.
        """
        self._settings = settings or Settings.read()
        if self._settings.is_gateway:
            raise ConfigurationError(
                "This command needs Redis, and LTXQ_URL names a gateway.",
                hint="Set LTXQ_URL to the redis:// or rediss:// URL of the queue.",
            )
        self._ledger = Ledger(self._settings)

    def workers(self) -> tuple[Worker, ...]:
        """The workers heard of within a day, by name."""
        return self._ledger.fleet.workers()[0]

    def draining(self) -> frozenset[str]:
        """The hosts that were told to drain, and not told otherwise since."""
        return self._ledger.fleet.workers()[1]

    def queues(self) -> tuple[tuple[QueueStats, ...], int]:
        """The queue of each model; and how many jobs finished within the last hour."""
        return self._ledger.fleet.queues(retention=self._settings.retention)

    def drain(self, host: str, *, undo: bool = False) -> None:
        """Have a host's workers finish what they have and take no more, until `undo`.

        It holds over restarts of its supervisor, which goes on sweeping and sending webhooks.

        Raises:
            InvalidRequest: no worker of this host was heard of within a day, nor does it drain.
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
