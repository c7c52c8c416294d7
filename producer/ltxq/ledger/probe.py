"""Asks Redis whether its user may do what a role does, before any of it is done: a script that is
refused halfway leaves half its work.

Redis checks a command when it is queued for a transaction: permissions, replica, memory, cluster.
The probe queues every command of the role and discards them all, so nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import redis.exceptions as redis_errors

from ltxq.errors import ConfigurationError
from ltxq.ledger.answers import LASTING, PASSING, code_of, not_permitted
from ltxq.ledger.connection import PATIENCE, Connection
from ltxq.ledger.permissions import TRANSACTION, Call, Role, calls

Refused = tuple[Call, redis_errors.ResponseError]
WAIT = Call(("WAIT", "0", "1"), "wait")
MULTI, EXEC, DISCARD = (Call((name.upper(),), name) for name in TRANSACTION)


def probe(connection: Connection, role: Role, patience: float = PATIENCE, *, writes: bool) -> bool:
    """Try every call of the role, in two round trips.

    Args:
        writes: raise, too, what lets Redis take no writes now. Reading may go on.

    Returns:
        Whether nothing was refused.

    Raises:
        ConfigurationError: Redis does not permit a call, or is a cluster's node. The message names
            the call, the hint the grant of all that is missing.
        QueueUnavailable: Redis is away, or (with `writes`) a replica, full, …
    """

    def ask() -> Sequence[Refused]:
        refused = _try_all(connection, role)
        codes = [code_of(exc) for _, exc in refused]
        if "NOPERM" not in codes:  # else other answers may follow from it
            for (_, exc), code in zip(refused, codes, strict=True):
                if writes or code not in PASSING:
                    raise exc
        return refused

    refused = connection.patiently(ask, patience)
    if missing := [each for each in refused if code_of(each[1]) == "NOPERM"]:
        raise _missing(connection, missing)
    return not refused


def check_server(connection: Connection) -> str:
    """Refuse a server that would lose jobs: a cluster's node, or one that evicts any key when it is
    full. What the user may not read (INFO) is not held against it.

    Returns:
        A warning, or ''.

    Raises:
        ConfigurationError, QueueUnavailable
    """
    info = server_info(connection)
    where = f"Redis at {connection.url.where}"
    if info.get("cluster_enabled") or info.get("redis_mode") == "cluster":
        what, hint = LASTING["MOVED"]
        raise ConfigurationError(f"{where} {what}", hint=hint)
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if not int(info.get("maxmemory", 0)) or policy == "noeviction":
        return ""
    hint = "Set `maxmemory-policy noeviction`; submissions are then refused instead."
    if policy.startswith("allkeys"):
        raise ConfigurationError(
            f"{where} has maxmemory-policy {policy}: when it is full it deletes jobs.", hint=hint
        )
    return f"{where} has maxmemory-policy {policy}: full, it deletes Celery's results. {hint}"


def server_info(connection: Connection, section: str = "default") -> dict[str, Any]:
    """INFO; empty where this user may not read it, as at some managed services.

    Raises:
        QueueUnavailable, ConfigurationError
    """

    def ask() -> dict[str, Any]:
        try:
            return dict(connection.redis.info(section))
        except redis_errors.ResponseError as exc:
            if code_of(exc) == "NOPERM" or "unknown command" in str(exc):
                return {}
            raise

    return connection.patiently(ask)


def _try_all(connection: Connection, role: Role) -> Sequence[Refused]:
    # First these alone: if they were refused, what follows would be run.
    if refused := list(_refused(connection, (MULTI, EXEC))):
        return refused
    wanted = list(calls(role, connection.url.db))
    if connection.replicas:
        wanted.append(WAIT)
    return list(_refused(connection, (MULTI, *wanted, DISCARD)))


def _missing(connection: Connection, refused: Sequence[Refused]) -> ConfigurationError:
    call, first = refused[0][0], str(refused[0][1])
    grants = dict.fromkeys(grant for each, exc in refused for grant in _grants(each, str(exc)))
    error = not_permitted(connection.url, f"run the '{call.command}'", " ".join(grants))
    if "channel" in first:
        error.message = error.message.replace(" run ", f" use the channel {call.channel!r} with ")
    elif "key" in first:
        on = " and ".join(call.keys)
        error.message = f"{error.message[:-1]} on the keys {on}."
    return error


def _grants(call: Call, answer: str) -> Iterable[str]:
    """What an ACL lacks for a call that was answered so."""
    if "channel" in answer:
        return [f"&{call.channel}"]
    if "key" in answer:
        return [f"~{pattern}" for pattern in call.keys]
    return [f"+{call.command}"]


def _refused(connection: Connection, sent: Sequence[Call]) -> Iterator[Refused]:
    """Send these calls at once; those that Redis refuses, with its answers."""
    pool = connection.redis.connection_pool
    try:
        link: Any = pool.get_connection()
    except (ValueError, TypeError, AttributeError, LookupError) as exc:
        raise redis_errors.InvalidResponse(type(exc).__name__) from exc
    finished = False
    try:
        link.send_packed_command(link.pack_commands([call.words for call in sent]))
        answers: list[Any] = []
        for _ in sent:
            try:
                answers.append(link.read_response())
            except redis_errors.ResponseError as exc:
                answers.append(exc)
            except (ValueError, TypeError) as exc:  # redis-py read something else than Redis's
                raise redis_errors.InvalidResponse(type(exc).__name__) from exc
        finished = not isinstance(answers[-1], Exception)
    finally:
        if not finished:  # a transaction may be open
            link.disconnect()
        pool.release(link)
    for call, answer in zip(sent, answers, strict=True):
        if isinstance(answer, redis_errors.ResponseError):
            yield call, answer
        elif answer != ([] if call is EXEC else "OK" if call in (MULTI, DISCARD) else "QUEUED"):
            raise redis_errors.InvalidResponse(f"{call.command}: no answer of Redis's")
