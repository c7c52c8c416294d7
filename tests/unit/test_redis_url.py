"""`LTXQ_URL` of a Redis: its forms, and what a wrong one is told, which shows no part of it."""

from __future__ import annotations

import random
import string
import traceback
from urllib.parse import quote

import pytest

from ltxq import Client
from ltxq.errors import ConfigurationError
from ltxq.settings import Settings
from ltxq.settings.redis_url import RedisUrl

SECRET = "Tops3cretPart"
CHARACTERS = string.printable + "äß€🦊\x00\x7f"


@pytest.mark.parametrize(
    ("url", "hosts", "db", "login"),
    [
        ("redis://queue", [("queue", 6379)], 0, (None, None)),
        ("redis://:p%40ss@queue:1/3", [("queue", 1)], 3, (None, "p@ss")),
        ("rediss://me:a+b:c@queue:6380/", [("queue", 6380)], 0, ("me", "a+b:c")),
        ("redis://[::1]:7/1", [("::1", 7)], 1, (None, None)),
        ("redis://queue?db=4", [("queue", 6379)], 4, (None, None)),
    ],
)
def test_one_server(url: str, hosts: object, db: int, login: object) -> None:
    found = RedisUrl.parse(url)
    assert (list(found.hosts), found.db) == (hosts, db)
    assert (found.username, found.password) == login
    assert found.tls is url.startswith("rediss")


def test_a_socket() -> None:
    found = RedisUrl.parse("unix://me:p%2Fw@/run/redis%20x/redis.sock?db=2")
    assert (found.path, found.db, found.password) == ("/run/redis x/redis.sock", 2, "p/w")
    assert found.for_kombu(login=False) == "redis+socket:///run/redis%20x/redis.sock?virtual_host=2"


def test_sentinels() -> None:
    url = "sentinels://me:p%3Bw@a,b:1;[::1]:2/clips/3?sentinel_password=x%26y&sentinel_username=s"
    found = RedisUrl.parse(url)
    assert found.hosts == (("a", 26379), ("b", 1), ("::1", 2))
    assert (found.master, found.db, found.tls, found.password) == ("clips", 3, True, "p;w")
    assert found.sentinel_login == {"username": "s", "password": "x&y"}
    assert found.for_kombu(login=True) == (
        "sentinel://me:p%3Bw@a:26379/3;sentinel://me:p%3Bw@b:1/3;sentinel://me:p%3Bw@[::1]:2/3"
    )
    assert found.where == "'clips' of the Sentinels a:26379, b:1, [::1]:2"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"redis://:ab@{SECRET}/zz@127.0.0.1:6379/0", "must be encoded.*@ is %40"),
        (f"redis://:{SECRET}#x@queue/0", "must be encoded"),
        (f"redis://:{SECRET}/0@queue/0", "must be encoded"),
        (f"redis://:12/{SECRET}@queue", "must be encoded"),
        (f"redis://:{SECRET}?x@queue/0", "must be encoded"),
        (f"redis://queue?{SECRET}=1", "option that ltxq does not know; it knows db, ssl_certfile"),
        (f"redis://:50%{SECRET}@queue", "must be encoded"),
        (f"redis://:[{SECRET}@queue", "must be encoded"),
        (f"redis://:wörd{SECRET}@queue", "must be encoded"),
        (f"redis://:a {SECRET}@queue", "must be encoded"),
        (f"redis://{SECRET}@queue", "user name and no password.*redis://:password@host"),
        (f"redis://queue/{SECRET}", "no database number"),
        (f"redis://:{SECRET}@queue:99999", "port is wrong"),
        (f"redis://:{SECRET}@/0", "names no host"),
        (f"sentinel://:{SECRET}@a:26379;b:26379/0", "names no primary.*/master-name"),
        (f"sentinel://:{SECRET}@a:1;sentinel://:{SECRET}@b:1/0", "one URL for all Sentinels"),
        (f"redis+sentinel://:{SECRET}@a/clips", "sentinel://host:port;host:port/master-name"),
        (f"redis+socket://:{SECRET}@/run/redis.sock", "unix:///path"),
        (f"unix://:{SECRET}@host/run/redis.sock", "unix:///path/to/redis.sock"),
        (f"redis://:{SECRET}@queue/0\n", "begins or ends with a space or a line break"),
        ("rediss://queue?ssl_cert_reqs=none", "LTXQ_REDIS_CA names a private authority"),
        ("rediss://queue/0?ssl_certfile=/none.pem", "cannot be read with its key: ssl_certfile"),
        ("rediss://queue/0?ssl_keyfile=/none.key", "key without its certificate"),
        ("redis://queue/0?ssl_certfile=/none.pem", "has ssl_certfile and no TLS: write rediss://"),
        (f"rediss://queue/0?sentinel_password={SECRET}", "sentinel_password and no Sentinels"),
        ("redis://queue/1?db=2", "names a database twice"),
        ("sentinel://queue/clips/1?db=2", "names a database twice"),
        (f"amqp://:{SECRET}@queue", "must start with redis://"),
        (SECRET, "must start with redis://"),
    ],
)
def test_a_wrong_url_is_told_what_is_right_and_shows_nothing(
    url: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTXQ_URL", url)
    with pytest.raises(ConfigurationError, match=f"LTXQ_URL: .*{says}") as read:
        Settings.read()
    with pytest.raises(ValueError, match=says) as made:
        Settings(url=url)
    monkeypatch.delenv("LTXQ_URL")
    with pytest.raises(ConfigurationError, match=says) as given:
        Client(url)
    for caught in (read, made, given):
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert SECRET not in shown


def test_any_password_works_encoded_and_is_refused_or_understood_as_it_is() -> None:
    random.seed(7)
    for _ in range(3000):
        word = "".join(random.choices(CHARACTERS, k=random.randint(1, 20)))
        encoded = f"redis://:{quote(word, safe='')}@queue:1/2"
        assert RedisUrl.parse(encoded).password == word
        assert word not in repr(RedisUrl.parse(encoded)).replace("password", "") or len(word) < 3
        try:
            found = RedisUrl.parse(f"redis://:{word}@queue:1/2")
        except ValueError as exc:
            assert len(word) < 4 or word not in str(exc)  # noqa: PT017
        else:
            assert found.hosts == (("queue", 1),)
            assert found.password == word or "%" in word
