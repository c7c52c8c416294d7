"""`ltxq doctor`'s checks of Redis: what the work needs, asked as the work's own start asks it, and
what would be better otherwise. What its user may not read is a note, never a problem.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, get_args

from ltxq.errors import LtxqError
from ltxq.ledger.answers import NotPermitted
from ltxq.ledger.connection import Connection
from ltxq.ledger.permissions import Role
from ltxq.ledger.probe import check_server, probe, server_info
from ltxq.ops.findings import Finding, ok, problem, skipped, warning
from ltxq.settings import Settings

PINGS = 20
# Seconds for an answer. A job costs some 80 commands, most of them while the GPU works.
SLOW_REDIS = 0.02
OLDEST_REDIS = (6, 2)  # the ledger's script needs ZADD's GT
FULL = 0.8  # share of maxmemory from which a Redis counts as nearly full
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DOING = {
    "client": "submit and follow jobs",
    "gateway": "serve a gateway",
    "worker": "run a worker",
    "flower": "show jobs in Flower",
}


def check_redis(settings: Settings) -> Iterator[Finding]:
    """Is Redis reachable, new enough and fast enough, does it permit the work and keep its jobs?"""
    with closing(Connection(settings)) as connection:
        info = server_info(connection, "everything")
        if info:
            yield _version_of(info)
        else:
            yield ok("Redis answers.")
            yield skipped(
                "Its user may not run INFO: version, append-only file, memory and role are not "
                "known here.",
                "Grant +info to have them checked. The work does not need it.",
            )
        yield _latency(connection)
        if info:
            yield _persistence(connection, info)
            yield _memory(info)
            if info.get("role") != "master":
                yield problem("It is a replica.", "Point LTXQ_URL at the primary.")
            if info.get("connected_slaves", 0) < settings.redis_replicas:
                yield problem(
                    f"It has {info.get('connected_slaves', 0)} replicas; LTXQ_REDIS_REPLICAS asks "
                    f"for {settings.redis_replicas}, so no submission is accepted.",
                    "Bring the replicas back, or lower LTXQ_REDIS_REPLICAS.",
                )
        yield from _of_server(connection)
        yield from _permissions(connection, writes=not info)
        yield from _sentinels(connection, info)
        yield from _exposure(settings)


def _permissions(connection: Connection, *, writes: bool) -> Iterator[Finding]:
    """What each role would be refused, by the probe with which it starts."""
    may = []
    for role in get_args(Role):
        try:
            probe(connection, role, writes=writes)
        except NotPermitted as exc:
            message = f"{exc.message} So it cannot {DOING[role]}."
            if role == "client":
                yield problem(message, exc.hint)
            else:  # most users are for one role
                yield warning(message, exc.hint.replace("Grant it", "If it should, grant it", 1))
        else:
            may.append(DOING[role])
    if may:
        yield ok(f"Its user {connection.url.user!r} may {', '.join(may)}.")


def _of_server(connection: Connection) -> Iterator[Finding]:
    try:
        worry = check_server(connection)
    except LtxqError as exc:
        yield problem(exc.message, exc.hint)
    else:
        if worry:
            yield warning(worry)


def _sentinels(connection: Connection, info: dict[str, Any]) -> Iterator[Finding]:
    """Can another take over when the primary ends?"""
    if not connection.url.master:
        return
    away = connection.silent_sentinels()
    if away:
        yield warning(
            f"Of {len(connection.url.hosts)} Sentinels these do not answer: {', '.join(away)}.",
            "Start them: a failover needs most of them.",
        )
    else:
        yield ok(f"All {len(connection.url.hosts)} Sentinels answer.")
    if info and not info.get("connected_slaves"):
        yield warning("It has no replica: none can take over.", "Start one (replicaof).")


def _version_of(info: dict[str, Any]) -> Finding:
    number = str(info.get("redis_version", "of an unknown version"))
    parts = [int(part) for part in number.split(".")[:2] if part.isdecimal()]
    if parts and tuple(parts) < OLDEST_REDIS:
        oldest = ".".join(map(str, OLDEST_REDIS))
        return problem(f"Version {number} is too old.", f"{oldest} or newer.")
    if info.get("server_name") == "valkey":
        return ok(f"Valkey {info.get('valkey_version')} answers.")
    return ok(f"Redis {number} answers.")


def _latency(connection: Connection) -> Finding:
    times = []
    for _ in range(PINGS):
        start = time.perf_counter()
        connection.patiently(connection.redis.ping)
        times.append(time.perf_counter() - start)
    middle = statistics.median(times)
    if middle > SLOW_REDIS:
        return warning(
            f"An answer takes {1000 * middle:.0f} ms (the median of {PINGS}).",
            "Have workers and Redis in one region.",
        )
    return ok(f"An answer takes {1000 * middle:.1f} ms.")


def _persistence(connection: Connection, info: dict[str, Any]) -> Finding:
    import redis.exceptions

    if not info.get("aof_enabled"):
        return problem(
            "The append-only file is off: a restart loses jobs that were accepted.",
            "Set `appendonly yes` in its configuration (CONFIG SET appendonly yes, and REWRITE).",
        )
    if info.get("aof_last_write_status") == "err":
        return problem(
            "It cannot write its append-only file: its disk is full or broken.",
            "See its log, and free space where its data lies.",
        )
    try:
        policy = connection.redis.config_get("appendfsync").get("appendfsync")
    except redis.exceptions.RedisError:  # a managed Redis often refuses CONFIG
        return ok("The append-only file is on; its fsync policy is hidden.")
    if policy == "no":
        return warning(
            "appendfsync is no: a power loss costs all jobs that the system had not written, "
            "often half a minute of jobs.",
            "Set `appendfsync everysec`, or `always`.",
        )
    lost = {
        "everysec": "a machine that loses power may lose its last second of jobs (`always` closes "
        "that gap, at the cost of a wait for the disk with each submission)",
        "always": "a power loss costs nothing",
    }[str(policy)]
    return ok(f"The append-only file is on, appendfsync {policy}: {lost}.")


def _memory(info: dict[str, Any]) -> Finding:
    limit = int(info.get("maxmemory", 0))
    used = int(info["used_memory"])
    if limit and used > FULL * limit:
        return warning(
            f"It uses {used / limit:.0%} of its maxmemory; full, it accepts no jobs.",
            "Raise maxmemory, or lower LTXQ_RETENTION.",
        )
    bound = f" of {limit / 1e6:,.0f}" if limit else ", no bound (maxmemory 0)"
    return ok(f"It uses {used / 1e6:,.0f} MB{bound}.")


def _exposure(settings: Settings) -> Iterator[Finding]:
    url = settings.redis
    if all(host in LOOPBACK for host, _ in url.hosts):  # or a socket
        return
    if not url.tls:
        yield warning(
            "Prompts, results and the password cross the network unencrypted.",
            "Use rediss:// (TLS), unless the network is your own.",
        )
    if not url.password:
        yield warning(
            "It has no password: anyone who reaches it can read and forge jobs.",
            "Set one (requirepass or ACL), and put it into LTXQ_URL.",
        )
