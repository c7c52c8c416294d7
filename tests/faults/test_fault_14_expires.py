"""Messages of plain Celery producers that expire, or are for later."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from celery import Celery

from fleet import PATIENCE, SLOW, SMALL, Fleet, eventually, wait_until_running
from ltxq import Client
from ltxq.job import Job
from ltxq.ledger import queue_name

MESSAGES = 600


@pytest.fixture
def plain(redis_url: str) -> Iterator[Celery]:
    """Celery as anybody has it, without ltxq."""
    with Celery(broker=redis_url, backend=redis_url, set_as_current=False) as app:
        yield app


def send(plain: Celery, job_id: str, **options: Any) -> None:
    request = {"prompt": "a fox", **SMALL}
    plain.send_task(
        "ltxq.generate",
        task_id=job_id,
        kwargs={"request": request},
        queue=queue_name("instant"),
        **options,
    )


def ended(client: Client, job_id: str) -> Job | None:
    job = client.get_many([job_id]).get(job_id)
    return job if job and job.finished else None


def test_jobs_that_expire_while_they_are_looked_at_stop_no_worker(
    own: dict[str, str], client: Client, plain: Celery
) -> None:
    with Fleet(own) as fleet:
        fleet.wait_until_ready()
        for number in range(MESSAGES):
            ahead = timedelta(microseconds=500 + number * 37 % 3500)
            send(plain, f"soon-{number}", expires=datetime.now(UTC) + ahead)
        send(plain, "last")
        eventually(lambda: ended(client, "last"))
        assert client.get("last").state == "succeeded"
        outcomes = {}
        for number in range(MESSAGES):
            job_id = f"soon-{number}"
            eventually(lambda job_id=job_id: ended(client, job_id))
            job = client.get(job_id)
            outcomes[job_id] = job.error.code if job.error else job.state
        assert set(outcomes.values()) <= {"expired", "succeeded"}, outcomes
        assert "expired" in outcomes.values()
        assert fleet.log.count("is ready") == 1


def test_an_expired_message_with_a_queued_jobs_id_blocks_nothing(
    own: dict[str, str], client: Client, plain: Celery
) -> None:
    with Fleet({**own, **SLOW}) as fleet:
        fleet.wait_until_ready()
        first = wait_until_running(client, client.submit("first", **SMALL))
        second = client.submit("second", **SMALL)
        send(plain, second.id, expires=datetime.now(UTC) - timedelta(seconds=9), priority=0)
        client.cancel(first.id)
        wait_until_running(client, second)


def test_a_job_that_nobody_takes_in_time_is_cancelled_as_expired(
    own: dict[str, str], client: Client, plain: Celery
) -> None:
    with Fleet({**own, "LTXQ_INSTANT_SECONDS": "10"}) as fleet:
        fleet.wait_until_ready()
        wait_until_running(client, client.submit("long", **SMALL))
        late = client.submit("late", start_within=1, **SMALL)
        send(plain, "late-too", expires=1)
        for job_id in (late.id, "late-too"):
            eventually(lambda job_id=job_id: ended(client, job_id))
            job = client.get(job_id)
            assert job.error is not None
            assert (job.state, job.error.code, job.attempts) == ("cancelled", "expired", 0)
            eventually(lambda job_id=job_id: plain.AsyncResult(job_id).state == "REVOKED")


@pytest.mark.extended
def test_jobs_for_later_wait_in_the_ledger_and_not_in_a_worker(
    own: dict[str, str], client: Client, plain: Celery, server: redis.Redis
) -> None:
    with Fleet(own) as fleet:
        fleet.wait_until_ready()
        soon = datetime.now(UTC) + timedelta(seconds=3)
        for number in range(200):
            send(plain, f"tomorrow-{number}", eta=datetime.now(UTC) + timedelta(days=1))
        send(plain, "soon", eta=soon)
        mine = client.submit("soon, too", not_before=soon, **SMALL)
        after = client.submit("now", **SMALL)
        assert client.wait(after.id, PATIENCE).state == "succeeded"
        (scheduled,) = plain.control.inspect(timeout=10).scheduled().values()
        assert scheduled == []
        eventually(lambda: not server.llen(queue_name("instant")))
        eventually(lambda: client.get_many(["tomorrow-199"]))
        tomorrow = client.get("tomorrow-199")
        assert (tomorrow.state, tomorrow.queue_position) == ("queued", None)
        for job_id in ("soon", mine.id):
            eventually(lambda job_id=job_id: ended(client, job_id))
            job = client.get(job_id)
            assert job.state == "succeeded"
            assert job.started_at is not None
            assert job.started_at >= soon - timedelta(milliseconds=5)
        client.cancel("tomorrow-7")
        assert client.get("tomorrow-7").state == "cancelled"
