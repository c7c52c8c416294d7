"""`LTXQ_URL` of a Redis, read once: one server, a Unix socket, or a primary that Sentinels name.

    redis://[[user]:password@]host[:6379][/0]                rediss:// the same with TLS
    unix://[[user]:password@]/path/to/redis.sock[?db=0]
    sentinel://[[user]:password@]host[:26379][;host2…]/master-name[/0]
                                                             sentinels:// the same with TLS

No message here has any part of the URL: what looks like a host may be part of a password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import parse_qsl, quote, unquote

TLS = ("rediss", "sentinels")
SCHEMES = ("redis", "rediss", "unix", "sentinel", "sentinels")
REDIS_PORT, SENTINEL_PORT = 6379, 26379
OPTIONS = ("db", "ssl_certfile", "ssl_keyfile", "sentinel_username", "sentinel_password")

ENCODE = (
    "Write every character of a user name or password that is not a letter or digit as % and its "
    "two hex digits: @ is %40, / is %2F, # is %23, % is %25. Python's urllib.parse.quote(password, "
    "safe='') does it"
)
_FORMS = (
    "must start with redis://, rediss:// (TLS), unix:///path or https:// (a gateway), or be "
    "sentinel://host:port;host:port/master-name (with TLS sentinels://)"
)
_ONE_URL = (
    "must be one URL for all Sentinels: sentinel://[user:password@]host:port;host:port/master-name"
)
_LOGIN = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*")
_NAME = re.compile(r"[A-Za-z0-9._~%-]+")
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")


@dataclass(frozen=True, kw_only=True)
class RedisUrl:
    """Where the queue's Redis is, and how to log in. Every value is decoded."""

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()  # the server's; with a `master` the Sentinels'
    path: str = ""  # of a Unix socket
    master: str = ""  # the name by which Sentinels know the primary
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    options: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> RedisUrl:
        """Read `LTXQ_URL`.

        Raises:
            ValueError: says what is wrong and shows no part of the URL.
        """
        if url != url.strip():
            raise ValueError("begins or ends with a space or a line break; take it away")
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in SCHEMES:
            raise ValueError(_FORMS)
        if "sentinel" in scheme and "://" in rest:
            raise ValueError(_ONE_URL)
        # One @ and no #: a password with either cannot be taken for a host, nor a host for it.
        if rest.count("@") > 1 or "#" in rest or not rest.isascii() or not rest.isprintable():
            raise ValueError(f"has a character that must be encoded. {ENCODE}")
        rest, _, query = rest.partition("?")
        authority, slash, path = rest.partition("/")
        if "@" in path or "@" in query:
            raise ValueError(f"has a password with a character that must be encoded. {ENCODE}")
        login, _, place = authority.rpartition("@")
        username, password = _login(login)
        options = _options(scheme, query)
        made = partial(cls, scheme=scheme, username=username, password=password, options=options)
        if scheme == "unix":
            if place or not path:
                raise ValueError("names no socket: write unix:///path/to/redis.sock?db=0")
            return made(path=unquote(slash + path), db=_database("", options))
        if scheme in ("sentinel", "sentinels"):
            master, _, number = path.partition("/")
            if not _NAME.fullmatch(master) or (master.isdecimal() and not number):
                raise ValueError(
                    "names no primary: write sentinel://host:port;host:port/master-name, with the "
                    "name that the Sentinels' configuration has (sentinel monitor NAME …)"
                )
            hosts = tuple(_host(each, SENTINEL_PORT) for each in re.split("[;,]", place))
            return made(hosts=hosts, master=unquote(master), db=_database(number, options))
        return made(hosts=(_host(place, REDIS_PORT),), db=_database(path, options))

    @property
    def tls(self) -> bool:
        """Whether Redis, and the Sentinels, are spoken to through TLS."""
        return self.scheme in TLS

    @property
    def where(self) -> str:
        """The place, for messages: never the login."""
        if self.path:
            return self.path
        return f"{self.master!r} of the Sentinels {self.places}" if self.master else self.places

    @property
    def places(self) -> str:
        """The hosts, for messages."""
        return ", ".join(_shown(*each) for each in self.hosts)

    @property
    def user(self) -> str:
        """The ACL user's name."""
        return self.username or "default"

    @property
    def sentinel_login(self) -> dict[str, str]:
        """The Sentinels' own user and password, as redis-py's options."""
        names = ("username", "password")
        return {n: self.options[f"sentinel_{n}"] for n in names if f"sentinel_{n}" in self.options}

    @property
    def certificate(self) -> dict[str, str]:
        """The client's certificate and key, where the server asks for one."""
        return {n: path for n, path in self.options.items() if n.startswith("ssl_")}

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may show, as written and encoded."""
        plain = (self.password, self.options.get("sentinel_password"))
        return tuple(form for word in plain if word for form in (word, quote(word, safe="")))

    def for_kombu(self, *, login: bool) -> str:
        """The URL in the form of kombu and Celery. The name of a Sentinels' primary is an option of
        theirs, and is not in the URL.

        Args:
            login: with user and password. A URL without them cannot show them.
        """
        word = ""
        if login and self.password is not None:
            word = f"{quote(self.username or '', safe='')}:{quote(self.password, safe='')}@"
        if self.path:
            return f"redis+socket://{word}{quote(self.path)}?virtual_host={self.db}"
        scheme = "sentinel" if self.master else self.scheme
        return ";".join(f"{scheme}://{word}{_shown(*each)}/{self.db}" for each in self.hosts)


def _login(login: str) -> tuple[str | None, str | None]:
    if not _LOGIN.fullmatch(login):
        raise ValueError(f"has a password with a character that must be encoded. {ENCODE}")
    username, colon, password = login.partition(":")
    if username and not colon:
        raise ValueError(
            "has a user name and no password. A password alone is written with a colon before it: "
            "redis://:password@host"
        )
    return unquote(username) or None, unquote(password) or None


def _options(scheme: str, query: str) -> dict[str, str]:
    found = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))
    if not found.keys() <= set(OPTIONS):
        raise ValueError(
            f"has an option that ltxq does not know; it knows {', '.join(OPTIONS)}. (Certificates "
            "are always checked: LTXQ_REDIS_CA names a private authority.) If the ? is the "
            f"password's: {ENCODE}"
        )
    for name in found:
        if name.startswith("ssl_") and scheme not in TLS:
            raise ValueError(f"has {name} and no TLS: write rediss:// or sentinels://")
        if name.startswith("sentinel_") and "sentinel" not in scheme:
            raise ValueError(f"has {name} and no Sentinels: write sentinel:// or sentinels://")
    return found


def _host(place: str, port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(place)
    if not found or (found[2] and not 0 < int(found[2]) < 65536):
        raise ValueError(
            "names no host, or its port is wrong; or it has a password that must be encoded. "
            f"{ENCODE}"
        )
    return found[1].strip("[]"), int(found[2] or port)


def _database(path: str, options: dict[str, str]) -> int:
    if path and "db" in options:
        raise ValueError("names a database twice: in the path, and with db=")
    db = path or options.get("db", "0")
    if not re.fullmatch("[0-9]{1,6}", db):
        raise ValueError(
            "has no database number after the host, as the 0 in redis://host:6379/0; or it has a "
            f"password that must be encoded. {ENCODE}"
        )
    return int(db)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
