"""Rate limits of API keys. Requests that change the queue are counted in Redis, for all gateways
together. Reads are counted in each gateway: they must not cost a call to Redis.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter
from redis import ConnectionPool
from redis.exceptions import RedisError

from ltxq.errors import ConfigurationError
from ltxq.gateway.openai.errors import Refused
from ltxq.settings import Settings

log = logging.getLogger("ltxq.gateway")

STREAMS_AGAIN = 5  # `retry-after` in seconds when too many streams are open


class Rates:
    """The limits of the settings, with a count for each key.

    Args:
        pool: of connections to the queue's Redis.

    Raises:
        ConfigurationError: a limit in the settings is invalid.
    """

    def __init__(self, settings: Settings, pool: ConnectionPool) -> None:
        self._changes = _limits(settings.rate_limit, "LTXQ_RATE_LIMIT")
        self._reads = _limits(settings.read_limit, "LTXQ_READ_LIMIT")
        self._streams_most = settings.max_streams_per_key
        self._streams: Counter[tuple[str | None, str]] = Counter()
        self._shared = SlidingWindowCounterRateLimiter(
            RedisStorage("redis://", connection_pool=pool, key_prefix="ltxq:rates")
        )
        self._local = FixedWindowRateLimiter(MemoryStorage())

    def count_read(self, owner: str) -> None:
        """Count a read.

        Raises:
            Refused: 429.
        """
        _count(self._local, self._reads, owner)

    def count_change(self, owner: str) -> None:
        """Count a change. It blocks on Redis: call it in a thread.

        Raises:
            Refused: 429.
        """
        try:
            _count(self._shared, self._changes, owner)
        except RedisError as exc:  # the request itself then fails with a better error
            log.debug("Redis did not count a change: %s", type(exc).__name__)

    @contextmanager
    def stream(self, owner: str | None, kind: str = "event streams") -> Iterator[None]:
        """Count an open event stream, or download, of the owner.

        Raises:
            Refused: 429.
        """
        of = owner, kind
        if self._streams[of] >= self._streams_most:
            hint = "poll instead" if kind == "event streams" else "wait until one ends"
            raise Refused(
                429,
                "too_many_streams",
                f"This caller has {self._streams_most} open {kind}, the most allowed.",
                hint=f"Close one, or {hint}.",
                retry_after=STREAMS_AGAIN,
            )
        self._streams[of] += 1
        try:
            yield
        finally:
            self._streams[of] -= 1
            if not self._streams[of]:
                del self._streams[of]


def _limits(text: str, name: str) -> list[RateLimitItem]:
    with suppress(ValueError):
        limits = parse_many(text)
        if all(limit.amount for limit in limits):  # 0 would refuse each call, for ever
            return limits
    raise ConfigurationError(
        f"{name} is no rate limit.", hint="Write it like this: 20/second;1200/minute."
    )


def _count(limiter: RateLimiter, limits: list[RateLimitItem], owner: str) -> None:
    for limit in limits:
        if not limiter.hit(limit, owner):
            reset = limiter.get_window_stats(limit, owner).reset_time
            seconds = max(1, math.ceil(reset - time.time()))
            raise Refused(
                429,
                "rate_limited",
                f"This API key is over its limit of {limit}.",
                hint=f"Try again in {seconds} s.",
                retry_after=seconds,
            )
