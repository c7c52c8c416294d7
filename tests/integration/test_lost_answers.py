"""Redis does what it is asked, and the connection is cut before the answer comes: what is asked
again is not done twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from fleet import PATIENCE, SMALL, Fleet, eventually, worker_environment
from ltxq import AsyncClient, Client
from ltxq.errors import QueueFull
from ltxq.job import Job
from ltxq.ledger import PREFIX, queue_name
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import S3Server
from proxy import Proxy

INSIDE = Path(__file__).parents[1] / "faults" / "inside"  # a job that waits for a file
STEPS = (b"claim", b"report", b"renew", b"finish", b"reported")  # of a worker, in a job's life


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with Proxy(redis.connection.parse_url(redis_url)["port"]) as made:
        yield made


@pytest.fixture
def url(proxy: Proxy, redis_url: str) -> str:
    """The same database, behind the proxy."""
    return f"redis://127.0.0.1:{proxy.port}/{redis.connection.parse_url(redis_url)['db']}"


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=5) as connection:
        yield connection


def with_client(url: str) -> Job:
    with Client(url) as client:
        return client.submit("a fox", model="instant", seed=None)


def with_async_client(url: str) -> Job:
    async def submit() -> Job:
        async with AsyncClient(url) as client:
            return await client.submit("a fox", model="instant", seed=None)

    return asyncio.run(submit())


def with_retry(url: str) -> Job:
    with Client(url) as client:
        (job,) = client.list(state="cancelled").jobs
        return client.retry(job.id)


@pytest.mark.parametrize("submit", [with_client, with_async_client, with_retry])
def test_a_submission_whose_answer_is_lost_makes_one_job(
    submit: Callable[[str], Job], proxy: Proxy, url: str, server: redis.Redis
) -> None:
    with Client(url) as client:
        client.cancel(client.submit("a bear", model="instant").id)
        server.delete(queue_name("instant"))
        proxy.lose_the_answer_to(b"\r\nsubmit\r\n")
        job = submit(url)
        assert proxy.lost == 1
        assert [queued.id for queued in client.list(state="queued").jobs] == [job.id]
    assert server.llen(queue_name("instant")) == 1


def test_a_cancelling_and_a_deletion_whose_answers_are_lost_are_done_once(
    proxy: Proxy, url: str
) -> None:
    with Client(url) as client:
        job = client.submit("a fox", model="instant")
        proxy.lose_the_answer_to(b"\r\ncancel\r\n")
        client.cancel(job.id)
        assert client.get(job.id).state == "cancelled"
        proxy.lose_the_answer_to(b"\r\ndelete\r\n")
        client.delete(job.id)
        assert client.list().jobs == ()
        assert proxy.lost == 2


def test_a_worker_whose_answers_are_lost_runs_a_job_once(
    proxy: Proxy, url: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = worker_environment(url, s3_server, tmp_path / "spool")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    go = tmp_path / "go"
    # A held job outlives several reports and renewals of its lease.
    environment |= {"LTXQ_LEASE": "6", "LTXQ_TEST_GO": str(go), "PYTHONPATH": str(INSIDE)}
    with Fleet(environment) as fleet, Client() as client:
        fleet.wait_until_ready()
        for number, step in enumerate(STEPS, start=proxy.lost + 1):
            ends_the_job = step in (b"finish", b"reported")
            go.unlink(missing_ok=True)
            proxy.lose_the_answer_to(b"\r\n" + step + b"\r\n")
            job = client.submit("a fox" if ends_the_job else "wait denoise", **SMALL)
            eventually(lambda number=number: proxy.lost == number)
            go.touch()
            done = client.wait(job.id, PATIENCE)
            assert (done.state, done.attempts) == ("succeeded", 1), step
        assert fleet.stop() == 0


def test_at_its_bound_the_queue_takes_as_many_as_it_says(
    redis_url: str, server: redis.Redis
) -> None:
    bound, asked = 7, 40
    with Client(settings=Settings(url=redis_url, max_queued=bound)) as client:

        def submit(number: int) -> str | None:
            try:
                return client.submit(
                    f"fox {number}", model="instant", idempotency_key=str(number)
                ).id
            except QueueFull:
                return None

        with ThreadPoolExecutor(8) as threads:
            taken = {job_id for job_id in threads.map(submit, range(asked)) if job_id}
        assert len(taken) == bound
        assert {job.id for job in client.list(limit=100).jobs} == taken
    records = {name.rpartition(":")[2] for name in server.scan_iter(f"{PREFIX}job:*")}
    assert records == taken
    assert server.hlen(f"{PREFIX}idempotency") == bound
    assert server.llen(queue_name("instant")) == bound
