"""Redis's error answers as ltxq's errors: what is at fault, and what to do about it.

Redis begins an answer with a code (NOAUTH, OOM, …). Few have a class in redis-py, and which do
depends on its version, so the codes decide here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import redis.exceptions as redis_errors
from redis.sentinel import MasterNotFoundError

from ltxq.errors import ConfigurationError, LtxqError, QueueUnavailable
from ltxq.settings.redis_url import ENCODE, RedisUrl

# Answers that may pass. MASTERDOWN, NOREPLICAS: its primary or its replicas are away.
PASSING = {
    "READONLY": ("is a read-only replica.", "Point LTXQ_URL at the primary."),
    "OOM": (
        "is full and takes no writes.",
        "Raise its maxmemory (and keep maxmemory-policy noeviction).",
    ),
    "LOADING": ("is still loading its data.", "Wait until it has started."),
    "MISCONF": (
        "cannot save its data and takes no writes.",
        "Its log names the cause: mostly a disk that is full.",
    ),
    "MASTERDOWN": (
        "is a replica that has lost its primary.",
        "Point LTXQ_URL at the primary, and see why the replica cannot reach it.",
    ),
    "NOREPLICAS": (
        "takes no writes: fewer replicas are connected than its min-replicas-to-write.",
        "Bring the replicas back.",
    ),
    "UNKEPT": (
        "has fewer replicas that confirm what they were sent than LTXQ_REDIS_REPLICAS.",
        "Bring the replicas back, or lower LTXQ_REDIS_REPLICAS.",
    ),
    "BUSY": ("is busy with a script.", "If that is another program's: SCRIPT KILL ends it."),
    "MAXCLIENTS": (
        "takes no more connections.",
        "Raise its maxclients (and its limit of open files), or stop programs that use it.",
    ),
}
_CLUSTER = (
    "is a node of a Redis Cluster, which cannot hold the queue: a step of a job touches several "
    "keys.",
    "Use one Redis (cluster-enabled no), or one with replicas and Sentinels.",
)
# Answers that do not pass by themselves.
LASTING = {
    "NOAUTH": ("asks for a password.", "Put it into LTXQ_URL: redis://:password@host."),
    "WRONGPASS": ("refuses this user or password.", f"Correct LTXQ_URL. {ENCODE}."),
    "NOPASS": (
        "has no password, and LTXQ_URL gives one.",
        "Take it out of LTXQ_URL, or give Redis one (requirepass, or an ACL user).",
    ),
    "DENIED": (
        "takes connections from its own machine alone (protected mode).",
        "Give it a password, then set protected-mode no.",
    ),
    **dict.fromkeys(("MOVED", "ASK", "TRYAGAIN", "CROSSSLOT", "CLUSTERDOWN"), _CLUSTER),
    "NODB": (
        "does not have this database.",
        "Write the number of one that it has at the end of LTXQ_URL, mostly /0.",
    ),
    "NOPROTO": ("is too old for RESP3.", "Use Redis 6.2 or newer, or Valkey."),
    "NOREDIS": (
        "does not speak Redis's protocol.",
        "Is LTXQ_URL's host and port that of another program?",
    ),
    "CERTIFICATE": (
        "shows a certificate that is not trusted.",
        "Set LTXQ_REDIS_CA to its CA's file, and name the host as the certificate does.",
    ),
    "TLS": (
        "and ltxq do not agree on TLS.",
        "rediss:// is for a port with TLS, redis:// for one without. A server that asks for a "
        "client's certificate: add ?ssl_certfile=…&ssl_keyfile=… to LTXQ_URL.",
    ),
}
# What Redis says under the code ERR, or redis-py under none.
_WORDS = (
    ("AUTH <password> called without", "NOPASS"),
    ("no password is set", "NOPASS"),
    ("max number of clients", "MAXCLIENTS"),
    ("not allowed in cluster mode", "MOVED"),
    ("in a cluster node", "MOVED"),  # of a script
    ("do not hash to the same slot", "CROSSSLOT"),
    ("DB index", "NODB"),
    ("Invalid Database", "NODB"),
    ("unsupported protocol version", "NOPROTO"),
    ("The user executing the script can't", "NOPERM"),  # Redis 6
    ("ACL failure in script", "NOPERM"),  # Redis 7
    ("CERTIFICATE_VERIFY_FAILED", "CERTIFICATE"),
    ("[SSL: ", "TLS"),
)
_CLASSES = (
    (redis_errors.NoPermissionError, "NOPERM"),
    (redis_errors.InvalidResponse, "NOREDIS"),
    (redis_errors.BusyLoadingError, "LOADING"),
    (redis_errors.ReadOnlyError, "READONLY"),
    (redis_errors.OutOfMemoryError, "OOM"),
    (redis_errors.MasterDownError, "MASTERDOWN"),
    (redis_errors.MovedError, "MOVED"),
    (redis_errors.AskError, "ASK"),
    (redis_errors.TryAgainError, "TRYAGAIN"),
    (redis_errors.ClusterCrossSlotError, "CROSSSLOT"),
    (redis_errors.ClusterDownError, "CLUSTERDOWN"),
    (redis_errors.AuthenticationError, "WRONGPASS"),
)


class NotPermitted(ConfigurationError):
    """The user of LTXQ_URL may not run a command, or not on this key or channel."""


def code_of(exc: BaseException) -> str:
    """The code of Redis's answer; '' if Redis did not answer."""
    text = str(exc)
    for words, code in _WORDS:
        if words in text:
            return code
    known = getattr(exc, "status_code", None)
    if known and known not in ("ERR", "EXECABORT"):  # the cause follows
        return str(known)
    # Where a script fails, the code follows: "Error running script (…): -OOM command not allowed …"
    for code in (*PASSING, *LASTING, "NOPERM"):
        if re.search(rf"(^|[ -]){code}\b", text):
            return code
    if "Authentication required" in text:
        return "NOAUTH"
    return next((code for kind, code in _CLASSES if isinstance(exc, kind)), "")


def passes(exc: BaseException) -> bool:
    """Whether the error may pass in a moment."""
    code = code_of(exc)
    if code in LASTING or code == "NOPERM":
        return False
    return code in PASSING or isinstance(
        exc, redis_errors.ConnectionError | redis_errors.TimeoutError
    )


def translated(url: RedisUrl, exc: redis_errors.RedisError) -> LtxqError:
    """ltxq's error of a Redis's."""
    redact(url, exc)
    redis, code = f"Redis at {url.where}", code_of(exc)
    if isinstance(exc, MasterNotFoundError):
        return _of_sentinels(url, str(exc))
    if code == "NOPERM" and (command := re.search(r"run the '(sentinel[|\w-]*)", str(exc))):
        name = url.options.get("sentinel_username", "default")
        return NotPermitted(
            f"The Sentinels {url.places} do not let their user {name!r} run {command[1].upper()}.",
            hint=f"Grant it at each Sentinel: ACL SETUSER {name} +sentinel|masters.",
        )
    if code == "NOPERM":
        return not_permitted(url, str(exc))
    if code in PASSING:
        what, hint = PASSING[code]
        return QueueUnavailable(f"{redis} {what}", hint=hint)
    if code in LASTING:
        what, hint = LASTING[code]
        return ConfigurationError(f"{redis} {what}", hint=hint)
    if unknown := re.search(r"unknown (?:sub)?command '?`?([\w|-]+)", str(exc)):
        return _of_unknown(url, unknown[1].upper())
    if re.search(r"Error -\d+ connecting", str(exc)):  # of the resolver
        return QueueUnavailable(
            f"The host of {redis} is not known here.",
            hint="Is its name in LTXQ_URL right, and does this machine's name server know it?",
        )
    if passes(exc) and url.path:
        return QueueUnavailable(
            f"{redis} does not answer ({type(exc).__name__}).",
            hint="Is it running, is that its socket, and may this user write to it?",
        )
    if passes(exc):
        return QueueUnavailable(
            f"{redis} does not answer ({type(exc).__name__}).",
            hint="Is it running, and is LTXQ_URL right? (rediss:// with TLS, redis:// without.)",
        )
    # After "with args" Redis repeats what it was sent, which may be anything.
    return LtxqError(f"{redis} answered: {str(exc).partition(', with args')[0][:300]}")


def redact(url: RedisUrl, exc: BaseException) -> None:
    """Take the passwords out of an error and its causes: an old Redis repeats what it was sent."""
    for each in _with_causes(exc):
        if any(secret in str(arg) for secret in url.secrets for arg in each.args):
            each.args = tuple(_starred(url, str(arg)) for arg in each.args)


def not_permitted(url: RedisUrl, answer: str, grants: str = "") -> NotPermitted:
    """The error of a NOPERM. `grants`: what an ACL needs, if a probe knows it."""
    if named := re.search(r"run the '([\w|-]+)'", answer):
        what = f"run {named[1].upper()}"
        grants = grants or f"+{named[1].lower()}"
    elif "channel" in answer:
        what = "use one of ltxq's channels"
    elif "key" in answer:
        what = "use one of ltxq's keys"
    else:
        what = "run one of ltxq's commands"
    grant = f"ACL SETUSER {url.user} {grants}" if grants else "`ltxq doctor` names what is missing"
    return NotPermitted(
        f"Redis at {url.where} does not let its user {url.user!r} {what}.",
        hint=f"Grant it: {grant}. docs/operating.md has the whole line for each role.",
    )


def _of_unknown(url: RedisUrl, command: str) -> LtxqError:
    if command == "SENTINEL":
        return ConfigurationError(
            f"A server of {url.places} is no Sentinel.",
            hint="sentinel:// lists the Sentinels' addresses (mostly port 26379), not Redis's.",
        )
    return ConfigurationError(
        f"Redis at {url.where} does not know the command {command}.",
        hint="It is older than Redis 6.2, or its provider has turned the command off or renamed "
        "it, or it is a Sentinel (for which LTXQ_URL is sentinel://host:port/master-name).",
    )


def _of_sentinels(url: RedisUrl, text: str) -> LtxqError:
    if "AuthenticationError" in text or "auth:" in text:
        return ConfigurationError(
            f"The Sentinels {url.places} refuse the password, or ask for one.",
            hint="Their own is not Redis's: add ?sentinel_password=… to LTXQ_URL, and "
            "&sentinel_username=… if they have users.",
        )
    if text.count(" - ") >= len(url.hosts):
        return QueueUnavailable(
            f"No Sentinel of {url.places} answers.", hint="Are they running, and is LTXQ_URL right?"
        )
    return QueueUnavailable(
        f"The Sentinels know no primary {url.master!r} that is up.",
        hint="While a failover is under way this passes. Else correct the name in LTXQ_URL: it is "
        "the one in their configuration (sentinel monitor NAME …).",
    )


def _with_causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _starred(url: RedisUrl, text: str) -> str:
    for secret in url.secrets:
        text = text.replace(secret, "***")
    return text
