"""What must hold when the storm is over: one final state and one result for each accepted job."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from io import BytesIO

import av
import psutil
import redis
import urllib3
from celery.result import AsyncResult
from world import World

from ltxq.celery import make_app
from ltxq.job import Job
from ltxq.ledger import PREFIX
from ltxq.settings import Settings
from ltxq_worker.pipeline.instant import read_mark, request_tag

MAX_LOST = Settings.model_fields["max_lost"].default


def drop_the_forgotten(world: World, jobs: list[Job]) -> list[str]:
    """Ids of the accepted jobs, but for those that a failover forgot: accepted while the replica
    heard nothing.
    """
    known = world.client.get_many([job.id for job in jobs])
    for job in jobs:
        if job.id not in known:
            at = job.submitted_at
            assert any(frozen <= at <= until for frozen, until in world.failovers), job
            world.counts["jobs that a failover forgot"] += 1
    return list(known)


def check_plain_jobs(world: World, *, within: float) -> list[Job]:
    """What plain producers sent, once it is final. A failover may forget a message, as it may a
    job.
    """
    end = time.monotonic() + within
    known: dict[str, Job] = {}
    while len(known) < len(world.plain.sent) and time.monotonic() < end - within + 90:
        known = world.client.get_many(world.plain.sent)
        time.sleep(0.5)
    lost = len(world.plain.sent) - len(known)
    world.counts["plain messages lost on their way"] = lost
    assert lost <= 3 * len(world.failovers), set(world.plain.sent) - known.keys()
    return [world.client.wait(job_id, max(1, end - time.monotonic())) for job_id in known]


def wait_until_calm(world: World, jobs: list[str], *, within: float) -> list[Job]:
    """Every job once it is final, and Celery and its webhook have been told."""
    end = time.monotonic() + within
    finished = [world.client.wait(job_id, max(1, end - time.monotonic())) for job_id in jobs]
    with redis.Redis.from_url(world.redis.url, socket_timeout=5) as server:
        for index in ("unreported", "webhooks"):
            while server.zcard(f"{PREFIX}{index}") and time.monotonic() < end:
                time.sleep(0.2)
    return finished


def check_jobs(world: World, jobs: list[Job]) -> Counter[str]:
    """Each job's outcome against storage and Celery; the outcomes counted."""
    app = make_app(world.settings)
    outcomes: Counter[str] = Counter()
    for job in jobs:
        outcomes[job.error.code if job.error else job.state] += 1
        _check_that_it_may_end_so(world, job)
        celery = AsyncResult(job.id, app=app)
        expected = {"succeeded": "SUCCESS", "failed": "FAILURE", "cancelled": "REVOKED"}
        assert celery.state == expected[job.state], (job.id, job.state, celery.state)
        if job.state != "succeeded":
            assert job.result is None
            continue
        result = job.result_or_raise()
        assert celery.result["sha256"] == result.sha256
        mp4 = urllib3.request("GET", result.url, timeout=30).data
        assert hashlib.sha256(mp4).hexdigest() == result.sha256, job.id
        with av.open(BytesIO(mp4)) as container:
            pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert len(pictures) == job.request.num_frames
        if world.model == "instant":
            assert {read_mark(p).tag for p in pictures} == {request_tag(job.request)}
    app.close()
    return outcomes


def _check_that_it_may_end_so(world: World, job: Job) -> None:
    """A storm of this kind gives a job three ways to end, two of them for a reason."""
    code = job.error.code if job.error else None
    assert job.finished
    assert code in (None, "cancelled", "worker_lost", "expired"), (job.id, job.error)
    if code == "expired":
        assert job.id in world.plain.may_expire, job.id
    if code == "cancelled":
        assert job.id in world.cancelled, job.id
    if code == "worker_lost":
        assert job.attempts >= MAX_LOST, job


def check_webhooks(world: World, jobs: list[Job]) -> Counter[str]:
    """Each job's event arrived, under one id that is no other's, and says what the ledger says."""
    counts: Counter[str] = Counter()
    ids: dict[str, set[str]] = {}
    taken: set[str] = set()
    by_id = {job.id: job for job in jobs}
    for call in world.receiver.calls:
        event = call.event  # its signature is checked
        told, job = event["data"], by_id.get(event["data"]["id"])
        if job is None:  # a failover forgot it
            assert world.failovers
            continue
        ids.setdefault(job.id, set()).add(call.headers["webhook-id"])
        right = told["state"] == job.state and (
            not job.result or told["result"]["sha256"] == job.result.sha256
        )
        counts["deliveries"] += 1
        if not right:  # an outcome that a failover forgot
            assert world.failovers, (job.id, told["state"], job.state)
            counts["of an outcome that a failover forgot"] += 1
            continue
        counts["repeated"] += job.id in taken
        if call.taken:
            taken.add(job.id)
    assert taken == by_id.keys(), by_id.keys() - taken
    assert all(len(of_job) == 1 for of_job in ids.values()), ids
    assert len({event_id for of_job in ids.values() for event_id in of_job}) == len(jobs)
    return counts


def check_nothing_is_left(world: World) -> None:
    """No lease, no queued job, no spool file, and after SIGTERM no process."""
    with redis.Redis.from_url(world.redis.url, socket_timeout=5) as server:
        assert server.zcard(f"{PREFIX}running") == 0
        assert server.zcard(f"{PREFIX}unreported") == 0
        assert server.zcard(f"{PREFIX}webhooks") == 0
        assert not list(server.scan_iter(f"{PREFIX}waiting:*"))
    for name, host in world.hosts.items():
        assert host.stop() == 0, f"{name} did not end well:\n{host.log[-3000:]}"
    left = [path for path in (world.folder / "spool").rglob("*") if path.suffix != ".lock"]
    assert left == []
    spool = str(world.folder / "spool")
    assert not [p for p in psutil.process_iter(["cmdline"]) if spool in (p.info["cmdline"] or [])]
