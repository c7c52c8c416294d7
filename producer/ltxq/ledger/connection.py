"""Calls of Redis: repeated for a few seconds while it is away, and its errors as ltxq's."""

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

ATTEMPT_SECONDS = 1.0  # for one attempt to connect, and for one answer
PATIENCE = 2.8  # seconds for which a call is repeated: with the last attempt under 5 in all

# Errors that may pass: Redis is full, a replica, loading, cannot save, or busy with a script; its
# primary or its replicas are away.
PASSING = ("OOM ", "READONLY", "LOADING", "MISCONF", "BUSY ", "MASTERDOWN", "NOREPLICAS")

T = TypeVar("T")


def connect(settings: Settings) -> redis.Redis:
    """A connection pool. It connects on first use.

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
            # Bytes that are no UTF-8 damage their record, not the connection.
            encoding_errors="surrogateescape",
            socket_timeout=ATTEMPT_SECONDS,
            socket_connect_timeout=ATTEMPT_SECONDS,
            retry=Retry(NoBackoff(), 0),  # `patiently` repeats calls instead
        )
        connection.connection_pool.make_connection()  # checks the options without connecting
    except (TypeError, ValueError, redis_errors.RedisError):  # its text may contain the password
        raise ConfigurationError(
            "LTXQ_URL has an option that Redis's client does not know, or a wrong value of one.",
            hint="Correct the part after the ?.",
        ) from None
    return connection


def patiently(connection: redis.Redis, ask: Callable[[], T], patience: float = PATIENCE) -> T:
    """`ask()`, repeated while Redis is away, loading, full or read-only.

    Args:
        patience: seconds; the last attempt may take two seconds more.

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
            hint="Set LTXQ_REDIS_CA to its CA's file, and name the host as the certificate does.",
        )
    if _passes(exc):
        return QueueUnavailable(
            f"Redis at {where} does not answer ({type(exc).__name__}).",
            hint="Is it running, and is LTXQ_URL right? (rediss:// with TLS, redis:// without.)",
        )
    return LtxqError(f"Redis at {where} answered: {exc}")


def _passes(exc: BaseException) -> bool:
    """Whether the error may pass in a moment."""
    if isinstance(exc, redis_errors.AuthenticationError) or "[SSL: " in str(exc):
        return False
    return isinstance(
        exc,
        redis_errors.ConnectionError
        | redis_errors.TimeoutError
        | redis_errors.ReadOnlyError
        | redis_errors.OutOfMemoryError,
    ) or any(word in str(exc) for word in PASSING)
