"""A job that is deleted and sent again under its own id while a worker still has the first one; and
a failover to a replica that knows less.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from stages import STAGES

from fleet import PATIENCE, SMALL, Fleet, eventually, fetch
from ltxq import Client
from ltxq.job import Job
from ltxq.ledger import PREFIX, queue_name
from ltxq_worker.embedded.servers import RedisServer
from proxy import Proxy
from servers import S3, start_or_skip

ID = "order-17"


def send(url: str, prompt: str) -> None:
    """As a plain Celery producer does, under an id of its own."""
    app = Celery(broker=url, backend=url, set_as_current=False)
    request = {"prompt": prompt, **SMALL}
    app.send_task(
        "ltxq.generate", task_id=ID, kwargs={"request": request}, queue=queue_name("instant")
    )
    app.close()


def stage_of(client: Client, job_id: str) -> str | None:
    return getattr(client.get(job_id).progress, "stage", None)


def known(client: Client, job_id: str) -> bool:
    return job_id in client.get_many([job_id])


def makes_the_next(late: Fleet, prompt: Fleet, client: Client) -> None:
    """The late worker is done with the job that it lost: it takes another."""
    assert prompt.stop() == 0
    following = client.wait(client.submit("next", **SMALL).id, PATIENCE)
    assert (following.state, following.worker) == ("succeeded", "cpu0@late")


def has_its_clip(client: Client, job: Job) -> None:
    """What the ledger names is there, byte for byte."""
    result = client.get(job.id).result_or_raise()
    assert hashlib.sha256(fetch(result.url)).hexdigest() == result.sha256


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_sent_again_keeps_its_clip_when_the_first_ones_worker_goes_on(
    misbehaving: dict[str, str], redis_url: str, client: Client, stage: str
) -> None:
    environment = {**misbehaving, "LTXQ_LEASE": "2"}
    with Fleet(environment, name="late") as late:
        late.wait_until_ready()
        send(redis_url, f"wait {stage}")
        eventually(lambda: known(client, ID))
        wanted = "upload" if stage == "finish" else stage
        eventually(lambda: stage_of(client, ID) == wanted)
        late.supervisor.send_signal(signal.SIGSTOP)
        (worker,) = late.workers()
        worker.suspend()
        client.cancel(ID)  # before another worker is there to take the job
        with Fleet(environment, name="prompt") as prompt:
            prompt.wait_until_ready()
            assert client.wait(ID, PATIENCE).state == "cancelled"  # its lease ended
            client.delete(ID)
            send(redis_url, "another fox")
            eventually(lambda: known(client, ID) and client.get(ID).finished)
            done = client.get(ID)
            assert (done.state, done.attempts, done.worker) == ("succeeded", 1, "cpu0@prompt")
            Path(misbehaving["LTXQ_TEST_GO"]).touch()
            worker.send_signal(signal.SIGCONT)
            late.supervisor.send_signal(signal.SIGCONT)
            late.wait_for(f"{ID} was deleted, or lost to another claim; dropped")
            makes_the_next(late, prompt, client)
            has_its_clip(client, done)
            assert client.get(ID) == done.model_copy(update={"result": client.get(ID).result})


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    """A primary and its replica."""
    with (
        start_or_skip(lambda: RedisServer.start(tmp_path / "primary")) as primary,
        start_or_skip(lambda: RedisServer.start(tmp_path / "replica")) as replica,
    ):
        with redis.Redis(port=replica.port, socket_timeout=5) as connection:
            connection.replicaof("127.0.0.1", primary.port)
            eventually(lambda: connection.info("replication")["master_link_status"] == "up")
        yield primary, replica


@pytest.mark.extended
@pytest.mark.parametrize("stage", STAGES)
def test_a_claim_that_a_failover_forgot_takes_no_clip_away(
    misbehaving: dict[str, str], pair: tuple[RedisServer, RedisServer], s3: S3, stage: str
) -> None:
    primary, replica = pair
    with Proxy(primary.port) as proxy, redis.Redis(port=replica.port, socket_timeout=5) as second:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        environment = {**misbehaving, "LTXQ_LEASE": "2", "LTXQ_URL": url}
        settings: dict[str, Any] = {"url": url, "default_model": "instant"}
        with Client(settings=s3.settings(**settings)) as client:
            job = client.submit(f"wait {stage}", **SMALL)
            eventually(lambda: second.exists(f"{PREFIX}job:{job.id}"))
            second.replicaof("NO", "ONE")  # from here on it hears nothing
            with Fleet(environment, name="late") as late:
                late.wait_until_ready()
                wanted = "upload" if stage == "finish" else stage
                eventually(lambda: stage_of(client, job.id) == wanted)
                late.supervisor.send_signal(signal.SIGSTOP)
                (worker,) = late.workers()
                worker.suspend()
                proxy.target = replica.port
                primary.process.kill()
                goes_on = {**environment, "LTXQ_TEST_GO": __file__}  # it is there: nothing waits
                with Fleet(goes_on, name="prompt") as prompt:
                    prompt.wait_until_ready()
                    eventually(lambda: known(client, job.id) and client.get(job.id).finished)
                    done = client.get(job.id)
                    assert (done.state, done.worker) == ("succeeded", "cpu0@prompt")
                    assert done.attempts == 1  # it knows of no other
                    Path(misbehaving["LTXQ_TEST_GO"]).touch()
                    worker.send_signal(signal.SIGCONT)
                    late.supervisor.send_signal(signal.SIGCONT)
                    late.wait_for(f"{job.id} was deleted, or lost to another claim; dropped")
                    makes_the_next(late, prompt, client)
                    has_its_clip(client, done)
