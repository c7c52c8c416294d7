"""What ltxq does on Redis, as data: every command with the keys and channels that it is run on, for
each role. Redis checks the commands inside of scripts too, so those of ltxq, of kombu and of the
gateway's rate limits are among them.

From this come the probe at the start (probe.py), `ltxq doctor`, and the ACL lines in
docs/operating.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from ltxq.job import CONTRACT

Role = Literal["client", "gateway", "worker", "flower"]
"""client: producers and the `ltxq` commands; worker: a supervisor and its worker processes."""


@dataclass(frozen=True)
class Keys:
    """Keys as an ACL names them, and one of each form that they have: an ACL may have another
    pattern, that fits some.
    """

    pattern: str
    samples: tuple[str, ...]


@dataclass(frozen=True)
class Channel:
    """A channel as an ACL names it. Who subscribes to a pattern must be granted that very one."""

    pattern: str

    def named(self, db: int) -> str:
        """The pattern on this database: Celery's channels have its number in their names."""
        return self.pattern.replace("{db}", str(db))


@dataclass(frozen=True)
class Use:
    """Calls on the same keys. In a call `K` stands for a key of `keys`, `L` for one of `others`."""

    calls: str  # one a line, or separated by semicolons
    keys: Keys | None = None
    others: Keys | None = None


_BY_PRIORITY = "\x06\x163"  # what kombu adds to a list's name for a Celery priority
LEDGER = Keys("ltxq:*", (f"ltxq:{CONTRACT}:probe",))
NAME = Keys("ltxq:*", ("ltxq:id",))
RATES = Keys("ltxq:*", ("ltxq:rates:{probe}", "ltxq:rates:{probe}/-1"))
# Celery's lists of wake-ups
QUEUES = Keys("ltxq.*", (f"ltxq.{CONTRACT}.probe", f"ltxq.{CONTRACT}.probe{_BY_PRIORITY}"))
RESULTS = Keys("celery-task-meta-*", ("celery-task-meta-probe",))
BINDINGS = Keys(
    "_kombu.*",
    ("_kombu.binding.probe", "_kombu.binding_permanent.probe", "_kombu.binding_deadlines"),
)
# Remote control, and its replies
MAILBOXES = Keys(
    "*.celery.pidbox*",
    ("probe.celery.pidbox", f"probe.reply.celery.pidbox{_BY_PRIORITY}"),
)
EVENTS = Keys("celeryev.*", ("celeryev.probe", f"celeryev.probe{_BY_PRIORITY}"))  # Flower's

CHANGED = Channel(f"ltxq:{CONTRACT}:changed:*")
CANCEL = Channel(f"ltxq:{CONTRACT}:cancel:*")
OUTCOMES = Channel("celery-task-meta-*")
CELERY_EVENTS = Channel("/{db}.celeryev/*")
CONTROL = Channel("/{db}.celery.pidbox")

_SESSION = Use("PING; SELECT 0")
CONNECTION = ("ping",)  # in the category @connection, with what redis-py says of itself
_SCRIPTS = Use("EVALSHA 0 0; SCRIPT LOAD x; SCRIPT EXISTS x; TIME")
# script/*.lua, and the few calls of the Python beside it
_ON_LEDGER = Use(
    """
    DEL K; EXISTS K; TYPE K; GET K; GETSET K 1; SET K 1; INCR K; MGET K
    HDEL K x; HGET K x; HGETALL K; HINCRBY K x 1; HMGET K x; HSET K x 1
    SADD K x; SCARD K; SISMEMBER K x; SMEMBERS K; SRANDMEMBER K; SREM K x; SSCAN K 0
    ZADD K 1 x; ZCARD K; ZCOUNT K 0 1; ZRANDMEMBER K 1; ZRANGE K 0 1; ZRANGEBYSCORE K 0 1; ZRANK K x
    ZREM K x; ZREMRANGEBYRANK K 0 1; ZREMRANGEBYSCORE K 0 1; ZREVRANGEBYSCORE K 1 0; ZSCORE K x
    """,
    LEDGER,
)
_ON_NAME = Use("GET K; SET K 1", NAME)
# A node of a cluster refuses keys of two slots. It is never run: a queue is a list.
_ACROSS = Use("MGET K L", LEDGER, QUEUES)
_ON_QUEUES = Use("LLEN K; LPUSH K x; TYPE K; DEL K; LMOVE K K RIGHT LEFT", QUEUES)
_ON_RESULTS = Use("GET K; MGET K; SET K 1; SETEX K 1 1; EXPIRE K 1; DEL K", RESULTS)
_BIND = Use("SADD K x; SMEMBERS K", BINDINGS)
_LEDGER = (_SESSION, _SCRIPTS, _ON_LEDGER, _ON_NAME, _ACROSS, _ON_QUEUES, _ON_RESULTS, _BIND)
_KOMBU = (
    Use("SADD K x; SREM K x; SMEMBERS K; EXISTS K; DEL K; TYPE K", BINDINGS),
    Use("ZADD K 1 x; ZREM K x; ZRANGEBYSCORE K 0 1", BINDINGS),
    Use("LPUSH K x; LLEN K; DEL K", MAILBOXES),
)

USES: dict[Role, tuple[Use, ...]] = {
    "client": _LEDGER,
    "gateway": (*_LEDGER, Use("GET K; SET K 1; EXISTS K; INCRBY K 1; PTTL K; RENAME K K", RATES)),
    "worker": (
        *_LEDGER,
        *_KOMBU,
        Use("BLMOVE K L RIGHT LEFT 1; LMOVE L K LEFT RIGHT", QUEUES, LEDGER),
        Use("SCAN 0"),
    ),
    "flower": (
        _SESSION,
        _SCRIPTS,
        *_KOMBU,
        Use("BRPOP K 1", MAILBOXES),
        Use("LLEN K; LPUSH K x; DEL K", EVENTS),
        Use("LLEN K", QUEUES),
        Use("GET K; MGET K; DEL K", RESULTS),
    ),
}
CHANNELS: dict[Role, dict[str, tuple[Channel, ...]]] = {
    "client": {
        "PUBLISH": (CHANGED, CANCEL, OUTCOMES, CELERY_EVENTS),
        "SUBSCRIBE": (CHANGED, OUTCOMES),
        "UNSUBSCRIBE": (CHANGED,),
    },
    "gateway": {
        "PUBLISH": (CHANGED, CANCEL, OUTCOMES, CELERY_EVENTS),
        "SUBSCRIBE": (CHANGED,),
        "PSUBSCRIBE": (CHANGED,),
        "UNSUBSCRIBE": (CHANGED,),
        "PUNSUBSCRIBE": (CHANGED,),
    },
    "worker": {
        "PUBLISH": (CHANGED, CANCEL, OUTCOMES, CELERY_EVENTS),
        "SUBSCRIBE": (CHANGED, CANCEL),
        "PSUBSCRIBE": (CONTROL,),
        "UNSUBSCRIBE": (CHANGED,),
        "PUNSUBSCRIBE": (CONTROL,),
    },
    "flower": {
        "PUBLISH": (CONTROL, CELERY_EVENTS),
        "SUBSCRIBE": (OUTCOMES,),
        "PSUBSCRIBE": (CELERY_EVENTS,),
        "UNSUBSCRIBE": (OUTCOMES,),
        "PUNSUBSCRIBE": (CELERY_EVENTS,),
    },
}
TRANSACTION = ("multi", "exec", "discard")
# Not needed: INFO for the warnings of `ltxq doctor` and Redis's memory in /metrics. WAIT is needed
# with LTXQ_REDIS_REPLICAS alone.
OPTIONAL = ("info", "wait")


@dataclass(frozen=True)
class Call:
    """One call as it is sent, and what an ACL must grant for it."""

    words: tuple[str, ...]
    command: str  # as an ACL writes it: "hset", "script|load"
    keys: tuple[str, ...] = ()  # patterns
    channel: str = ""


def calls(role: Role, db: int) -> Iterator[Call]:
    """Every call of a role, each with keys or a channel as it uses them."""
    for use in USES[role]:
        for text in use.calls.replace("\n", ";").split(";"):
            if words := text.split():
                for number in range(len(use.keys.samples) if use.keys else 1):
                    yield _call(use, words, db, number)
    for command, channels in CHANNELS[role].items():
        for channel in channels:
            name = channel.named(db)
            one = name if command.startswith(("PSUB", "PUNSUB")) else name.replace("*", "probe")
            sent = (command, one, "") if command == "PUBLISH" else (command, one)
            leaves = "UNSUBSCRIBE" in command  # which needs no grant of the channel
            yield Call(sent, command.lower(), channel="" if leaves else name)


def acl_line(role: Role, db: int = 0, *, without: Collection[str] = ()) -> str:
    """The rules of an ACL user that may do what the role does, and nothing else.

    Args:
        without: rules to leave out, as "+hset", "~ltxq:*", "&ltxq:3:changed:*".
    """
    needed = list(calls(role, db))
    keys = sorted({pattern for call in needed for pattern in call.keys})
    channels = sorted({call.channel for call in needed if call.channel})
    commands = sorted({call.command for call in needed} - {*CONNECTION} | {*TRANSACTION, *OPTIONAL})
    # The connection's own commands (HELLO, CLIENT SETINFO, …): some are not in every version.
    rules = ["resetkeys", "resetchannels", "-@all", "+@connection", "-@dangerous"]
    rules += [f"~{key}" for key in keys] + [f"&{channel}" for channel in channels]
    rules += [f"+{command}" for command in commands]
    return " ".join(rule for rule in rules if rule not in without)


def _call(use: Use, words: list[str], db: int, number: int) -> Call:
    named = {"K": use.keys, "L": use.others}
    places = [named[word] for word in words if word in named]
    filled = tuple(
        keys.samples[number % len(keys.samples)] if (keys := named.get(word)) else word
        for word in words
    )
    command = "|".join(words[:2]).lower() if words[0] == "SCRIPT" else words[0].lower()
    if words[0] == "SELECT":
        filled = ("SELECT", str(db))
    return Call(filled, command, tuple(dict.fromkeys(keys.pattern for keys in places if keys)))
