"""Servers that answer a call with an error, or in another way than Redis does: what is at fault is
named, and what to do.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest
import redis

from fleet import eventually
from ltxq.errors import ConfigurationError, LtxqError, QueueUnavailable
from ltxq.job import VideoRequest, new_job_id
from ltxq.ledger import Ledger
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import EmbeddedServer
from redis_servers import LOOPBACK, admin, start_redis

SECRET = "Pl4ntedRedisWord"
FOX = VideoRequest(prompt="a fox", model="instant", seed=1)


def answer_to(url: str) -> LtxqError:
    """What a submission ends with, tried until ltxq gives up."""
    with closing(Ledger(Settings(url=url))) as ledger, pytest.raises(LtxqError) as refused:
        ledger.jobs.submit(new_job_id(), FOX)
    chain: BaseException | None = refused.value
    while chain is not None:  # a traceback shows them all
        assert SECRET not in f"{chain!r} {chain}"
        chain = chain.__cause__ or chain.__context__
    return refused.value


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with start_redis(tmp_path / "redis") as made:
        yield made


@pytest.fixture
def root(server: EmbeddedServer) -> Iterator[redis.Redis]:
    with admin(server) as connection:
        yield connection


def url_of(server: EmbeddedServer, login: str = "", db: int = 0) -> str:
    return f"redis://{login}{LOOPBACK}:{server.port}/{db}"


def test_passwords(server: EmbeddedServer, root: redis.Redis) -> None:
    needless = answer_to(url_of(server, f"me:{SECRET}@"))
    assert "refuses this user or password" in needless.message
    root.config_set("requirepass", "other")
    missing, wrong = answer_to(url_of(server)), answer_to(url_of(server, f":{SECRET}@"))
    assert "asks for a password" in missing.message
    assert "redis://:password@host" in missing.hint
    assert "refuses this user or password" in wrong.message
    assert "%40" in wrong.hint
    for error in (needless, missing, wrong):
        assert isinstance(error, ConfigurationError)


def test_a_host_that_no_name_server_knows() -> None:
    error = answer_to(f"redis://:{SECRET}@queue.invalid/0")
    assert "queue.invalid:6379 is not known here" in error.message
    assert isinstance(error, QueueUnavailable)


def test_a_replica_and_one_that_lost_its_primary(server: EmbeddedServer, root: redis.Redis) -> None:
    root.replicaof(LOOPBACK, 1)
    assert "read-only replica" in answer_to(url_of(server)).message
    root.config_set("replica-serve-stale-data", "no")
    assert "replica that has lost its primary" in answer_to(url_of(server)).message


@pytest.mark.extended
def test_writes_that_are_refused(server: EmbeddedServer, root: redis.Redis, tmp_path: Path) -> None:
    root.config_set("min-replicas-to-write", "1")
    lonely = answer_to(url_of(server))
    assert "min-replicas-to-write" in lonely.message
    root.config_set("min-replicas-to-write", "0")
    root.config_set("maxmemory", "1")
    assert "is full" in answer_to(url_of(server)).message
    root.config_set("maxmemory", "0")
    root.config_set("appendonly", "no")
    root.config_set("save", "1 1")
    folder = tmp_path / "gone"
    folder.mkdir()
    root.config_set("dir", str(folder))
    folder.rmdir()
    root.set("x", 1)
    with pytest.raises(redis.ResponseError):
        root.save()
    _until_unsaved(root)
    unsaved = answer_to(url_of(server))
    root.config_set("save", "")  # else it would not end
    assert "cannot save its data" in unsaved.message
    assert isinstance(unsaved, QueueUnavailable)


def _until_unsaved(root: redis.Redis) -> None:
    def failed() -> bool:
        with suppress(redis.ResponseError):
            root.bgsave()
        return root.info("persistence")["rdb_last_bgsave_status"] == "err"

    eventually(failed)


@pytest.mark.extended
def test_a_script_without_end(server: EmbeddedServer, root: redis.Redis) -> None:
    root.config_set("lua-time-limit", "10")
    loop = threading.Thread(target=_loop, args=(server,))
    loop.start()
    try:

        def busy() -> bool:
            try:
                return not root.ping()
            except redis.ResponseError:
                return True

        eventually(busy)
        error = answer_to(url_of(server))
    finally:
        with admin(server) as other:
            other.script_kill()
        loop.join(30)
    assert "busy with a script" in error.message


def _loop(server: EmbeddedServer) -> None:
    with admin(server) as other, pytest.raises((redis.ResponseError, redis.TimeoutError)):
        other.eval("while true do end", 0)


def test_databases_connections_and_renamed_commands(tmp_path: Path) -> None:
    with start_redis(
        tmp_path / "redis", databases="4", maxclients="2", rename_command="EVALSHA hidden"
    ) as server:
        nowhere = answer_to(url_of(server, db=9))
        assert "does not have this database" in nowhere.message
        renamed = answer_to(url_of(server))
        assert "does not know the command EVALSHA" in renamed.message
        assert "provider" in renamed.hint
        with ExitStack() as crowd:
            for _ in range(2):
                crowd.enter_context(admin(server)).ping()
            assert "takes no more connections" in answer_to(url_of(server)).message


@pytest.mark.parametrize(
    ("line", "says"),
    [
        # Redis 5 repeats what it was sent: the password.
        (f"-ERR unknown command `HELLO`, with args beginning with: `3`, `{SECRET}`, ", "HELLO"),
        ("-NOPROTO unsupported protocol version", "Redis 6.2 or newer"),
        ("-DENIED Redis is running in protected mode because …", "protected"),
        ("-LOADING Redis is loading the dataset in memory", "loading its data"),
        ("-ERR AUTH <password> called without any password configured", "has no password"),
        ("-MOVED 42 10.0.0.1:6379", "Redis Cluster"),
        ("-CLUSTERDOWN Hash slot not served", "Redis Cluster"),
        ("-ERR SELECT is not allowed in cluster mode", "Redis Cluster"),
        ("-XYZ never seen before", "answered: XYZ never seen"),
        (f"-ERR syntax error, with args beginning with: {SECRET}", "answered: syntax error"),
        (f"-ERR your word {SECRET} is odd", r"word \*\*\* is odd"),
        ("$-1", "does not speak Redis's protocol"),
        ("+OK", "does not speak Redis's protocol"),
        ("!!garbage", "does not speak Redis's protocol"),
        ("HTTP/1.1 400 Bad Request", "does not speak Redis's protocol"),
        ("SSH-2.0-OpenSSH_9.2", "does not speak Redis's protocol"),
    ],
)  # fmt: skip
def test_answers_of_servers_that_are_not_to_be_had_here(line: str, says: str) -> None:
    class Fixed(StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline():
                self.wfile.write(line.encode() + b"\r\n")

    with serving(ThreadingTCPServer((LOOPBACK, 0), Fixed)) as fixed:
        error = answer_to(f"redis://me:{SECRET}@{LOOPBACK}:{fixed.server_address[1]}/0")
    assert re.search(says, str(error)), error


@contextmanager
def serving(server: ThreadingTCPServer) -> Iterator[ThreadingTCPServer]:
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()
