"""Webhooks, delivered to a real HTTP server: signed, repeated, given up; by one sender, and
by a whole fleet. How a receiver is reached is test_webhook_outbound.py's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from test_ledger import FAILED, claim, let_time_pass, make_ledger, result, submit

from fleet import PATIENCE, Fleet, eventually, worker_environment
from ltxq import Client
from ltxq.cli.screen import job_lines
from ltxq.job import VideoRequest
from ltxq.ledger import PREFIX, Claim, Ledger
from ltxq.settings import Settings
from ltxq.storage import Storage
from ltxq_worker.embedded.servers import S3Server
from ltxq_worker.webhooks.safe_http import Outbound
from ltxq_worker.webhooks.sender import SENDERS, Webhooks
from receiver import LOOPBACK, SECRET, Handler, Receiver
from servers import S3

SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_frames": 9}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.stop()


@pytest.fixture
def ledger(redis_url: str) -> Iterator[Ledger]:
    made = make_ledger(redis_url)
    yield made
    made.close()


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=5) as connection:
        yield connection


@pytest.fixture
def storage() -> Storage:
    return Storage.from_settings(
        Settings(
            s3_bucket="clips",
            s3_endpoint="http://127.0.0.1:1",
            s3_public_base_url="https://clips.example",
        )
    )


@pytest.fixture
def webhooks(ledger: Ledger, storage: Storage) -> Webhooks:
    """A sender that tries again at once."""
    return sender(ledger, storage)


def sender(ledger: Ledger, storage: Storage, *, allow: str = LOOPBACK, **others: Any) -> Webhooks:
    settings = Settings(webhook_secret=SECRET, webhook_allow=allow)
    return Webhooks(ledger, storage, settings, **{"backoff": (0.0,), **others})


def finished(ledger: Ledger, url: str, **fields: Any) -> Claim:
    """A job that succeeded and has a webhook."""
    claimed = claim(ledger, submit(ledger, webhook_url=url, **fields))
    assert ledger.claims.finish(claimed, result(claimed))
    return claimed


def outcome(ledger: Ledger, claimed: Claim) -> tuple[str, int, str | None]:
    webhook = ledger.jobs.get(claimed.job_id).webhook
    assert webhook is not None
    return webhook.state, webhook.attempts, webhook.last_error


def make_due(server: redis.Redis, claimed: Claim) -> None:
    """Its next attempt, now."""
    server.zadd(f"{PREFIX}webhooks:127.0.0.1", {claimed.job_id: 0})
    server.zadd(f"{PREFIX}webhooks", {"127.0.0.1": 0})


def test_a_delivery_is_signed_and_tells_the_outcome(
    ledger: Ledger, webhooks: Webhooks, receiver: Receiver
) -> None:
    job = finished(ledger, receiver.url + "?order=7", metadata={"order": "7 🦊"})
    assert webhooks.send_one()
    (call,) = receiver.calls
    assert call.path == "/done?order=7"
    assert call.headers["Host"] == f"127.0.0.1:{receiver.port}"
    assert call.headers["Content-Type"] == "application/json"
    assert not {"Authorization", "Cookie"} & set(call.headers)
    data = call.event.pop("data")
    assert call.event["type"] == "video.completed"
    at = datetime.fromisoformat(call.event["timestamp"])
    assert at == ledger.jobs.get(job.job_id).finished_at
    assert (data["id"], data["state"], data["error"]) == (job.job_id, "succeeded", None)
    assert data["metadata"] == {"order": "7 🦊"}
    assert data["result"]["url"] == f"https://clips.example/{job.objects}/clip.mp4"  # afresh
    assert outcome(ledger, job) == ("delivered", 1, None)
    assert not webhooks.send_one()


def test_a_failed_and_a_cancelled_job_are_told_of(
    ledger: Ledger, webhooks: Webhooks, receiver: Receiver
) -> None:
    broken = claim(ledger, submit(ledger, webhook_url=receiver.url))
    ledger.claims.finish(broken, FAILED)
    ledger.jobs.cancel(submit(ledger, webhook_url=receiver.url).id)
    while webhooks.send_one():
        pass
    errors = {call.event["type"]: call.event["data"]["error"] for call in receiver.calls}
    assert set(errors) == {"video.failed", "video.cancelled"}
    assert errors["video.failed"]["message"] == "it broke"
    assert errors["video.cancelled"]["code"] == "cancelled"


def test_a_job_without_a_webhook_or_not_finished_is_not_told_of(
    ledger: Ledger, webhooks: Webhooks, receiver: Receiver
) -> None:
    plain = claim(ledger, submit(ledger))
    ledger.claims.finish(plain, result(plain))
    unfinished = claim(ledger, submit(ledger, webhook_url=receiver.url))
    assert not webhooks.send_one()
    assert ledger.jobs.get(plain.job_id).webhook is None
    assert ledger.jobs.get(unfinished.job_id).webhook is None


def test_it_is_tried_until_a_2xx_under_one_id(
    ledger: Ledger, webhooks: Webhooks, receiver: Receiver
) -> None:
    receiver.answers = [500, 404, 303, lambda handler: handler.connection.close()]
    job = finished(ledger, receiver.url)
    for attempt in range(1, 5):
        assert webhooks.send_one()
        state, attempts, why = outcome(ledger, job)
        assert (state, attempts) == ("pending", attempt)
        assert why is not None
        assert why.startswith("127.0.0.1 ")
    assert (
        "".join(job_lines(ledger.jobs.get(job.job_id))).count("pending, attempt 4: 127.0.0.1") == 1
    )
    assert webhooks.send_one()
    assert outcome(ledger, job) == ("delivered", 5, None)
    assert {call.headers["webhook-id"] for call in receiver.calls} == {f"event_{job.job_id}"}
    assert {call.event["type"] for call in receiver.calls} == {"video.completed"}
    assert not webhooks.send_one()


def test_the_next_attempt_waits_and_the_last_pause_repeats(
    ledger: Ledger, storage: Storage, receiver: Receiver, server: redis.Redis
) -> None:
    slow = sender(ledger, storage, backoff=(5.0, 3600.0))
    receiver.answers = [500] * 3
    job = finished(ledger, receiver.url)
    for pause in (5, 3600, 3600):
        make_due(server, job)
        before = time.time()
        assert slow.send_one()
        assert not slow.send_one()
        due = server.zscore(f"{PREFIX}webhooks", "127.0.0.1") / 1000
        assert before + pause - 1 < due < time.time() + pause + 1


def test_after_a_day_it_is_given_up_and_said_so(
    ledger: Ledger, webhooks: Webhooks, receiver: Receiver, server: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    receiver.answers = [500]
    job = finished(ledger, receiver.url)
    yesterday = datetime.now(UTC) - timedelta(days=1, minutes=1)
    server.hset(f"{PREFIX}job:{job.job_id}", "finished", int(yesterday.timestamp() * 1000))
    assert webhooks.send_one()
    assert outcome(ledger, job) == ("failed", 1, "127.0.0.1 answered 500.")
    assert f"The webhook of {job.job_id} is given up" in caplog.text
    assert "given up, attempt 1" in "".join(job_lines(ledger.jobs.get(job.job_id)))
    assert not webhooks.send_one()
    assert server.zcard(f"{PREFIX}webhooks") == 0


def test_two_senders_do_not_send_one_delivery_at_once(
    ledger: Ledger, storage: Storage, receiver: Receiver
) -> None:
    release = threading.Event()

    def wait(handler: Handler) -> None:
        release.wait(PATIENCE)
        handler.send_response(204)
        handler.end_headers()

    receiver.answers = [wait]
    finished(ledger, receiver.url)
    first = threading.Thread(target=sender(ledger, storage).send_one)
    first.start()
    receiver.wait_for(1)
    assert not sender(ledger, storage).send_one()
    release.set()
    first.join(PATIENCE)
    assert not sender(ledger, storage).send_one()
    assert len(receiver.calls) == 1


def test_a_delivery_of_a_sender_that_died_is_another_ones_after_its_lease(
    ledger: Ledger, webhooks: Webhooks, receiver: Receiver
) -> None:
    job = finished(ledger, receiver.url)
    dead = ledger.outbox.take(lease=0.05)
    assert dead is not None
    eventually(webhooks.send_one)
    ledger.outbox.failed(dead, "late", again_in=0)  # what the first one thinks comes too late
    assert outcome(ledger, job) == ("delivered", 2, None)


def test_a_late_failure_does_not_shorten_the_wait_of_a_later_attempt(
    ledger: Ledger, receiver: Receiver
) -> None:
    job = finished(ledger, receiver.url)
    late = ledger.outbox.take(lease=0)
    assert late is not None
    assert ledger.outbox.take(lease=60) is not None
    ledger.outbox.failed(late, "late", again_in=0)
    assert ledger.outbox.take(lease=60) is None
    assert outcome(ledger, job) == ("pending", 2, None)


def test_a_receiver_that_hangs_holds_up_nobody_elses(
    ledger: Ledger, storage: Storage, receiver: Receiver
) -> None:
    """All senders at once, and more for the bad host, on all its ports, than there are senders."""
    release = threading.Event()

    def hang(handler: Handler) -> None:
        release.wait(PATIENCE)
        handler.send_response(204)
        handler.end_headers()

    good = Receiver()
    receiver.otherwise = lambda _id: hang
    hanging = [finished(ledger, receiver.url) for _ in range(2 * SENDERS)]
    other_port = finished(ledger, "http://127.0.0.1:1/")
    ended = threading.Event()
    threads = sender(ledger, storage, allow=f"{LOOPBACK},localhost").start(ended)
    try:
        receiver.wait_for(4)
        told = [finished(ledger, good.url.replace("127.0.0.1", "localhost")) for _ in range(9)]
        good.wait_for(len(told))
        for job in told:
            eventually(lambda job=job: outcome(ledger, job)[0] == "delivered")
        assert len(receiver.calls) == 4
        assert outcome(ledger, other_port) == ("pending", 0, None)  # the same machine
        receiver.otherwise = lambda _id: 204
        release.set()
        receiver.wait_for(len(hanging))
    finally:
        release.set()
        ended.set()
        for thread in threads:
            thread.join(PATIENCE)
        good.stop()
    assert ledger.outbox.waiting() == 1
    assert {outcome(ledger, job)[0] for job in hanging} == {"delivered"}


def test_a_lost_senders_deliveries_do_not_shut_a_receiver_out(
    ledger: Ledger, webhooks: Webhooks, receiver: Receiver
) -> None:
    jobs = [finished(ledger, receiver.url) for _ in range(5)]
    for _ in range(4):
        assert ledger.outbox.take(lease=0.2) is not None
    assert not webhooks.send_one()
    for _ in jobs:
        eventually(webhooks.send_one)
    assert {outcome(ledger, job)[0] for job in jobs} == {"delivered"}


def test_an_error_nobody_foresaw_is_a_failure_of_that_delivery(
    ledger: Ledger, storage: Storage, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Outbound(Settings(webhook_allow=LOOPBACK).webhook_allow)
    monkeypatch.setattr(broken, "post", lambda *_: [][1])
    webhooks = sender(ledger, storage, outbound=broken)
    job = finished(ledger, receiver.url)
    assert webhooks.send_one()
    assert outcome(ledger, job) == ("pending", 1, "ltxq failed to send it (IndexError).")


def test_a_deleted_jobs_webhook_goes_with_it(
    ledger: Ledger, webhooks: Webhooks, receiver: Receiver
) -> None:
    ledger.jobs.delete(finished(ledger, receiver.url).job_id)
    assert ledger.outbox.waiting() == 0
    assert not webhooks.send_one()


def test_a_spoilt_record_neither_keeps_its_job_open_nor_stops_the_others(
    ledger: Ledger, storage: Storage, receiver: Receiver, server: redis.Redis
) -> None:
    webhooks = sender(ledger, storage, backoff=(60.0,))
    spoilt = claim(ledger, submit(ledger, webhook_url=receiver.url))
    server.hset(f"{PREFIX}job:{spoilt.job_id}", "request", "{")
    let_time_pass(server)
    ledger.jobs.cancel(spoilt.job_id)
    assert ledger.sweeper.sweep().lease_ended[0].state == "cancelled"
    later = finished(ledger, receiver.url)
    server.hset(f"{PREFIX}job:{later.job_id}", "result", "{")
    finished(ledger, receiver.url)
    server.zadd(f"{PREFIX}webhooks", {"nobody": 0, "127.0.0.1": 0})
    server.zadd(f"{PREFIX}webhooks:127.0.0.1", {"video_none": 0})
    for _ in range(3):
        webhooks.send_one()
    assert len(receiver.calls) == 1
    assert "damaged" in server.hget(f"{PREFIX}job:{later.job_id}", "webhook_error")


def test_without_a_secret_nothing_is_sent_and_it_is_said_once(
    ledger: Ledger, storage: Storage, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    job = finished(ledger, receiver.url)
    ended = threading.Event()
    with caplog.at_level(logging.ERROR):
        (thread,) = Webhooks(ledger, storage, Settings(webhook_allow=LOOPBACK)).start(ended)
        thread.join(PATIENCE)
    ended.set()
    (said,) = caplog.messages
    assert "LTXQ_WEBHOOK_SECRET" in said
    assert not receiver.calls
    assert outcome(ledger, job) == ("pending", 0, None)


def test_what_a_failure_tells_has_no_secret_of_the_url(
    ledger: Ledger, storage: Storage, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    webhooks = sender(ledger, storage, backoff=(60.0,))
    receiver.answers = [500]
    jobs = [
        finished(ledger, receiver.url + "/TOKEN?key=TOKEN"),
        finished(ledger, "http://127.0.0.1:1/TOKEN"),
        finished(ledger, f"http://a..b:{receiver.port}/TOKEN"),
    ]
    with caplog.at_level(logging.DEBUG):
        for _ in jobs:
            assert webhooks.send_one()
    assert "TOKEN" not in caplog.text
    for job in jobs:
        state, _, why = outcome(ledger, job)
        assert state == "pending"
        assert why is not None
        assert "TOKEN" not in why
    assert len(receiver.calls) == 1
    assert SECRET[6:] not in caplog.text


# --- a whole fleet ------------------------------------------------------------------------------


@pytest.fixture
def environment(redis_url: str, s3_server: S3Server, tmp_path: Path) -> dict[str, str]:
    return {
        **worker_environment(redis_url, s3_server, tmp_path / "spool"),
        "LTXQ_WEBHOOK_SECRET": SECRET,
        "LTXQ_WEBHOOK_ALLOW": LOOPBACK,
        "LTXQ_INSTANT_SECONDS": "3",
    }


def test_a_fleet_tells_of_completed_failed_and_cancelled_jobs(
    environment: dict[str, str], redis_url: str, s3: S3, receiver: Receiver
) -> None:
    request = {"webhook_url": receiver.url, "model": "instant", **SMALL}
    with Fleet(environment) as fleet, Client(settings=s3.settings(url=redis_url)) as client:
        fleet.wait_until_ready()
        late = client.submit("a fox", timeout=1, **request)
        good = client.submit("a bear", **request)
        unwanted = client.submit("an owl", **request)
        client.cancel(unwanted.id)
        receiver.wait_for(3)
        eventually(
            lambda: all(
                (webhook := client.get(job.id).webhook) and webhook.state == "delivered"
                for job in (late, good, unwanted)
            )
        )
    told = {call.event["data"]["id"]: call.event for call in receiver.calls}
    assert {job_id: event["type"] for job_id, event in told.items()} == {
        good.id: "video.completed",
        late.id: "video.failed",
        unwanted.id: "video.cancelled",
    }
    assert told[late.id]["data"]["error"]["code"] == "timed_out"
    assert f"/ltxq/{good.id}/" in told[good.id]["data"]["result"]["url"]
    assert len(receiver.calls) == 3


def test_a_killed_supervisors_delivery_is_sent_by_the_next_one(
    environment: dict[str, str], redis_url: str, receiver: Receiver
) -> None:
    receiver.answers = [503]
    ledger = make_ledger(redis_url)
    job_id = "video_1"
    request = VideoRequest(prompt="a fox", model="other", seed=1, webhook_url=receiver.url)
    with Fleet(environment) as first:
        ledger.jobs.submit(job_id, request)
        ledger.jobs.cancel(job_id)
        first.wait_for(f"The webhook of {job_id}: 127.0.0.1 answered 503")
        first.supervisor.kill()
    with Fleet(environment, name="next"):
        receiver.wait_for(2)
        eventually(lambda: (w := ledger.jobs.get(job_id).webhook) and w.state == "delivered")
    assert [call.headers["webhook-id"] for call in receiver.calls] == [f"event_{job_id}"] * 2
    ledger.close()
