"""Redis with patience: calls that are safe to repeat are, for a few seconds; what it then still
answers becomes one of ltxq's errors, here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import redis
import redis.exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from ltxq.errors import ConfigurationError, LtxqError, QueueUnavailable
from ltxq.settings import Settings, without_password

ATTEMPT_SECONDS = 1.0  # one connection attempt, and one answer, may take this long each
PATIENCE = 2.8  # seconds a call tries again: with the last attempt under 5 in all

# Answers that may be others in a moment: Redis is full, a replica, loading, cannot save, or busy
# with a script; its primary or its replicas are away.
PASSING = ("OOM ", "READONLY", "LOADING", "MISCONF", "BUSY ", "MASTERDOWN", "NOREPLICAS")

T = TypeVar("T")


def connect(settings: Settings) -> redis.Redis:
    """A connection pool that connects on first use, not here.

    Raises:
        ConfigurationError: the URL's options are wrong, or it is a gateway's.
    """
    if settings.is_gateway:
        raise ConfigurationError(
            "LTXQ_URL is a gateway's, and Redis itself is needed here.",
            hint="Workers, gateways and commands for operators take redis:// or rediss://.",
        )
    try:
        connection = redis.Redis.from_url(
            settings.url.get_secret_value(),
            **settings.redis_tls,
            decode_responses=True,
            # Bytes that are no UTF-8 spoil the record they are in, not the connection.
            encoding_errors="surrogateescape",
            socket_timeout=ATTEMPT_SECONDS,
            socket_connect_timeout=ATTEMPT_SECONDS,
            retry=Retry(NoBackoff(), 0),  # `patiently` tries again: it knows for how long
        )
        connection.connection_pool.make_connection()  # looks at the options, connects to nothing
    except (TypeError, ValueError, redis_errors.RedisError):  # their words may hold the password
        raise ConfigurationError(
            "LTXQ_URL has an option that Redis's client does not know, or a wrong value of one.",
            hint="Correct what follows the ? in it.",
        ) from None
    return connection


def patiently(connection: redis.Redis, ask: Callable[[], T], patience: float = PATIENCE) -> T:
    """`ask()`, again and again while Redis is away, loading, full or read-only.

    Args:
        patience: seconds; the last attempt may take two more.

    Raises:
        QueueUnavailable, ConfigurationError
    """
    attempts = Retrying(
        retry=retry_if_exception(_passes),
        stop=stop_after_delay(patience),
        wait=wait_exponential_jitter(multiplier=0.02, max=1.0, jitter=0.02),
        reraise=True,
    )
    try:
        return attempts(ask)
    except redis_errors.RedisError as exc:
        raise _translated(connection, exc) from exc


def _translated(connection: redis.Redis, exc: redis_errors.RedisError) -> LtxqError:
    parts = connection.connection_pool.connection_kwargs
    where = without_password(parts.get("path") or f"{parts.get('host')}:{parts.get('port')}")
    if isinstance(exc, redis_errors.AuthenticationError | redis_errors.NoPermissionError):
        return ConfigurationError(
            f"Redis at {where} refuses this user or password.", hint="Correct LTXQ_URL."
        )
    if isinstance(exc, redis_errors.OutOfMemoryError) or "OOM" in str(exc):
        return QueueUnavailable(
            f"Redis at {where} is full and takes no writes.",
            hint="Raise its maxmemory (and keep maxmemory-policy noeviction).",
        )
    if isinstance(exc, redis_errors.ReadOnlyError) or "READONLY" in str(exc):
        return QueueUnavailable(
            f"Redis at {where} is a read-only replica.", hint="Point LTXQ_URL at the primary."
        )
    if "CERTIFICATE_VERIFY_FAILED" in str(exc):
        return ConfigurationError(
            f"Redis at {where} shows a certificate that is not trusted.",
            hint="Set LTXQ_REDIS_CA to the file of who signed it, and name the host as it does.",
        )
    if _passes(exc):
        return QueueUnavailable(
            f"Redis at {where} does not answer ({type(exc).__name__}).",
            hint="Is it running, and is LTXQ_URL right? (rediss:// with TLS, redis:// without.)",
        )
    return LtxqError(f"Redis at {where} answered: {exc}")


def _passes(exc: BaseException) -> bool:
    """Whether Redis may answer otherwise in a moment."""
    if isinstance(exc, redis_errors.AuthenticationError) or "[SSL: " in str(exc):
        return False
    return isinstance(
        exc,
        redis_errors.ConnectionError
        | redis_errors.TimeoutError
        | redis_errors.ReadOnlyError
        | redis_errors.OutOfMemoryError,
    ) or any(word in str(exc) for word in PASSING)
