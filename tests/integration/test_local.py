"""The embedded servers: theirs alone, kept over a restart, never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from ltxq.errors import ConfigurationError, MissingExtra
from ltxq_worker.embedded import servers as local
from ltxq_worker.embedded.servers import RedisServer, S3Server, free_port, port_is_free
from servers import start_or_skip


def test_redis_keeps_what_it_acknowledged_when_killed(tmp_path: Path) -> None:
    with start_or_skip(lambda: RedisServer.start(tmp_path, fsync="always")) as first:
        with redis.Redis.from_url(first.url, socket_timeout=5) as connection:
            connection.set("a", "1")
        first.process.kill()
        first.process.wait(10)
    with (
        RedisServer.start(tmp_path, port=first.port) as second,
        redis.Redis.from_url(second.url, socket_timeout=5) as connection,
    ):
        assert connection.get("a") == b"1"


def test_redis_asks_for_its_password_and_shows_it_to_no_list_of_processes(tmp_path: Path) -> None:
    with start_or_skip(lambda: RedisServer.start(tmp_path, password='p @"s\\s')) as server:
        with redis.Redis.from_url(server.url, socket_timeout=5) as connection:
            assert connection.ping()
        with (
            redis.Redis(port=server.port, socket_timeout=5) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()
        command = Path(f"/proc/{server.process.pid}/cmdline")
        if command.exists():
            assert b"p @" not in command.read_bytes()


def test_a_taken_port_is_refused_where_it_was_asked_for(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    assert not port_is_free(redis_server.port)
    with pytest.raises(ConfigurationError, match=rf"port {redis_server.port}.*another program"):
        RedisServer.start(tmp_path, port=redis_server.port)


def test_a_free_port_taken_meanwhile_is_replaced(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([redis_server.port, free_port()])
    monkeypatch.setattr(local, "free_port", lambda: next(ports))
    with RedisServer.start(tmp_path) as server:
        assert server.port != redis_server.port


def test_a_server_that_ends_at_once_says_why(tmp_path: Path, redis_server: RedisServer) -> None:
    (tmp_path / "appendonly.aof").write_text("this is no append-only file\n")
    with pytest.raises(ConfigurationError, match="ended at once") as caught:
        RedisServer.start(tmp_path)
    assert "Bad file format" in str(caught.value)


def test_objects_are_plain_files_in_the_bucket_folder(tmp_path: Path) -> None:
    boto3 = pytest.importorskip("boto3")
    with start_or_skip(lambda: S3Server.start(tmp_path)) as server:
        client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            region_name="us-east-1",
        )
        client.put_object(Bucket=server.bucket, Key="a/b.txt", Body=b"hello")
        client.close()
    assert (tmp_path / server.bucket / "a" / "b.txt").read_bytes() == b"hello"


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_servers_end_with_a_parent_that_was_killed(tmp_path: Path, s3_server: S3Server) -> None:
    program = (
        "import sys; from pathlib import Path; from ltxq_worker.embedded.servers import *\n"
        "redis = RedisServer.start(Path(sys.argv[1]) / 'redis')\n"
        "s3 = S3Server.start(Path(sys.argv[1]) / 's3')\n"
        "print(redis.process.pid, s3.process.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        watched = [os.pidfd_open(pid) for pid in pids]
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    for pidfd in watched:
        assert _ended(pidfd, seconds=10)
        os.close(pidfd)


def _ended(pidfd: int, *, seconds: float) -> bool:
    """Whether the process ended in time: its pidfd then becomes readable."""
    import select

    readable, _, _ = select.select([pidfd], [], [], seconds)
    return bool(readable)


def test_a_missing_redis_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigurationError, match="apt install redis-server"):
        local.redis_binary()


def test_a_missing_rclone_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.sysconfig, "get_path", lambda name: "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingExtra, match=r"ltxq\[local\]"):
        local.rclone_binary()
