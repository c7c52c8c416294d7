"""A worker and a client of each test's own, on a Redis database and a bucket nobody else uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from fleet import worker_environment
from ltxq import Client
from ltxq_worker.embedded.servers import S3Server
from servers import S3


@pytest.fixture
def own(redis_url: str, s3_server: S3Server, tmp_path: Path) -> dict[str, str]:
    """The environment of a worker of the test's own, to do with as it likes."""
    return worker_environment(redis_url, s3_server, tmp_path / "spool")


@pytest.fixture
def misbehaving(own: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The same, where a job's prompt may tell it to misbehave: see inside/sitecustomize.py."""
    inside = Path(__file__).with_name("inside")
    return {**own, "PYTHONPATH": str(inside), "LTXQ_TEST_GO": str(tmp_path / "go")}


@pytest.fixture
def client(redis_url: str, s3: S3) -> Iterator[Client]:
    """A client of that worker's queue."""
    with Client(settings=s3.settings(url=redis_url, default_model="instant")) as made:
        yield made


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    """That queue's Redis itself."""
    with redis.Redis.from_url(redis_url, socket_timeout=5) as connection:
        yield connection
