"""The ledger on a real Redis: each step's promise, and what happens when Redis does not answer.

The order of steps nobody thought of is test_ledger_states.py's.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from ltxq.errors import (
    ConfigurationError,
    IdempotencyConflict,
    JobError,
    JobNotFound,
    QueueFull,
    QueueUnavailable,
)
from ltxq.job import Job, JobState, Progress, VideoRequest, VideoResult, WebhookState, new_job_id
from ltxq.ledger import CANCELLED, PREFIX, Claim, Ledger, queue_name
from ltxq.limits import ModelLimits
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import RedisServer

FAILED = JobError(code="internal", message="it broke")
HALF = Progress(stage="denoise", step=4, steps=8, fraction=0.35)


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    """Straight to the database, to see and to spoil what the ledger keeps."""
    with redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=5) as connection:
        yield connection


@pytest.fixture
def ledger(redis_url: str) -> Iterator[Ledger]:
    made = make_ledger(redis_url)
    yield made
    made.close()


def make_ledger(url: str, **settings: Any) -> Ledger:
    return Ledger(Settings(url=url, **settings))


def submit(ledger: Ledger, **fields: Any) -> Job:
    request = VideoRequest.parse({"seed": 42, "prompt": "a fox", "model": "instant", **fields})
    return ledger.jobs.submit(new_job_id(), request)


def claim(ledger: Ledger, job: Job, worker: str = "w") -> Claim:
    """Of the job, which must be the first."""
    claimed = ledger.claims.take("instant", worker)
    assert claimed is not None
    assert claimed.job_id == job.id
    return claimed


def result(claimed: Claim) -> VideoResult:
    urls = dict.fromkeys(("url", "poster_url", "spritesheet_url", "sidecar_url"), "https://x/")
    return VideoResult(
        **urls, key=f"{claimed.objects}/clip.mp4", sha256="0" * 64, size=1,
        width=768, height=512, num_frames=33, frame_rate=24, duration=1.375, seed=42,
        model="instant", timings={}, expires_at=None,
    )  # fmt: skip


def let_time_pass(server: redis.Redis, *, leases: bool = True) -> None:
    """A sweep is due, and every lease has ended."""
    for job_id in server.zrange(f"{PREFIX}running", 0, -1) if leases else ():
        server.zadd(f"{PREFIX}running", {job_id: 0})
    seconds, micros = server.time()
    server.set(f"{PREFIX}swept", int(seconds * 1000 + micros / 1000 - 2000))


def wakeups(server: redis.Redis) -> list[str]:
    """Ids of the jobs for which messages are in the queue, the oldest first."""
    messages = server.lrange(queue_name("instant"), 0, -1)
    return [json.loads(message)["headers"]["id"] for message in reversed(messages)]


def lose_wakeups(server: redis.Redis) -> list[str]:
    """The same; they are gone now."""
    lost = wakeups(server)
    server.delete(queue_name("instant"))
    return lost


def sweep_later(ledger: Ledger, server: redis.Redis) -> list[str]:
    """The wake-ups that the next sweep sends."""
    before = len(wakeups(server))
    let_time_pass(server, leases=False)
    ledger.sweeper.sweep()
    return wakeups(server)[before:]


def test_submitting_the_same_id_again_changes_nothing(ledger: Ledger) -> None:
    request = VideoRequest(seed=42, prompt="a fox", model="instant")
    job_id = new_job_id()
    assert ledger.jobs.submit(job_id, request) == ledger.jobs.submit(job_id, request)
    assert len(ledger.jobs.list().jobs) == 1


def test_one_of_many_claims_wins(ledger: Ledger) -> None:
    for _ in range(20):
        submit(ledger)
        start = threading.Barrier(8)

        def race(worker: int, start: threading.Barrier = start) -> Any:
            start.wait()
            return ledger.claims.take("instant", f"w{worker}")

        with ThreadPoolExecutor(8) as pool:
            claims = [c for c in pool.map(race, range(8)) if c]
        assert len(claims) == 1


def test_a_claim_whose_reply_was_lost_is_repeated_by_its_nonce(ledger: Ledger) -> None:
    submit(ledger)
    first = ledger.claims.take("instant", "w", nonce="n")
    assert first is not None
    assert first.attempt == 1
    submit(ledger)
    assert ledger.claims.take("instant", "w", nonce="n") == first
    ledger.claims.finish(first, CANCELLED)
    ledger.jobs.delete(first.job_id)
    assert (
        ledger.claims.take("instant", "w", nonce="n") is None
    )  # not the next job: the answer was lost
    assert ledger.claims.take("instant", "w", nonce="other") is not None


def test_a_worker_of_another_model_gets_no_claim(ledger: Ledger) -> None:
    submit(ledger)
    assert ledger.claims.take("other", "w") is None


def test_writes_of_an_earlier_claim_are_refused(ledger: Ledger) -> None:
    old = claim(ledger, submit(ledger), "w1")
    assert ledger.claims.give_back(old, charged=False).state == "queued"
    new = claim(ledger, ledger.jobs.get(old.job_id), "w2")
    assert (old.attempt, new.attempt) == (1, 2)
    assert ledger.claims.renew(old) == "lost"
    assert ledger.claims.report(old, HALF, on_gpu=True) == "lost"
    assert ledger.claims.give_back(old, charged=True).state == "lost"
    assert not ledger.claims.finish(old, result(old))
    assert ledger.jobs.get(new.job_id).progress is None
    assert ledger.claims.finish(new, result(new))
    assert ledger.jobs.get(new.job_id).result == result(new)


def test_finishing_twice_is_finishing_once(ledger: Ledger) -> None:
    claimed = claim(ledger, submit(ledger))
    assert ledger.claims.finish(claimed, result(claimed))
    finished = ledger.jobs.get(claimed.job_id)
    assert ledger.claims.finish(claimed, result(claimed))
    assert not ledger.claims.finish(claimed, FAILED)
    assert ledger.jobs.get(claimed.job_id) == finished


def test_progress_is_seen_and_gone_at_the_end(ledger: Ledger) -> None:
    claimed = claim(ledger, submit(ledger))
    assert ledger.claims.report(claimed, HALF, on_gpu=True) == "held"
    assert ledger.jobs.get(claimed.job_id).progress == HALF
    ledger.claims.finish(claimed, FAILED)
    job = ledger.jobs.get(claimed.job_id)
    assert (job.state, job.error, job.progress) == ("failed", FAILED, None)


def test_a_queued_job_is_cancelled_at_once(ledger: Ledger) -> None:
    job = submit(ledger)
    assert ledger.jobs.cancel(job.id) == "cancelled"
    assert ledger.claims.take("instant", "w") is None
    assert ledger.jobs.get(job.id).state == "cancelled"


def test_a_running_job_learns_that_it_is_cancelled(ledger: Ledger) -> None:
    claimed = claim(ledger, submit(ledger))
    assert ledger.claims.renew(claimed) == "held"
    assert ledger.jobs.cancel(claimed.job_id) == "running"
    assert ledger.jobs.get(claimed.job_id).cancel_requested
    assert ledger.claims.renew(claimed) == "cancel"
    assert ledger.claims.report(claimed, HALF, on_gpu=True) == "cancel"


def test_a_finish_that_comes_before_the_cancelling_is_obeyed_wins(ledger: Ledger) -> None:
    claimed = claim(ledger, submit(ledger))
    ledger.jobs.cancel(claimed.job_id)
    assert ledger.claims.finish(claimed, result(claimed))
    assert ledger.jobs.get(claimed.job_id).state == "succeeded"


def test_a_cancelled_job_given_back_does_not_run_again(ledger: Ledger) -> None:
    claimed = claim(ledger, submit(ledger))
    ledger.jobs.cancel(claimed.job_id)
    assert ledger.claims.give_back(claimed, charged=True).state == "cancelled"


def test_only_the_job_on_the_gpu_is_charged_for_a_lost_worker(redis_url: str) -> None:
    ledger = make_ledger(redis_url, max_lost=1)
    uploading = claim(ledger, submit(ledger), "w")
    ledger.claims.report(uploading, HALF, on_gpu=False)
    on_gpu = claim(ledger, submit(ledger), "w")
    others = claim(ledger, submit(ledger), "other")
    returned = {r.job_id: r.state for r in ledger.claims.give_back_all("w")}
    assert returned == {uploading.job_id: "queued", on_gpu.job_id: "failed"}
    error = ledger.jobs.get(on_gpu.job_id).error
    assert error is not None
    assert error.code == "worker_lost"
    assert ledger.claims.renew(others) == "held"
    ledger.close()


def test_a_job_fails_after_max_lost_workers_and_not_before(redis_url: str) -> None:
    ledger = make_ledger(redis_url, max_lost=3)
    job, states = submit(ledger), ["queued"]
    while states[-1] == "queued":
        states.append(ledger.claims.give_back(claim(ledger, job), charged=True).state)
    assert states == ["queued", "queued", "queued", "failed"]
    ledger.close()


def test_a_job_given_back_is_the_first_of_its_priority(ledger: Ledger) -> None:
    jobs = {p: [submit(ledger, priority=p) for _ in range(2)] for p in ("low", "normal", "high")}
    for priority in ("high", "normal", "low"):
        first, second = jobs[priority]
        ledger.claims.give_back(claim(ledger, first), charged=False)
        claim(ledger, first)
        claim(ledger, second)


def test_an_owner_with_many_jobs_delays_nobodys_first(ledger: Ledger) -> None:
    def send(owner: str, **fields: Any) -> str:
        request = VideoRequest.parse({"seed": 42, "prompt": "x", "model": "instant", **fields})
        return ledger.jobs.submit(new_job_id(), request, owner=owner).id

    def next_one() -> str:
        claimed = ledger.claims.take("instant", "w")
        assert claimed is not None
        return claimed.job_id

    many = [send("many") for _ in range(100)]
    assert [next_one() for _ in range(10)] == many[:10]
    one = send("one")
    assert ledger.jobs.get(one).queue_position == 0
    assert ledger.jobs.get(many[10]).queue_position == 1
    assert next_one() == one
    assert next_one() == many[10]
    # Two that both have many take turns; the one whose clips are twice as long, half as often.
    long = [send("long", num_frames=65) for _ in range(10)]
    turns = [next_one() for _ in range(12)]
    assert len(set(turns) & set(long)) in (4, 5)
    assert ledger.jobs.get(long[-1]).queue_position is not None


def test_an_owners_weight_is_its_share(redis_url: str) -> None:
    ledger = make_ledger(redis_url, weights="heavy=3")
    request = VideoRequest(seed=42, prompt="x", model="instant")
    heavy, _ = (
        {ledger.jobs.submit(new_job_id(), request, owner=owner).id for _ in range(20)}
        for owner in ("heavy", "light")
    )
    claims = [ledger.claims.take("instant", "w") for _ in range(12)]
    assert sum(c is not None and c.job_id in heavy for c in claims) in (9, 10)
    ledger.close()


def test_who_was_away_has_saved_nothing_up(ledger: Ledger) -> None:
    request = VideoRequest(seed=42, prompt="x", model="instant")
    for _ in range(50):
        ledger.jobs.submit(new_job_id(), request, owner="busy")
        assert ledger.claims.take("instant", "w")
    for owner in ("busy", "back"):
        for _ in range(4):
            ledger.jobs.submit(new_job_id(), request, owner=owner)
    claims = [ledger.claims.take("instant", "w") for _ in range(4)]
    owners = [ledger.jobs.get(claimed.job_id).owner for claimed in claims if claimed]
    assert owners == ["back", "busy", "back", "busy"]


def test_a_repeated_give_back_answers_as_the_first(ledger: Ledger) -> None:
    claimed = claim(ledger, submit(ledger))
    assert ledger.claims.give_back(claimed, charged=True) == ledger.claims.give_back(
        claimed, charged=True
    )


def test_the_sweep_queues_a_job_whose_lease_ended(ledger: Ledger, server: redis.Redis) -> None:
    claimed = claim(ledger, submit(ledger))
    lose_wakeups(server)
    let_time_pass(server)
    swept = ledger.sweeper.sweep()
    assert [r.job_id for r in swept.lease_ended] == [claimed.job_id]
    assert wakeups(server) == [claimed.job_id]
    assert ledger.claims.renew(claimed) == "lost"


def test_a_renewed_lease_is_left_alone(ledger: Ledger, server: redis.Redis) -> None:
    claimed = claim(ledger, submit(ledger))
    let_time_pass(server)
    ledger.claims.renew(claimed)
    assert ledger.sweeper.sweep().lease_ended == ()


def test_leases_are_extended_when_nobody_swept_for_a_while(
    ledger: Ledger, server: redis.Redis
) -> None:
    claimed = claim(ledger, submit(ledger))
    let_time_pass(server)
    server.set(f"{PREFIX}swept", 0)
    assert ledger.sweeper.sweep().lease_ended == ()
    assert ledger.claims.renew(claimed) == "held"


def test_a_job_with_no_time_left_is_not_made(ledger: Ledger) -> None:
    for _ in range(50):
        late = submit(ledger, start_within=0.001)
        assert ledger.claims.take("instant", "w") is None
        error = ledger.jobs.get(late.id).error
        assert error is not None
        assert error.code == "expired"


@pytest.mark.parametrize("ends", ["its process", "its host", "for good"])
def test_the_message_that_a_worker_had_in_hand_is_queued_again(
    ledger: Ledger, server: redis.Redis, ends: str
) -> None:
    queue = queue_name("instant")
    ledger.fleet.heartbeat("instant", "host", {"w": "ready", "other": "ready"})
    server.lpush(ledger.claims.taken_key("w"), "of a plain producer")
    server.lpush(ledger.claims.taken_key("other"), "still in hand")
    server.lpush(queue, "next", "last")
    if ends == "its process":
        ledger.claims.give_back_all("w")
    else:
        lease = 1000 * Settings.model_fields["lease"].default
        silence = lease + 1000 if ends == "its host" else 25 * 3600 * 1000
        server.zincrby(f"{PREFIX}seen", -silence, "w")
        ledger.sweeper.sweep()
    assert server.lrange(queue, 0, -1) == ["last", "next", "of a plain producer"]
    assert server.lrange(ledger.claims.taken_key("other"), 0, -1) == ["still in hand"]


def test_messages_with_a_priority_of_celerys_own_join_the_queue(
    ledger: Ledger, server: redis.Redis
) -> None:
    queue = queue_name("instant")
    ledger.fleet.heartbeat("instant", "host", {"w": "ready"})
    with Celery(broker=url_of(server), set_as_current=False) as plain:
        for priority in range(10):
            plain.send_task("ltxq.generate", queue=queue, priority=priority)
    assert server.llen(queue) < 10
    ledger.sweeper.sweep()
    assert server.llen(queue) == 10


def url_of(server: redis.Redis) -> str:
    about = server.connection_pool.connection_kwargs
    return f"redis://{about['host']}:{about['port']}/{about['db']}"


def test_a_sweep_right_after_anothers_does_nothing(ledger: Ledger, server: redis.Redis) -> None:
    job = submit(ledger)
    claim(ledger, job)
    let_time_pass(server)
    assert ledger.sweeper.sweep(interval=2.0).lease_ended
    claim(ledger, job)
    server.zadd(f"{PREFIX}running", {job.id: 0})
    assert ledger.sweeper.sweep(interval=60).lease_ended == ()
    let_time_pass(server)
    assert ledger.sweeper.sweep(interval=2.0).lease_ended


def test_a_job_without_a_wakeup_is_given_one(ledger: Ledger, server: redis.Redis) -> None:
    job = submit(ledger)
    assert lose_wakeups(server) == [job.id]
    assert sweep_later(ledger, server) == []  # a worker may just have it
    assert sweep_later(ledger, server) == [job.id]
    for _ in range(3):
        assert sweep_later(ledger, server) == []


def test_as_many_wakeups_are_sent_as_are_missing(ledger: Ledger, server: redis.Redis) -> None:
    jobs = [submit(ledger, priority=p) for p in ("low", "normal", "high")]
    server.ltrim(queue_name("instant"), 0, 0)
    sweep_later(ledger, server)
    again = sweep_later(ledger, server)
    assert len(again) == 2
    assert set(again) < {job.id for job in jobs}
    lose_wakeups(server)
    assert sweep_later(ledger, server) == []  # workers may just have them
    assert len(sweep_later(ledger, server)) == 3


def test_messages_of_cancelled_jobs_do_not_pile_up(ledger: Ledger, server: redis.Redis) -> None:
    for _ in range(20):
        ledger.jobs.cancel(submit(ledger).id)
    assert len(wakeups(server)) == 1
    submit(ledger)
    assert len(wakeups(server)) == 1
    submit(ledger)
    assert len(wakeups(server)) == 2


def test_a_plain_producers_message_takes_nobodys_wakeup(
    ledger: Ledger, server: redis.Redis
) -> None:
    server.lpush(queue_name("instant"), "a plain producer's job")
    first = submit(ledger)
    server.rpop(queue_name("instant"))
    second = submit(ledger)  # a worker has taken it
    assert len(wakeups(server)) == 2
    assert set(wakeups(server)) <= {first.id, second.id}


def test_records_and_keys_go_when_their_retention_ends(redis_url: str, server: redis.Redis) -> None:
    ledger = make_ledger(redis_url)
    request = VideoRequest(seed=42, prompt="a fox", model="instant")
    job = ledger.jobs.submit(new_job_id(), request, idempotency_key="k", digest="d")
    claimed = claim(ledger, job)
    ledger.claims.finish(claimed, result(claimed))
    server.zadd(f"{PREFIX}expiry", {claimed.job_id: 0})
    assert ledger.sweeper.take_garbage() == ((claimed.objects,), False)
    assert ledger.sweeper.take_garbage() == (
        (),
        False,
    )  # another one's, while its objects are deleted
    with pytest.raises(JobNotFound):
        ledger.jobs.get(claimed.job_id)
    ledger.sweeper.garbage_deleted([claimed.objects])
    left = {k.removeprefix(PREFIX) for k in server.keys(f"{PREFIX}*")}
    of_queue = {f"{kind}:{queue_name('instant')}" for kind in ("pace", "totals", "vtime", "tags")}
    assert left <= {"counter", "queues", "swept", "claimed", *of_queue}
    ledger.close()


def test_objects_of_a_deleted_job_are_garbage_until_they_are_deleted(
    ledger: Ledger, server: redis.Redis
) -> None:
    claimed = claim(ledger, submit(ledger))
    ledger.claims.finish(claimed, result(claimed))
    assert ledger.jobs.delete(claimed.job_id).claims == (claimed.objects,)
    assert ledger.sweeper.take_garbage() == ((claimed.objects,), False)
    server.zadd(f"{PREFIX}garbage", {claimed.objects: 0})  # the one who took it did not say more
    assert ledger.sweeper.take_garbage() == ((claimed.objects,), False)
    ledger.sweeper.garbage_deleted([claimed.objects])
    assert not server.exists(f"{PREFIX}garbage")


def test_a_claim_that_was_lost_is_garbage_when_the_job_ends_and_the_results_is_not(
    ledger: Ledger,
) -> None:
    lost = claim(ledger, submit(ledger), "w1")
    ledger.claims.give_back(lost, charged=False)
    assert ledger.sweeper.take_garbage() == ((), False)  # it may still be uploading
    last = claim(ledger, ledger.jobs.get(lost.job_id), "w2")
    ledger.claims.finish(last, result(last))
    assert ledger.sweeper.take_garbage() == ((lost.objects,), False)


def test_a_claim_of_a_record_that_began_again_is_refused(ledger: Ledger) -> None:
    request = VideoRequest(seed=42, prompt="a fox", model="instant")
    claims = []
    for _ in range(2):
        job = ledger.jobs.submit("order-17", request)
        claims.append(claim(ledger, job))
        if len(claims) == 1:
            ledger.claims.finish(claims[0], CANCELLED)
            ledger.jobs.delete("order-17")
    stale, live = claims
    assert (stale.attempt, live.attempt) == (1, 1)
    assert ledger.claims.renew(stale) == "lost"
    assert not ledger.claims.finish(stale, result(stale))
    assert ledger.claims.give_back(stale, charged=True).state == "lost"
    assert ledger.claims.finish(live, result(live))
    assert ledger.jobs.get("order-17").result_or_raise().key == f"{live.objects}/clip.mp4"


@pytest.mark.parametrize("running", [False, True])
def test_a_job_that_is_not_finished_does_not_expire(
    ledger: Ledger, server: redis.Redis, running: bool
) -> None:
    job = submit(ledger)
    if running:
        claim(ledger, job)
    server.zadd(f"{PREFIX}expiry", {job.id: 0})
    assert ledger.sweeper.take_garbage() == ((), False)
    assert ledger.jobs.get(job.id).state == ("running" if running else "queued")


def test_the_sweep_names_results_celery_was_not_told_of(
    ledger: Ledger, server: redis.Redis
) -> None:
    claimed = claim(ledger, submit(ledger))
    ledger.claims.finish(claimed, result(claimed))
    assert ledger.sweeper.sweep(interval=0.001).unreported == ()  # the worker may be about to
    server.zadd(f"{PREFIX}unreported", {claimed.job_id: 0})
    let_time_pass(server)
    assert ledger.sweeper.sweep().unreported == (claimed.job_id,)
    ledger.jobs.reported(claimed.job_id)
    let_time_pass(server)
    assert ledger.sweeper.sweep().unreported == ()


def test_a_final_state_makes_its_webhook_due_at_once(ledger: Ledger) -> None:
    plain, told = submit(ledger), submit(ledger, webhook_url="https://example.com/done")
    assert ledger.outbox.take(lease=60) is None
    ledger.jobs.cancel(plain.id)
    assert ledger.outbox.take(lease=60) is None
    ledger.jobs.cancel(told.id)
    assert ledger.outbox.waiting() == 1
    assert ledger.jobs.get(told.id).webhook == WebhookState(state="pending")
    delivery = ledger.outbox.take(lease=60)
    assert delivery is not None
    assert (delivery.job_id, delivery.attempt) == (told.id, 1)
    assert ledger.outbox.take(lease=60) is None
    ledger.outbox.delivered(delivery)
    ledger.outbox.delivered(delivery)
    webhook = ledger.jobs.get(told.id).webhook
    assert webhook is not None
    assert webhook.state == "delivered"
    assert webhook.delivered_at is not None
    assert ledger.outbox.waiting() == 0


def test_a_failed_webhook_is_due_again_or_given_up(ledger: Ledger) -> None:
    job_id = submit(ledger, webhook_url="https://example.com/done").id
    ledger.jobs.cancel(job_id)
    for attempt, again_in in ((1, 0), (2, None)):
        delivery = ledger.outbox.take(lease=60)
        assert delivery is not None
        assert delivery.attempt == attempt
        assert 0 <= delivery.age < 60
        ledger.outbox.failed(delivery, "it is away", again_in=again_in)
    assert ledger.outbox.take(lease=60) is None
    given_up = WebhookState(state="failed", attempts=2, last_error="it is away")
    assert ledger.jobs.get(job_id).webhook == given_up
    ledger.outbox.delivered(delivery)  # given up is given up
    assert ledger.jobs.get(job_id).webhook == given_up


def test_an_idempotency_key_gives_the_same_job_back(ledger: Ledger) -> None:
    request = VideoRequest(seed=42, prompt="a fox", model="instant")
    first = ledger.jobs.submit(new_job_id(), request, idempotency_key="k", digest="d")
    assert ledger.jobs.submit(new_job_id(), request, idempotency_key="k", digest="d") == first
    with pytest.raises(IdempotencyConflict):
        ledger.jobs.submit(new_job_id(), request, idempotency_key="k", digest="e")
    assert len(ledger.jobs.list().jobs) == 1


def test_a_full_queue_takes_nothing_and_stores_nothing(redis_url: str, server: redis.Redis) -> None:
    ledger = make_ledger(redis_url, max_queued=2)
    submit(ledger), submit(ledger)
    before = server.dbsize()
    with pytest.raises(QueueFull, match="2 jobs are queued"):
        submit(ledger)
    assert server.dbsize() == before
    ledger.close()


@pytest.mark.parametrize("state", ["queued", "later", "given back", "running", "cancelled"])
def test_a_deleted_job_is_gone_at_once(ledger: Ledger, server: redis.Redis, state: str) -> None:
    later = {"not_before": datetime.now(UTC) + timedelta(hours=1)} if state == "later" else {}
    webhook = {"webhook_url": "https://example.com/"}
    job = submit(ledger, start_within=60, **later, **webhook)
    claimed = claim(ledger, job) if state in ("given back", "running") else None
    if claimed and state == "given back":
        ledger.claims.give_back(claimed, charged=False)
    if state == "cancelled":
        ledger.jobs.cancel(job.id)
    ledger.jobs.delete(job.id)
    for ask in (ledger.jobs.get, ledger.jobs.cancel, ledger.jobs.delete):
        with pytest.raises(JobNotFound):
            ask(job.id)
    assert not ledger.jobs.list().jobs
    assert not ledger.jobs.get_many([job.id])
    assert ledger.outbox.take(lease=1) is None
    if state == "running":
        assert claimed
        assert [held.job_id for held in ledger.claims.running_on("w")] == [job.id]
        assert ledger.claims.report(claimed, HALF, on_gpu=True) == "cancel"
        assert not ledger.claims.finish(claimed, result(claimed))
        assert ledger.sweeper.take_garbage()[0] == (claimed.objects,)
        assert not ledger.claims.running_on("w")
    assert ledger.claims.take("instant", "w2") is None
    assert not server.exists(f"{PREFIX}job:{job.id}")
    for name in ("later:ltxq.3.instant", "deadlines", "running", "expiry", "webhooks", "owners"):
        assert not server.exists(f"{PREFIX}{name}")


def test_a_key_of_a_deleted_job_may_be_used_again(ledger: Ledger) -> None:
    request = VideoRequest(seed=42, prompt="a fox", model="instant")

    def with_key(*, resent: bool | None = None) -> Job:
        about: dict[str, Any] = {"owner": "alice", "idempotency_key": "order-7", "resent": resent}
        return ledger.jobs.submit(new_job_id(), request, digest="d", **about)

    first = with_key(resent=False)
    claimed = claim(ledger, first)
    ledger.jobs.delete(first.id)
    again = with_key(resent=True)
    assert again.id != first.id
    assert not ledger.claims.finish(claimed, result(claimed))  # which does not take the key along
    assert with_key().id == again.id
    assert [job.id for job in ledger.jobs.list(owner="alice").jobs] == [again.id]


def test_a_worker_that_dies_with_a_deleted_job_leaves_nothing(
    ledger: Ledger, server: redis.Redis
) -> None:
    claimed = claim(ledger, submit(ledger))
    ledger.jobs.delete(claimed.job_id)
    let_time_pass(server)
    ledger.sweeper.sweep()
    assert not server.exists(f"{PREFIX}job:{claimed.job_id}", f"{PREFIX}running")
    assert ledger.sweeper.take_garbage()[0] == (claimed.objects,)


def test_a_position_counts_every_job_that_is_taken_before(ledger: Ledger) -> None:
    low, first, second, high = (
        submit(ledger, priority=priority) for priority in ("low", "normal", "normal", "high")
    )
    submit(ledger, model="another")

    def position(job: Job) -> int | None:
        return ledger.jobs.get(job.id).queue_position

    assert [position(job) for job in (high, first, second, low)] == [0, 1, 2, 3]
    claimed = claim(ledger, high)
    assert [position(job) for job in (high, first, second, low)] == [None, 0, 1, 2]
    ledger.claims.give_back(claimed, charged=False)
    assert [position(job) for job in (high, first)] == [0, 1]


def test_an_eta_comes_from_recent_jobs_and_the_workers_there(
    ledger: Ledger, server: redis.Redis
) -> None:
    waiting = [submit(ledger) for _ in range(5)]
    assert ledger.jobs.get(waiting[4].id).eta_seconds is None
    claimed = claim(ledger, waiting[0])
    long_ago(server, claimed, 4)
    ledger.claims.report(claimed, HALF, on_gpu=True)
    assert ledger.jobs.get(claimed.job_id).eta_seconds == pytest.approx(4 * 0.65 / 0.35, abs=0.5)
    ledger.claims.report(claimed, HALF, on_gpu=False)
    long_ago(server, claimed, 6)
    ledger.claims.finish(claimed, result(claimed))
    assert ledger.jobs.get(waiting[4].id).eta_seconds is None  # no worker is ready
    ledger.fleet.heartbeat("instant", "host", {"w1": "ready"})
    assert ledger.jobs.get(waiting[1].id).eta_seconds == pytest.approx(6, abs=0.5)
    assert ledger.jobs.get(waiting[4].id).eta_seconds == pytest.approx(3 * 4 + 6, abs=0.5)
    ledger.fleet.heartbeat("instant", "host", {"w2": "ready"})
    assert ledger.jobs.get(waiting[4].id).eta_seconds == pytest.approx(3 / 2 * 4 + 6, abs=0.5)
    running = claim(ledger, waiting[1])
    assert ledger.jobs.get(running.job_id).eta_seconds == pytest.approx(6, abs=0.5)
    long_ago(server, running, 60)  # longer than the others took
    assert ledger.jobs.get(running.job_id).eta_seconds == 0
    ledger.claims.finish(running, result(running))
    assert ledger.jobs.get(running.job_id).eta_seconds is None


def long_ago(server: redis.Redis, claimed: Claim, seconds: float) -> None:
    """As if the claim had been made so many seconds ago."""
    key = f"{PREFIX}job:{claimed.job_id}"
    now, micros = server.time()
    server.hset(key, "started", int(now * 1000 + micros / 1000 - seconds * 1000))


def test_a_pace_that_was_written_over_ends_no_job(ledger: Ledger, server: redis.Redis) -> None:
    for spoilt in (lambda key: server.set(key, "x"), lambda key: server.hset(key, "whole", "x")):
        server.delete(f"{PREFIX}pace:ltxq.3.instant")
        spoilt(f"{PREFIX}pace:ltxq.3.instant")
        ledger.fleet.heartbeat("instant", "host", {"w": "ready"})
        job = submit(ledger)
        assert ledger.jobs.get(job.id).eta_seconds is None
        claimed = claim(ledger, job)
        assert ledger.claims.finish(claimed, result(claimed))
        assert ledger.jobs.get(job.id).state == "succeeded"


def ready_workers(ledger: Ledger) -> dict[str, int]:
    return {name: model.ready_workers for name, model in ledger.fleet.served().items()}


def test_a_model_is_served_while_its_workers_are_heard_of(
    ledger: Ledger, server: redis.Redis
) -> None:
    submit(ledger)
    assert ledger.fleet.served() == {}  # a name in a request is no worker
    ledger.fleet.heartbeat("instant", "host", {"w1": "ready"})
    ledger.fleet.heartbeat("instant", "host", {"w2": "ready"})
    ledger.fleet.heartbeat("other", "host", {"w1": "ready"})
    assert ready_workers(ledger) == {"instant": 2, "other": 1}
    seconds, _ = server.time()
    server.zadd(f"{PREFIX}workers:ltxq.3.instant", {"w1": (seconds - 60) * 1000})
    server.zadd(f"{PREFIX}workers:ltxq.3.other", {"w1": (seconds - 8 * 24 * 3600) * 1000})
    assert ready_workers(ledger) == {"instant": 1}


def test_a_models_limits_are_known_while_it_is_served(ledger: Ledger, server: redis.Redis) -> None:
    limits = ModelLimits(stages=(1,), num_inference_steps=8)
    ledger.fleet.heartbeat("instant", "host", {"w1": "ready"}, limits=limits)
    ledger.fleet.heartbeat("instant", "host", {"w1": "ready"})  # an older worker's does not say
    assert ledger.fleet.served()["instant"].limits == limits
    server.hset(f"{PREFIX}limits", "ltxq.3.instant", "nonsense")
    assert ledger.fleet.served()["instant"].limits is None
    server.delete(f"{PREFIX}workers:ltxq.3.instant")
    ledger.sweeper.sweep()
    assert not server.exists(f"{PREFIX}limits")


def test_an_owners_index_follows_the_job(ledger: Ledger, server: redis.Redis) -> None:
    request = VideoRequest(seed=42, prompt="a fox", model="instant")
    first, second, other = (
        ledger.jobs.submit(new_job_id(), request, owner=owner)
        for owner in ("alice", "alice", "bob")
    )
    claimed = claim(ledger, first)
    server.set(f"{PREFIX}job:{second.id}", "spoilt")

    def owned(owner: str, state: JobState | None = None) -> list[str]:
        return [job.id for job in ledger.jobs.list(owner=owner, state=state).jobs]

    assert owned("alice") == [first.id]
    assert owned("alice", "running") == [first.id]
    assert owned("bob") == [other.id]
    ledger.claims.finish(claimed, result(claimed))
    assert owned("alice", "succeeded") == [first.id]
    ledger.jobs.delete(first.id)
    ledger.jobs.delete(second.id)
    ledger.jobs.cancel(other.id)
    ledger.jobs.delete(other.id)
    assert not list(server.scan_iter(f"{PREFIX}owned:*"))


def test_a_list_is_newest_first_by_state_and_paged(ledger: Ledger) -> None:
    jobs = [submit(ledger) for _ in range(7)]
    for job in jobs[:4]:
        claimed = claim(ledger, job)
        ledger.claims.finish(claimed, result(claimed))
    newest = [t.id for t in reversed(jobs)]
    seen: list[str] = []
    after = None
    while True:
        page = ledger.jobs.list(limit=3, after=after)
        seen += [job.id for job in page.jobs]
        if (after := page.after) is None:
            break
    assert seen == newest
    assert [j.id for j in ledger.jobs.list(state="succeeded").jobs] == newest[3:]
    with pytest.raises(JobNotFound):
        ledger.jobs.list(after="video_unknown")


def test_a_change_wakes_who_listens(ledger: Ledger) -> None:
    claimed = claim(ledger, submit(ledger))
    with ledger.changes.of(claimed.job_id) as changes:
        assert changes.next(5) is None  # the subscription itself
        ledger.claims.report(claimed, HALF, on_gpu=True)
        assert changes.next(5) is not None


def test_leases_are_kept_by_the_clock_of_redis(
    ledger: Ledger, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)  # this host is decades behind
    claimed = claim(ledger, submit(ledger))
    deadline = server.zscore(f"{PREFIX}running", claimed.job_id)
    assert deadline is not None
    assert 25_000 < deadline - server.time()[0] * 1000 <= 31_000


def test_no_redis_is_a_clear_error_within_5_seconds() -> None:
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        ledger = make_ledger(f"redis://:s3cret@127.0.0.1:{taken.getsockname()[1]}/0")
        began = time.monotonic()
        with pytest.raises(QueueUnavailable, match="does not answer") as caught:
            submit(ledger)
        assert time.monotonic() - began < 5
        assert "s3cret" not in str(caught.value)


def test_a_redis_that_hangs_is_a_clear_error_within_5_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        ledger = make_ledger(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        began = time.monotonic()
        with pytest.raises(QueueUnavailable):
            submit(ledger)
        assert time.monotonic() - began < 5


def test_a_wrong_password_is_told_without_it(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path, password="right") as server:
        ledger = make_ledger(f"redis://:wr0ng@127.0.0.1:{server.port}/0")
        with pytest.raises(ConfigurationError, match="refuses this user or password") as caught:
            submit(ledger)
        assert "wr0ng" not in str(caught.value)


def test_a_full_redis_is_told_and_nothing_is_half_stored(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path) as server:
        ledger = make_ledger(server.url)
        with redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=5) as straight:
            straight.config_set("maxmemory", 1)
            with pytest.raises(QueueUnavailable, match="full"):
                submit(ledger)
            assert straight.dbsize() == 0
            straight.config_set("maxmemory", 0)
        submit(ledger)
        ledger.close()


def test_a_read_only_replica_is_told(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path) as server:
        with redis.Redis.from_url(server.url, socket_timeout=5) as straight:
            straight.replicaof("127.0.0.1", 1)
            ledger = make_ledger(server.url)
            with pytest.raises(QueueUnavailable, match="read-only replica"):
                submit(ledger)
        ledger.close()


def test_calls_live_through_a_restart_of_redis(tmp_path: Path) -> None:
    first = RedisServer.start(tmp_path)
    ledger = make_ledger(first.url)
    submit(ledger)
    first.stop()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ledger.claims.take, "instant", "w")
        with RedisServer.start(tmp_path, port=first.port):
            claimed = answer.result(timeout=10)
            assert claimed is not None
            assert ledger.claims.renew(claimed) == "held"
    ledger.close()
