"""Fixtures every test may use: a real Redis, two kinds of real S3 server, a clean environment."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

# What starts servers is imported where one is started: a machine that measures a GPU has neither
# Redis nor boto3, and runs tests/gpu.
if TYPE_CHECKING:
    from ltxq_worker.embedded.servers import RedisServer, S3Server
    from model_hub import Hub
    from servers import S3

_DATABASES = itertools.cycle(range(16))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting or credential of the person running the tests reaches them, nor the AWS cloud."""
    for name in list(os.environ):
        if name.startswith(("LTXQ_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.fixture(scope="session", autouse=True)
def _usual_signals() -> None:
    """`nohup`, and a script that starts the tests in the background, leave signals ignored, and the
    processes that tests start would inherit that.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis with its append-only file on, for all tests of this process: do not stop it."""
    from ltxq_worker.embedded.servers import RedisServer
    from servers import start_or_skip

    folder = tmp_path_factory.mktemp("redis")
    with start_or_skip(lambda: RedisServer.start(folder)) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """An empty database of `redis_server`; not the last test's, which may still be letting go."""
    import redis

    url = f"redis://127.0.0.1:{redis_server.port}/{next(_DATABASES)}"
    with redis.Redis.from_url(url, socket_timeout=5) as connection:
        connection.flushdb()
    return url


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """rclone's S3 server on a folder, for all tests of this process: do not stop it."""
    from ltxq_worker.embedded.servers import S3Server
    from servers import start_or_skip

    folder = tmp_path_factory.mktemp("s3")
    with start_or_skip(lambda: S3Server.start(folder)) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3:
    """rclone's S3 server, its credentials in this test's environment."""
    for name, value in s3_server.credentials.items():
        monkeypatch.setenv(name, value)
    from servers import S3

    return S3(s3_server.endpoint, s3_server.bucket, s3_server.credentials)


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """moto's S3 server, for all tests of this process."""
    from servers import moto_server

    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture
def moto(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3:
    """moto's S3 server with an empty bucket, credentials in this test's environment."""
    credentials = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in credentials.items():
        monkeypatch.setenv(name, value)
    import boto3

    from servers import S3

    client = boto3.Session().client("s3", endpoint_url=moto_endpoint)
    for bucket in client.list_buckets()["Buckets"]:
        for key in client.list_objects_v2(Bucket=bucket["Name"]).get("Contents", ()):
            client.delete_object(Bucket=bucket["Name"], Key=key["Key"])
        client.delete_bucket(Bucket=bucket["Name"])
    client.create_bucket(Bucket="clips")
    client.close()
    return S3(moto_endpoint, "clips", credentials)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A server that answers as the Hugging Face hub does."""
    from model_hub import serve

    with serve() as hub:
        yield hub
