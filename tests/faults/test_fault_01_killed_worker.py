"""kill -9 of a worker process, whatever it does: its job is back within 5 seconds, at the head."""

from __future__ import annotations

import hashlib
import time

import pytest

from fleet import PATIENCE, SLOW, SMALL, Fleet, eventually, fetch, wait_until_running
from ltxq import Client
from ltxq.celery import make_app
from ltxq.settings import Settings
from variants import variants

STAGES = variants("denoise", "upload", extended=("encode_text", "decode", "encode", "finish"))
PROMISE = 5.0  # seconds from the kill to the job running elsewhere


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_runs_elsewhere_within_5_seconds_of_its_workers_death(
    misbehaving: dict[str, str], client: Client, stage: str
) -> None:
    with Fleet(misbehaving, gpus="cpu,cpu") as fleet:
        fleet.wait_until_ready(times=2)
        job = client.submit(f"hold {stage}", **SMALL)
        eventually(lambda: stage_of(client, job.id) == ("upload" if stage == "finish" else stage))
        first = client.get(job.id).worker
        assert first is not None
        fleet.worker(first).kill()
        killed = time.monotonic()
        eventually(lambda: client.get(job.id).attempts == 2, within=PROMISE)
        assert time.monotonic() - killed < PROMISE
        done = client.wait(job.id, PATIENCE)
        assert (done.state, done.attempts) == ("succeeded", 2)
        assert done.worker != first
        result = done.result_or_raise()
        assert result.key.startswith(f"ltxq/{job.id}/")
        assert hashlib.sha256(fetch(result.url)).hexdigest() == result.sha256


def test_a_job_whose_worker_dies_before_celery_is_told_is_not_made_again(
    misbehaving: dict[str, str], client: Client, redis_url: str
) -> None:
    with Fleet(misbehaving) as fleet, make_app(Settings(url=redis_url)) as app:
        fleet.wait_until_ready()
        job = client.wait(client.submit("hold tell", **SMALL).id, PATIENCE)
        told = app.AsyncResult(job.id)
        assert (job.state, told.state) == ("succeeded", "PENDING")
        fleet.workers()[0].kill()
        eventually(lambda: told.state == "SUCCESS")
        assert told.result["sha256"] == job.result_or_raise().sha256
        assert client.get(job.id).attempts == 1


def stage_of(client: Client, job_id: str) -> str | None:
    progress = client.get(job_id).progress
    return progress.stage if progress else None


def test_a_job_given_back_runs_before_those_that_waited(
    own: dict[str, str], client: Client
) -> None:
    with Fleet({**own, **SLOW}) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(client, client.submit("first", **SMALL))
        waiting = [client.submit("waiting", **SMALL) for _ in range(3)]
        fleet.workers()[0].kill()
        eventually(lambda: client.get(job.id).attempts == 2)  # its worker was replaced
        assert {client.get(other.id).state for other in waiting} == {"queued"}
