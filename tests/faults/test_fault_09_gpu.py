"""A GPU that runs out of memory, and one that refuses all work after an error of CUDA's own.

There is no GPU here: torch's own errors are raised inside the real pipeline of a real worker with
the tiny model. That CUDA raises them so, and what memory is free after, is tests/gpu's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet import PATIENCE, SMALL, Fleet, eventually, worker_environment
from ltxq import Client
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import RedisServer, S3Server
from ltxq_worker.models.tiny.model import make_tiny
from servers import start_or_skip


@pytest.fixture(scope="module")
def redis_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with start_or_skip(lambda: RedisServer.start(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture(scope="module")
def fleet(
    redis_of_all: RedisServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """A worker with the tiny model, whose device fails when a prompt says so."""
    folder = tmp_path_factory.mktemp("gpu")
    make_tiny(folder / "models" / "tiny")
    environment = {
        **worker_environment(redis_of_all.url, s3_server, folder / "spool"),
        "LTXQ_MODEL_DIR": str(folder / "models"),
        "LTXQ_MAX_LOST": "2",
        "PYTHONPATH": str(Path(__file__).with_name("broken_gpu")),
    }
    with Fleet(environment, model="tiny") as running:
        yield running.wait_until_ready()


@pytest.fixture
def client(fleet: Fleet, redis_of_all: RedisServer) -> Iterator[Client]:
    with Client(settings=Settings(url=redis_of_all.url, default_model="tiny")) as made:
        yield made


def test_out_of_memory_says_what_to_lower_and_the_next_job_runs(
    fleet: Fleet, client: Client
) -> None:
    eventually(fleet.workers)
    workers = fleet.workers()
    failed = client.wait(
        client.submit("out of memory", width=256, height=256, num_frames=97).id, PATIENCE
    )
    assert failed.error is not None
    assert (failed.error.code, failed.attempts) == ("out_of_memory", 1)
    assert "256×256 with 97 frames" in failed.error.message
    assert "The largest that fits: 256×256 with 89 frames" in failed.error.hint  # frames first
    done = client.wait(client.submit("a fox", **SMALL).id, PATIENCE)
    assert (done.state, done.attempts) == ("succeeded", 1)
    assert fleet.workers() == workers  # the process lives on


def test_a_broken_device_replaces_the_process_and_the_job_runs_again(
    fleet: Fleet, client: Client
) -> None:
    before = fleet.log.count("is ready")
    job = client.submit("break while decoding", **SMALL)
    fleet.wait_for(f"{job.id}: CUDA error: device-side assert triggered. This process is replaced")
    done = client.wait(job.id, PATIENCE)
    assert (done.state, done.attempts) == ("succeeded", 2)
    assert fleet.log.count("is ready") == before + 1


@pytest.mark.extended
def test_a_job_that_always_breaks_it_fails_as_worker_lost(fleet: Fleet, client: Client) -> None:
    bad = client.submit("break always", **SMALL)
    after = client.submit("a fox", **SMALL)
    failed = client.wait(bad.id, PATIENCE)
    assert failed.error is not None
    assert (failed.error.code, failed.attempts) == ("worker_lost", 2)
    assert client.wait(after.id, PATIENCE).state == "succeeded"
