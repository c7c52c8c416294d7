"""How much one API key may ask. What changes the queue is counted in Redis, for all gateways
together; what only reads, here, since it must cost nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError

from ltxq.errors import ConfigurationError
from ltxq.gateway.openai.errors import Refused
from ltxq.settings import Settings

log = logging.getLogger("ltxq.gateway")

ANSWER_SECONDS = 1.0  # Redis may take to connect, and to answer
STREAMS_AGAIN = 5  # seconds after which to ask for another stream


class Rates:
    """The limits of every key.

    Raises:
        ConfigurationError: a limit of the settings is none.
    """

    def __init__(self, settings: Settings) -> None:
        self._changes = _limits(settings.rate_limit, "LTXQ_RATE_LIMIT")
        self._reads = _limits(settings.read_limit, "LTXQ_READ_LIMIT")
        self._streams_most = settings.max_streams_per_key
        self._streams: Counter[str | None] = Counter()
        self._shared = SlidingWindowCounterRateLimiter(
            RedisStorage(
                settings.url.get_secret_value(),
                key_prefix="ltxq:rates",
                socket_timeout=ANSWER_SECONDS,
                socket_connect_timeout=ANSWER_SECONDS,
                **settings.redis_tls,
            )
        )
        self._own = FixedWindowRateLimiter(MemoryStorage())

    def count_read(self, owner: str) -> None:
        """Count a reading.

        Raises:
            Refused: 429.
        """
        _count(self._own, self._reads, owner)

    def count_change(self, owner: str) -> None:
        """Count a change. Asks Redis: to be called in a thread.

        Raises:
            Refused: 429.
        """
        try:
            _count(self._shared, self._changes, owner)
        except RedisError as exc:  # the call that follows needs Redis too, and says it better
            log.debug("A change is not counted: %s", type(exc).__name__)

    @contextmanager
    def stream(self, owner: str | None) -> Iterator[None]:
        """One of the event streams an owner may have open at this gateway.

        Raises:
            Refused: 429.
        """
        if self._streams[owner] >= self._streams_most:
            raise Refused(
                429,
                "too_many_streams",
                f"{self._streams_most} event streams are open already.",
                hint="Close some, or poll.",
                retry_after=STREAMS_AGAIN,
            )
        self._streams[owner] += 1
        try:
            yield
        finally:
            self._streams[owner] -= 1


def _limits(text: str, name: str) -> list[RateLimitItem]:
    try:
        return parse_many(text)
    except ValueError:
        raise ConfigurationError(
            f"{name} is no limit.", hint="It looks like 20/second;1200/minute."
        ) from None


def _count(limiter: RateLimiter, limits: list[RateLimitItem], owner: str) -> None:
    for limit in limits:
        if not limiter.hit(limit, owner):
            reset = limiter.get_window_stats(limit, owner).reset_time
            raise Refused(
                429,
                "rate_limited",
                f"This API key may ask {limit}.",
                hint="Ask again when the time in retry-after is over.",
                retry_after=max(1, math.ceil(reset - time.time())),
            )
