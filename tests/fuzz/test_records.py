"""Ledger records written over by hand: a clear error about that job, and no harm to any other."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import pytest
import redis
from hypothesis import strategies as st

from generated import count, fuzzed, json_values, texts
from ltxq import Client
from ltxq.celery import make_app, report_outcome
from ltxq.cli import main
from ltxq.errors import JobNotFound, JobUnreadable, LtxqError, WaitTimeout
from ltxq.job import CONTRACT, VideoRequest, new_job_id
from ltxq.ledger import BANDS, PREFIX, Ledger, queue_name
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import RedisServer

REQUEST = VideoRequest(prompt="a fox", model="instant", seed=1)
FIELDS = ("contract", "state", "request", "queue", "band", "tag", "cost", "seq", "submitted",
          "start_by", "not_before", "attempts", "claims", "nonce", "worker", "started", "gpu",
          "finished", "error", "result", "progress", "cancel", "owner", "idempotency", "lost",
          "from_the_future")  # fmt: skip
LATER = 3 * 24 * 3600 * 1000  # milliseconds

damage = st.lists(
    st.tuples(
        st.sampled_from(FIELDS),
        st.one_of(
            st.none(),  # the field is taken away
            st.binary(max_size=20),
            texts.map(lambda text: text.encode()),
            json_values().map(lambda value: json.dumps(value).encode()),
            st.sampled_from(
                [b"queued", b"running", b"succeeded", b"failed", b"2", b"-1", b"1e309", b"nan",
                 b"9" * 400, b"[" * 5000, b'{"prompt": "\xff"}', b'{"prompt":"a","later":1}']
            ),
        ),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


class Book:
    """A ledger in a Redis of its own, a client, and ways to spoil what they keep."""

    def __init__(self, url: str, lease: float = 1) -> None:
        self.settings = Settings(url=url, default_model="instant", lease=lease, retention=60)
        self.redis = redis.Redis.from_url(url, socket_timeout=10)
        self.ledger = Ledger(self.settings)
        self.client = Client(settings=self.settings)
        self.app = make_app(self.settings)

    def fresh(self, state: str) -> str:
        """A job in that state."""
        self.redis.flushdb()
        job_id = new_job_id()
        self.ledger.jobs.submit(job_id, REQUEST, idempotency_key="key", digest="d")
        if state != "queued":
            claim = self.ledger.claims.take("instant", "cpu0@here")
            assert claim is not None
            if state == "failed":
                self.ledger.claims.finish(claim, JobUnreadable("It broke.").as_job_error())
        return job_id

    def spoil(self, job_id: str, damage: list[tuple[str, bytes | None]]) -> None:
        key = f"{PREFIX}job:{job_id}"
        for field, value in damage:
            if value is None:
                self.redis.hdel(key, field)
            else:
                self.redis.hset(key, field, value)

    def sweep_late(self) -> None:
        """A sweep that finds every lease ended, every wake-up missing, the last sweep long ago."""
        for job_id in self.redis.zrange(f"{PREFIX}running", 0, -1):
            self.redis.zadd(f"{PREFIX}running", {job_id: 1})
        self.let_time_pass()
        self.ledger.sweeper.sweep(interval=2.0)

    def let_time_pass(self) -> None:
        """So that a sweep is due."""
        seconds, _ = self.redis.time()
        self.redis.set(f"{PREFIX}swept", 1000 * seconds - 4000)

    def waiting(self) -> dict[str, int]:
        """The queued jobs that a worker could claim, and their place in the order of submission."""
        waiting = f"{PREFIX}waiting:{queue_name('instant')}"
        found = [
            member.decode(errors="replace")
            for band in BANDS.values()
            for member in self.redis.zrange(f"{waiting}:{band}", 0, -1)
        ]
        return {member[16:]: int(member[:16]) for member in found if member[:16].isdecimal()}

    def close(self) -> None:
        self.app.close()
        self.client.close()
        self.ledger.close()
        self.redis.close()


@pytest.fixture(scope="module")
def book(redis_server: RedisServer) -> Iterator[Book]:
    book = Book(f"redis://127.0.0.1:{redis_server.port}/15")
    yield book
    book.close()


def read_by_everyone(book: Book, job_id: str) -> None:
    """What a client, the CLI and Celery's side make of it: an answer, or an error of ours."""
    for ask in (
        lambda: book.client.get(job_id),
        lambda: list(book.client.watch(job_id, timeout=0)),
        lambda: book.client.retry(job_id),
    ):
        with contextlib.suppress(JobUnreadable, WaitTimeout):
            ask()
    report_outcome(book.app, book.ledger, job_id)
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict("os.environ", {"LTXQ_URL": book.settings.url.get_secret_value()}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        assert main(["status", job_id]) in (0, 1), err.getvalue()
        assert main(["status", job_id, "--json"]) in (0, 1), err.getvalue()
    assert "Traceback" not in err.getvalue()


def worked_on_by_all(book: Book, job_id: str) -> None:
    """The steps of supervisors, workers and clients: none may raise but for that job alone."""
    other = book.client.submit("another fox")
    assert other.id in [job.id for job in book.client.list().jobs]
    book.client.list(limit=1, after=other.id)
    book.ledger.claims.running_on("cpu0@here")
    book.ledger.claims.give_back_all("cpu0@here")
    book.sweep_late()
    book.sweep_late()
    assert other.id in book.waiting()
    claims = []
    while claim := book.ledger.claims.take("instant", "cpu0@here"):
        claims.append(claim.job_id)
    assert other.id in claims
    assert not book.waiting()
    with contextlib.suppress(LtxqError):
        book.client.cancel(job_id)
    with contextlib.suppress(JobNotFound):
        book.client.delete(job_id)


@fuzzed(0.05, state=st.sampled_from(["queued", "running", "failed"]), damage=damage)
def test_a_damaged_record_harms_its_own_job_alone(
    book: Book, state: str, damage: list[tuple[str, bytes | None]]
) -> None:
    count()
    job_id = book.fresh(state)
    book.spoil(job_id, damage)
    read_by_everyone(book, job_id)
    worked_on_by_all(book, job_id)


@pytest.mark.parametrize("band", [b"9" * 400, b"1e300", b"9999999999", b"inf", b"-1", b"2.5"])
def test_a_band_that_is_none_does_not_keep_redis_busy(book: Book, band: bytes) -> None:
    job_id = book.fresh("queued")
    book.spoil(job_id, [("band", band)])
    assert book.client.get(job_id).queue_position is None
    read_by_everyone(book, job_id)
    worked_on_by_all(book, job_id)
    job_id = book.fresh("running")
    book.spoil(job_id, [("band", band)])
    book.ledger.claims.give_back_all("cpu0@here")
    assert book.client.get(job_id).state == "failed"


@pytest.mark.parametrize("state", ["queued", "running", "failed"])
def test_a_key_of_another_type_harms_its_own_job_alone(book: Book, state: str) -> None:
    job_id = book.fresh(state)
    book.redis.delete(f"{PREFIX}job:{job_id}")
    book.redis.set(f"{PREFIX}job:{job_id}", "foreign")
    with pytest.raises(JobUnreadable, match="damaged"):
        book.client.get(job_id)
    worked_on_by_all(book, job_id)
    with pytest.raises(JobNotFound):
        book.client.get(job_id)


def test_a_job_whose_request_is_damaged_fails_when_it_is_claimed(book: Book) -> None:
    job_id = book.fresh("queued")
    book.spoil(job_id, [("request", b'{"prompt": ')])
    assert book.ledger.claims.take("instant", "cpu0@here") is None
    assert book.redis.hget(f"{PREFIX}job:{job_id}", "state") == b"failed"
    assert not book.waiting()
    assert not book.redis.exists(f"{PREFIX}running")


def test_a_damaged_queued_job_fails_when_it_is_claimed_and_says_so(book: Book) -> None:
    job_id = book.fresh("queued")
    book.spoil(job_id, [("tag", None)])
    assert book.ledger.claims.take("instant", "cpu0@here") is None
    job = book.client.get(job_id)
    assert job.state == "failed"
    assert job.error is not None
    assert (job.error.code, "damaged" in job.error.message) == ("internal", True)


@pytest.mark.parametrize("field", ["band", "cost", "seq", "state"])
def test_a_damaged_job_for_later_stops_no_sweep(book: Book, field: str) -> None:
    book.redis.flushdb()
    later = REQUEST.model_copy(update={"not_before": datetime.now(UTC) + timedelta(days=1)})
    jobs = [book.ledger.jobs.submit(new_job_id(), later).id for _ in range(2)]
    book.spoil(jobs[0], [(field, None)])
    for job_id in jobs:
        book.redis.zadd(f"{PREFIX}later:{queue_name('instant')}", {job_id: 1})
    book.sweep_late()
    assert list(book.waiting()) == [jobs[1]]
    claim = book.ledger.claims.take("instant", "cpu0@here")
    assert claim
    assert claim.job_id == jobs[1]


def test_a_record_of_a_newer_contract_says_so(book: Book) -> None:
    job_id = book.fresh("queued")
    newer = CONTRACT + 1
    book.spoil(job_id, [("contract", b"%d" % newer), ("request", b'{"scene": "a fox"}')])
    with pytest.raises(JobUnreadable, match=f"version {newer}"):
        book.client.get(job_id)


def test_fields_nobody_knows_are_left_alone(book: Book) -> None:
    job_id = book.fresh("queued")
    book.spoil(job_id, [("from_the_future", b"\xff")])
    with contextlib.suppress(JobUnreadable):
        book.client.get(job_id)
    book.spoil(job_id, [("from_the_future", b"yes")])
    assert book.client.get(job_id).state == "queued"
