"""What the ledger publishes as it happens. Redis keeps nothing for a subscriber that is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import redis.exceptions as redis_errors
from redis.client import PubSub

from ltxq.errors import QueueUnavailable
from ltxq.ledger.script import Script


class Subscription:
    """The messages of one channel, or of all channels whose names begin alike."""

    def __init__(self, pubsub: PubSub, *, beginning: str = "") -> None:
        self._pubsub = pubsub
        self._beginning = beginning

    def next(self, timeout: float) -> str | None:
        """The next message; None after `timeout` seconds, or when the subscription begins.

        Of channels whose names begin alike the answer is the rest of the channel's name.

        Raises:
            QueueUnavailable: Redis went away; the next call subscribes again.
        """
        try:
            message = self._pubsub.get_message(timeout=timeout)
        except redis_errors.RedisError as exc:
            raise QueueUnavailable("Redis does not answer to a subscription.") from exc
        if message and message["type"] == "pmessage":
            return str(message["channel"]).removeprefix(self._beginning)
        return str(message["data"]) if message else None


class Changes:
    """Subscriptions to jobs and cancellations. Each method is a context manager."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def of(self, job_id: str) -> AbstractContextManager[Subscription]:
        """One job: `next` returns when its record has changed."""
        channel = self._script.key("changed", job_id)
        return self._subscribed(lambda pubsub: pubsub.subscribe(channel))

    def of_all(self) -> AbstractContextManager[Subscription]:
        """Every job: `next` gives the id of one whose record has changed."""
        beginning = self._script.key("changed", "")
        return self._subscribed(
            lambda pubsub: pubsub.psubscribe(f"{beginning}*"), beginning=beginning
        )

    def cancellations(self, worker: str) -> AbstractContextManager[Subscription]:
        """Cancellations of a worker's running jobs: `next` gives the id of a cancelled job.

        A message may be lost, but `Claims.renew` and `Claims.report` answer the same later.
        """
        channel = self._script.key("cancel", worker)
        return self._subscribed(lambda pubsub: pubsub.subscribe(channel))

    @contextmanager
    def _subscribed(
        self, subscribe: Callable[[PubSub], None], *, beginning: str = ""
    ) -> Iterator[Subscription]:
        connection = self._script.redis
        with connection.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
            self._script.ask(lambda: subscribe(pubsub))
            yield Subscription(pubsub, beginning=beginning)
