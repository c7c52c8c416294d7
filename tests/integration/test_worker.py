"""The whole way over real processes: Redis, rclone's S3 server, `ltxq worker` with the instant
pipeline. What happens when processes die or servers go away is at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import pytest
import redis
import urllib3
from celery import Celery
from celery.result import AsyncResult

from fleet import (
    PATIENCE,
    SLOW,
    SMALL,
    Fleet,
    eventually,
    fetch,
    has_ended,
    wait_until_running,
    worker_environment,
)
from ltxq import Client
from ltxq.errors import JobNotFound
from ltxq.ledger import PREFIX, TASK, queue_name
from ltxq.storage import Storage
from ltxq_worker.embedded.servers import RedisServer, S3Server
from ltxq_worker.pipeline.instant import read_mark, request_tag
from servers import S3, exists, start_or_skip


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """For the fleets that many tests share."""
    with start_or_skip(lambda: RedisServer.start(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture(scope="module")
def fleet_environment(
    shared_redis: RedisServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    url = f"redis://127.0.0.1:{shared_redis.port}/0"
    return worker_environment(url, s3_server, tmp_path_factory.mktemp("spool"))


@pytest.fixture(scope="module")
def fleet(fleet_environment: dict[str, str]) -> Iterator[Fleet]:
    """A worker that is quick; for tests that leave it as it was."""
    with Fleet(fleet_environment) as running:
        yield running.wait_until_ready()


@pytest.fixture(scope="module")
def slow(
    shared_redis: RedisServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """A worker whose jobs take a minute to denoise unless they are stopped; likewise."""
    url = f"redis://127.0.0.1:{shared_redis.port}/1"
    environment = worker_environment(url, s3_server, tmp_path_factory.mktemp("spool"))
    with Fleet({**environment, **SLOW}) as running:
        yield running.wait_until_ready()


@pytest.fixture
def own(redis_url: str, s3_server: S3Server, tmp_path: Path) -> dict[str, str]:
    """The environment of a worker of the test's own, to do with as it likes."""
    return worker_environment(redis_url, s3_server, tmp_path / "spool")


@pytest.fixture
def client(request: pytest.FixtureRequest, s3: S3) -> Iterator[Client]:
    """A client of the queue that the test's worker serves; leaves no job unfinished there."""
    shared = request.getfixturevalue("shared_redis")
    if "fleet" in request.fixturenames:
        url = f"redis://127.0.0.1:{shared.port}/0"
    elif "slow" in request.fixturenames:
        url = f"redis://127.0.0.1:{shared.port}/1"
    else:
        url = request.getfixturevalue("redis_url")
    with Client(settings=s3.settings(url=url, default_model="instant")) as made:
        yield made
        if {"fleet", "slow"} & set(request.fixturenames):
            unfinished = [*made.list(state="queued").jobs, *made.list(state="running").jobs]
            for job in unfinished:
                made.cancel(job.id)
            for job in unfinished:
                made.wait(job.id, PATIENCE)


def url_of(client: Client) -> str:
    transport: Any = client._transport
    url: str = transport.settings.url.get_secret_value()
    return url


@pytest.fixture
def plain(client: Client) -> Iterator[Celery]:
    """Celery as anybody has it, without ltxq."""
    url = url_of(client)
    app = Celery(broker=url, backend=url, set_as_current=False)
    yield app
    app.close()


def test_a_prompt_goes_in_and_an_mp4_comes_out(fleet: Fleet, client: Client) -> None:
    job = client.submit("a fox", width=128, height=96, num_frames=17, metadata={"order": "7 🦊"})
    result = client.wait(job.id, PATIENCE).result_or_raise()
    mp4 = fetch(result.url)
    assert hashlib.sha256(mp4).hexdigest() == result.sha256
    assert len(mp4) == result.size
    with av.open(BytesIO(mp4)) as container:
        pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert container.streams.audio
    tag = request_tag(job.request)
    assert [(m.tag, m.index) for m in map(read_mark, pictures)] == [(tag, i) for i in range(17)]
    sidecar = json.loads(fetch(result.sidecar_url))
    assert sidecar["request"]["metadata"] == {"order": "7 🦊"}
    assert sidecar["seed"] == result.seed == job.request.seed
    for image in (result.poster_url, result.spritesheet_url):
        assert fetch(image).startswith(b"\xff\xd8\xff")
    assert re.fullmatch(f"ltxq/{job.id}/[0-9a-f]{{16}}/clip.mp4", result.key)


def test_celery_reads_the_outcome_without_ltxq(fleet: Fleet, client: Client, plain: Celery) -> None:
    job = client.submit("a fox", **SMALL)
    value = AsyncResult(job.id, app=plain).get(timeout=PATIENCE)
    assert value["sha256"] == client.get(job.id).result_or_raise().sha256


@pytest.mark.parametrize("seed", [{}, {"seed": None}])
def test_a_plain_celery_producer_sends_a_job_and_is_told_its_seed(
    fleet: Fleet, client: Client, plain: Celery, seed: dict[str, None]
) -> None:
    sent = plain.send_task(
        "ltxq.generate",
        kwargs={"request": {"prompt": "a fox", **seed, **SMALL}},
        queue="ltxq.3.instant",
    )
    assert sent.get(timeout=PATIENCE)["num_frames"] == 9
    job = client.get(sent.id)
    assert (job.state, job.request.model) == ("succeeded", "instant")
    assert job.request.seed == sent.get()["seed"] != 42


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kwargs": {"request": {"prompt": "a fox", "height": 500}}}, "nearest: 480 or 512"),
        ({"kwargs": {"request": "a fox"}}, "must be names with values"),
        ({"kwargs": {"prompt": "a fox"}}, "other arguments"),
        ({"args": ["a fox"]}, "other arguments"),
        ({"args": [["x"], {}, None]}, "other arguments"),
        ({"args": ["video_1", 1]}, "other arguments"),
        ({"args": ["video_1"], "kwargs": {"task": 1}}, "other arguments"),
        ({"kwargs": {"request": {"prompt": "a fox"}}, "task_id": "../../etc"}, "no job id"),
    ],
)
def test_a_wrong_job_of_a_plain_producer_fails_as_invalid_request(
    fleet: Fleet, client: Client, plain: Celery, arguments: dict[str, Any], says: str
) -> None:
    sent = plain.send_task("ltxq.generate", queue="ltxq.3.instant", **arguments)
    with pytest.raises(Exception, match=says) as caught:
        sent.get(timeout=PATIENCE)
    assert type(caught.value).__name__ == "invalid_request"
    assert client.wait(client.submit("next", **SMALL).id, PATIENCE).state == "succeeded"


def test_failed_and_cancelled_jobs_show_in_celery(
    slow: Fleet, client: Client, plain: Celery
) -> None:
    late = client.submit("a fox", timeout=1, **SMALL)
    with pytest.raises(Exception, match="longer than its timeout of 1 s") as caught:
        AsyncResult(late.id, app=plain).get(timeout=PATIENCE)
    assert type(caught.value).__name__ == "timed_out"
    unwanted = client.submit("a fox", **SMALL)
    wait_until_running(client, unwanted)
    client.cancel(unwanted.id)
    eventually(lambda: AsyncResult(unwanted.id, app=plain).state == "REVOKED")


@pytest.mark.extended
def test_jobs_need_no_new_connections(own: dict[str, str], client: Client) -> None:
    def done(ids: list[str]) -> bool:
        return all(job.finished for job in client.get_many(ids).values())

    with Fleet(own) as fleet, redis.Redis.from_url(url_of(client), socket_timeout=5) as server:
        fleet.wait_until_ready()
        for jobs in (10, 40):  # the first ones fill the pools
            before = server.info("stats")["total_connections_received"]
            ids = [client.submit("a fox", **SMALL).id for _ in range(jobs)]
            eventually(lambda ids=ids: done(ids))
        assert server.info("stats")["total_connections_received"] - before < jobs / 2


def test_a_running_job_is_cancelled_and_the_next_one_runs(slow: Fleet, client: Client) -> None:
    first, second = client.submit("a fox", **SMALL), client.submit("a bear", **SMALL)
    wait_until_running(client, first)
    client.cancel(first.id)
    cancelled = client.wait(first.id, PATIENCE)
    assert cancelled.state == "cancelled"
    assert cancelled.error is not None
    assert cancelled.error.code == "cancelled"
    wait_until_running(client, second)


def test_a_running_job_is_deleted_and_the_next_one_runs(
    slow: Fleet, client: Client, plain: Celery
) -> None:
    first, second = client.submit("a fox", **SMALL), client.submit("a bear", **SMALL)
    wait_until_running(client, first)
    client.delete(first.id)
    with pytest.raises(JobNotFound):
        client.get(first.id)
    assert [job.id for job in client.list().jobs if job.id in (first.id, second.id)] == [second.id]
    assert AsyncResult(first.id, app=plain).state == "REVOKED"
    wait_until_running(client, second)
    slow.wait_for(f"{first.id} was deleted, or lost to another claim; dropped")
    with redis.Redis.from_url(url_of(client), socket_timeout=5) as server:
        assert not server.exists(f"ltxq:3:job:{first.id}")


def test_celerys_revoke_cancels_in_the_ledger(slow: Fleet, client: Client, plain: Celery) -> None:
    running, queued = client.submit("a fox", **SMALL), client.submit("a bear", **SMALL)
    wait_until_running(client, running)
    plain.control.revoke(queued.id)
    assert client.wait(queued.id, PATIENCE).state == "cancelled"
    plain.control.revoke(running.id, terminate=True)
    assert client.wait(running.id, PATIENCE).state == "cancelled"


def test_a_message_delivered_twice_makes_one_clip(
    fleet: Fleet, client: Client, plain: Celery
) -> None:
    job = client.submit("a fox", **SMALL)
    for _ in range(3):
        plain.send_task(TASK, args=[job.id], task_id=job.id, queue=queue_name("instant"))
    assert client.wait(job.id, PATIENCE).state == "succeeded"
    last = client.submit("a bear", **SMALL)  # the doubles came before it
    assert client.wait(last.id, PATIENCE).state == "succeeded"
    assert client.get(job.id).attempts == 1


def test_a_wakeup_has_no_result_and_starts_no_other_task(
    fleet: Fleet, client: Client, plain: Celery
) -> None:
    follows = plain.signature("other.task", queue="elsewhere")
    forged = {"args": ["video_1"], "queue": queue_name("instant"), "ignore_result": False}
    for options in ({"link": follows}, {"chain": [follows]}, {}):
        plain.send_task(TASK, task_id="video_1", **forged, **options)
    job = client.submit("a fox", **SMALL)  # they came before it
    assert client.wait(job.id, PATIENCE).state == "succeeded"
    assert AsyncResult("video_1", app=plain).state == "PENDING"
    with redis.Redis.from_url(url_of(client), socket_timeout=5) as server:
        assert server.llen("elsewhere") == 0


def test_more_urgent_jobs_run_first(slow: Fleet, client: Client) -> None:
    first = wait_until_running(client, client.submit("first", **SMALL))
    low = client.submit("low", priority="low", **SMALL)
    normal = client.submit("normal", **SMALL)
    high = client.submit("high", priority="high", **SMALL)
    client.cancel(first.id)
    for job in (high, normal, low):
        wait_until_running(client, job)
        client.cancel(job.id)


def test_a_busy_worker_leaves_the_next_message_for_a_free_one(
    own: dict[str, str], client: Client
) -> None:
    with Fleet({**own, **SLOW}, name="one") as one:
        one.wait_until_ready()
        _the_other_takes_the_next(own, client)


def _the_other_takes_the_next(own: dict[str, str], client: Client) -> None:
    long = wait_until_running(client, client.submit("long", **SMALL))
    second = client.submit("next", **SMALL)
    with Fleet(own, name="other") as other:
        other.wait_until_ready()
        assert client.wait(second.id, PATIENCE).worker == "cpu0@other"
    client.cancel(long.id)


def test_two_supervisors_do_not_share_a_place(
    fleet: Fleet, fleet_environment: dict[str, str]
) -> None:
    with Fleet(fleet_environment) as second:
        second.wait_for("A worker named cpu0@host runs on this machine already")
        assert second.supervisor.wait(PATIENCE) != 0
    assert fleet.workers()


def test_a_worker_that_can_never_start_says_why_and_ends(own: dict[str, str]) -> None:
    with Fleet({**own, "LTXQ_S3_BUCKET": "no-such-bucket"}) as fleet:
        assert fleet.supervisor.wait(PATIENCE) == 1
        fleet.wait_for("NoSuchBucket")
        assert "Create the bucket, or correct LTXQ_S3_BUCKET" in fleet.log
        assert "Traceback" not in fleet.log


def test_a_result_celery_was_not_told_of_is_stored_by_the_sweep(
    fleet: Fleet, client: Client, plain: Celery
) -> None:
    job = client.submit("a fox", **SMALL)
    AsyncResult(job.id, app=plain).get(timeout=PATIENCE)
    server = plain.backend.client
    eventually(lambda: server.zscore(f"{PREFIX}unreported", job.id) is None)  # the worker's own
    server.delete(f"celery-task-meta-{job.id}")
    server.zadd(f"{PREFIX}unreported", {job.id: 0})
    eventually(lambda: AsyncResult(job.id, app=plain).state == "SUCCESS")


def test_no_process_is_left_behind(own: dict[str, str]) -> None:
    with Fleet(own) as fleet:
        fleet.wait_until_ready()
        (worker,) = fleet.workers()
        os.killpg(fleet.supervisor.pid, signal.SIGKILL)
        eventually(lambda: has_ended(worker))


def test_many_clients_many_jobs_none_lost(fleet: Fleet, client: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda i: client.submit(f"fox {i}", **SMALL), range(40)))
    tags = {}
    for job in jobs:
        done = client.wait(job.id, PATIENCE)
        assert (done.state, done.attempts) == ("succeeded", 1)
        with av.open(BytesIO(fetch(done.result_or_raise().url))) as container:
            picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
        tags[read_mark(picture).tag] = job.id
    assert len(tags) == 40


def test_a_deleted_job_takes_its_clip_along(fleet: Fleet, client: Client) -> None:
    job = client.wait(client.submit("a fox", **SMALL).id, PATIENCE)
    url = job.result_or_raise().url
    assert fetch(url)
    client.delete(job.id)
    assert urllib3.request("GET", url, timeout=PATIENCE).status == 404


def test_the_clips_of_expired_jobs_are_removed(fleet: Fleet, client: Client) -> None:
    job = client.wait(client.submit("a fox", **SMALL).id, PATIENCE)
    url = job.result_or_raise().url
    with redis.Redis.from_url(url_of(client), socket_timeout=5) as server:
        server.zadd(f"{PREFIX}expiry", {job.id: 0})
    eventually(lambda: urllib3.request("GET", url, timeout=PATIENCE).status == 404)


def test_the_clip_of_an_earlier_claim_is_removed_when_a_later_one_finishes(
    own: dict[str, str], client: Client, s3: S3
) -> None:
    storage = Storage.from_settings(s3.settings())
    with Fleet({**own, "LTXQ_INSTANT_SECONDS": "1"}) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        with redis.Redis.from_url(
            url_of(client), decode_responses=True, socket_timeout=5
        ) as server:
            first = server.hget(f"{PREFIX}job:{job.id}", "nonce")
        late = storage.clip_keys(f"{job.id}/{first}").clip
        storage.put(late, Path(__file__), "video/mp4")  # as if uploaded late
        fleet.workers()[0].kill()
        done = client.wait(job.id, PATIENCE)
        assert done.attempts == 2
        eventually(lambda: not exists(storage, late))
        assert len(list(storage.list(f"{job.id}/"))) == 4
        assert exists(storage, done.result_or_raise().key)
