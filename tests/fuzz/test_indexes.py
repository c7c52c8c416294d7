"""The ledger's indexes written over by hand: no job is lost, and no step fails for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import strategies as st

from generated import count, fuzzed, texts
from ltxq.errors import JobUnreadable
from ltxq.job import VideoRequest, new_job_id
from ltxq.ledger import PREFIX, Claim, queue_name
from ltxq_worker.embedded.servers import RedisServer
from test_records import Book, worked_on_by_all

QUEUE, HOST = queue_name("instant"), "hooks.example"
REQUEST = VideoRequest(prompt="a fox", model="instant", seed=1, webhook_url=f"https://{HOST}/")
SORTED = (
    "running", "expiry", "unreported", "webhooks", f"webhooks:{HOST}", f"sending:{HOST}", "seen",
    *(f"state:{state}" for state in ("queued", "running", "failed")),
    *(f"owned:me:{state}" for state in ("queued", "running", "failed")),
    f"waiting:{QUEUE}:1", f"waiting:{QUEUE}:2", f"later:{QUEUE}", f"tags:{QUEUE}",
    "garbage", f"workers:{QUEUE}",
)  # fmt: skip
HASHES = ("idempotency", "fleet", "holders", "claimed", f"pace:{QUEUE}", f"totals:{QUEUE}")
SETS = ("owners", "queues", "draining", "held:cpu0@here")
PLAIN = (
    f"vtime:{QUEUE}",
    f"missing:{QUEUE}",
    "cursor",
    "counter",
    "swept",
    "silent",
    "corrupt",
    "cleaned",
)


@pytest.fixture(scope="module")
def book(redis_server: RedisServer) -> Iterator[Book]:
    book = Book(f"redis://127.0.0.1:{redis_server.port}/14", lease=60)
    yield book
    book.close()


def one_of_each(book: Book) -> tuple[str, Claim, str]:
    """A queued job with an idempotency key, a running one, and a failed one with a webhook due."""
    book.redis.flushdb()
    waiting = new_job_id()
    claims = []
    for _ in range(2):
        book.ledger.jobs.submit(new_job_id(), REQUEST, owner="me")
        claim = book.ledger.claims.take("instant", "cpu0@here")
        assert claim
        claims.append(claim)
    book.ledger.jobs.submit(waiting, REQUEST, owner="me", idempotency_key="key", digest="d")
    running, failed = claims
    book.ledger.claims.finish(failed, JobUnreadable("It broke.").as_job_error())
    book.ledger.fleet.heartbeat("instant", "here", {"cpu0@here": "ready"})
    return waiting, running, failed.job_id


def looked_after(book: Book) -> None:
    """What a supervisor does."""
    book.let_time_pass()
    swept = book.ledger.sweeper.sweep(interval=2.0)
    if swept.corrupt:
        book.ledger.sweeper.rebuild()


@pytest.mark.parametrize("early", ["supervisor", "worker", "client"])
@pytest.mark.parametrize("name", [*SORTED, *HASHES, *SETS, "messages"])
def test_an_index_of_another_type_is_built_anew(book: Book, name: str, early: str) -> None:
    waiting, running, failed = one_of_each(book)
    key = QUEUE if name == "messages" else f"{PREFIX}{name}"
    book.redis.delete(key)
    book.redis.set(key, "foreign")
    if early == "worker":
        assert book.ledger.claims.renew(running) == "held"
        assert book.ledger.claims.give_back_all("nobody") == ()
    elif early == "client":
        book.client.submit("another fox")
    looked_after(book)
    again = book.ledger.jobs.submit(
        new_job_id(), REQUEST, owner="me", idempotency_key="key", digest="d"
    )
    assert again.id == waiting
    assert {waiting, running.job_id, failed} <= {job.id for job in book.client.list().jobs}
    assert len(book.ledger.jobs.list(owner="me").jobs) == 3
    assert book.ledger.outbox.waiting() == 1
    assert book.ledger.outbox.take(lease=1) is not None
    assert [job.job_id for job in book.ledger.claims.running_on("cpu0@here")] == [running.job_id]
    assert book.redis.zscore(f"{PREFIX}expiry", failed)
    while (claim := book.ledger.claims.take("instant", "cpu0@here")) and claim.job_id != waiting:
        pass  # the client's own
    assert claim
    assert book.ledger.claims.finish(running, JobUnreadable("It broke.").as_job_error())
    looked_after(book)


@pytest.mark.parametrize("name", ["counter", "swept"])
@pytest.mark.parametrize("value", ["foreign", "1e300", "-1e300", "nan", "9" * 30, "0", None])
def test_a_lost_or_foreign_counter_neither_stops_sweeps_nor_goes_back(
    book: Book, name: str, value: str | None
) -> None:
    one_of_each(book)
    before = max(book.waiting().values())
    book.redis.delete(f"{PREFIX}{name}")
    if value is not None:
        book.redis.set(f"{PREFIX}{name}", value)
    later = book.client.submit("another fox")
    seq = book.waiting()[later.id]
    if value != "-1e300":
        assert seq > before
    for _ in range(2):
        book.ledger.sweeper.sweep(interval=0.001)
        assert int(book.redis.get(f"{PREFIX}swept")) < 2**53


@pytest.mark.parametrize("value", ["0", "{}", "nan", "[1]", "", "x"])
@pytest.mark.parametrize("name", ["fleet", "claimed", "holders", f"pace:{QUEUE}"])
def test_a_value_nobody_wrote_stops_nobody(book: Book, name: str, value: str) -> None:
    waiting, _, _ = one_of_each(book)
    for field in ("cpu0@here", "0", "1", "2", "3", "gpu", "whole"):
        book.redis.hset(f"{PREFIX}{name}", field, value)
    book.ledger.fleet.workers()
    book.ledger.fleet.figures()
    looked_after(book)
    worked_on_by_all(book, waiting)


members = st.one_of(
    texts, st.sampled_from([HOST, QUEUE, "me", "cpu0@here", "video_1", "0", "3", "me:key"])
)
values = st.one_of(
    st.binary(max_size=12), st.sampled_from([b"nan", b"1e308", b"-1", b"9" * 40, b"2.5", b"{}"])
)
scores = st.floats(allow_nan=False) | st.integers(-1, 10**13).map(float)
damages = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(SORTED), members, scores),
        st.tuples(st.sampled_from(HASHES), members, values),
        st.tuples(st.sampled_from(SETS), members, st.none()),
        st.tuples(st.sampled_from(PLAIN), values, st.none()),
        st.tuples(st.sampled_from((*SORTED, *HASHES, *SETS, *PLAIN)), st.none(), st.none()),
    ),
    min_size=1,
    max_size=4,
)


@fuzzed(0.02, damages=damages)
def test_what_is_put_into_an_index_stops_nobody(book: Book, damages: list[tuple]) -> None:  # type: ignore[type-arg]
    count()
    waiting, _, _ = one_of_each(book)
    for name, member, value in damages:
        key = f"{PREFIX}{name}"
        if member is None:
            book.redis.delete(key)
        elif name in SORTED:
            book.redis.zadd(key, {member.encode(errors="replace"): value})
        elif name in HASHES:
            book.redis.hset(key, member.encode(errors="replace"), value)
        elif name in SETS:
            book.redis.sadd(key, member.encode(errors="replace"))
        else:
            book.redis.set(key, member)
    book.ledger.fleet.figures()
    book.ledger.fleet.workers()
    book.ledger.outbox.take(lease=1)
    book.ledger.outbox.waiting()
    book.ledger.sweeper.garbage_deleted(book.ledger.sweeper.take_garbage()[0])
    looked_after(book)
    worked_on_by_all(book, waiting)
