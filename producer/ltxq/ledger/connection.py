"""Calls of Redis: repeated for a few seconds while it is away, and its errors as ltxq's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import redis
import redis.exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from ltxq.ledger.answers import code_of, passes, translated
from ltxq.settings import Settings

ATTEMPT_SECONDS = 1.0  # for one attempt to connect, and for one answer
SENTINEL_SECONDS = 0.5  # the same for a Sentinel: one after the other is asked
PATIENCE = 2.8  # seconds for which a call is repeated: with the last attempt under 5 in all

T = TypeVar("T")


class Connection:
    """A pool of connections to the Redis of the settings, which connects on first use.

    Raises:
        ConfigurationError: the URL is a gateway's.
    """

    def __init__(self, settings: Settings) -> None:
        self.url = url = settings.redis
        self.replicas = settings.redis_replicas
        timing: dict[str, Any] = {
            "socket_timeout": ATTEMPT_SECONDS,
            "socket_connect_timeout": ATTEMPT_SECONDS,
            "retry": Retry(NoBackoff(), 0),  # `patiently` repeats calls instead
        }
        tls: dict[str, Any] = {"ssl": True, **settings.redis_tls} if url.tls else {}
        options: dict[str, Any] = {
            **timing,
            **tls,
            "db": url.db,
            "username": url.username,
            "password": url.password,
            "decode_responses": True,
            # Bytes that are no UTF-8 damage their record, not the connection.
            "encoding_errors": "surrogateescape",
        }
        self._sentinels: Sentinel | None = None
        if url.master:
            quick = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), SENTINEL_SECONDS)
            login = {**timing, **quick, **tls, **url.sentinel_login}
            self._sentinels = Sentinel(url.hosts, sentinel_kwargs=login)  # type: ignore[no-untyped-call]
            self.redis: redis.Redis = self._sentinels.master_for(url.master, **options)  # type: ignore[no-untyped-call]
        elif url.path:
            self.redis = redis.Redis(unix_socket_path=url.path, **options)
        else:
            self.redis = redis.Redis(*url.hosts[0], **options)

    def patiently(self, ask: Callable[[], T], patience: float = PATIENCE) -> T:
        """`ask()`, repeated while Redis is away, loading, full or read-only.

        Args:
            patience: seconds; the last attempt may take two seconds more.

        Raises:
            QueueUnavailable, ConfigurationError
        """
        attempts = Retrying(
            retry=retry_if_exception(passes),
            stop=stop_after_delay(patience),
            wait=wait_exponential_jitter(multiplier=0.02, max=1.0, jitter=0.02),
            reraise=True,
        )
        try:
            return attempts(ask)
        except MasterNotFoundError as exc:
            raise translated(self.url, self._why_not_trusted() or exc) from exc
        except redis_errors.RedisError as exc:
            raise translated(self.url, exc) from exc

    def silent_sentinels(self) -> list[str]:
        """The Sentinels that do not answer, as host:port."""
        asked = self._ask_sentinels()
        return [place for place, error in asked if error and code_of(error) != "NOPERM"]

    def _ask_sentinels(self) -> Iterator[tuple[str, redis_errors.RedisError | None]]:
        """Each Sentinel's host:port, and the error with which it answers."""
        for sentinel in self._sentinels.sentinels if self._sentinels else ():
            where = sentinel.connection_pool.connection_kwargs
            error = None
            try:
                sentinel.ping()
            except redis_errors.RedisError as exc:
                error = exc
            yield f"{where['host']}:{where['port']}", error

    def _why_not_trusted(self) -> redis_errors.RedisError | None:
        """A Sentinel's error of TLS or protocol, which redis-py leaves out of its own."""
        errors = (error for _, error in self._ask_sentinels() if error)
        return next((e for e in errors if code_of(e) in ("CERTIFICATE", "TLS", "NOREDIS")), None)

    def close(self) -> None:
        """Close the connections."""
        self.redis.close()
        if self._sentinels:
            self._sentinels.close()
