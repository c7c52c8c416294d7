"""`Client` over the queue in memory, a real Redis, and a real gateway: the same behaviour."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis
from test_ledger import result

from gateways import Gateway
from ltxq import AsyncClient, Client, VideoRequest
from ltxq.errors import (
    ConfigurationError,
    IdempotencyConflict,
    InvalidRequest,
    JobError,
    JobFailed,
    JobNotFound,
    QueueFull,
    QueueUnavailable,
    WaitTimeout,
)
from ltxq.gateway.access.keys import new_key
from ltxq.job import Progress, Stage
from ltxq.ledger import Claim, Ledger
from ltxq.limits import ServedModel
from ltxq.settings import Settings
from ltxq.testing import MemoryTransport
from ltxq_worker.embedded.servers import RedisServer
from servers import start_or_skip

LIMITS = {"max_queued": 3, "max_queued_per_key": 2}
FAILED = JobError(code="out_of_memory", message="too large", hint="make it smaller")


class Worker(Protocol):
    """The worker's part, played by the tests."""

    def start(self, job_id: str) -> object: ...
    def report(self, job_id: str, stage: Stage, step: int, steps: int, fraction: float) -> Any: ...
    def succeed(self, job_id: str) -> object: ...
    def fail(self, job_id: str, error: JobError) -> object: ...


class LedgerWorker:
    """Writes to the ledger as a worker does."""

    def __init__(self, settings: Settings) -> None:
        self.ledger = Ledger(settings)
        self.claims: dict[str, Claim] = {}

    def start(self, job_id: str) -> None:
        before = []
        while (claim := self.ledger.claims.take("instant", "w")) and claim.job_id != job_id:
            before.append(claim)
        assert claim is not None
        for other in before:
            self.ledger.claims.give_back(other, charged=False)
        self.claims[job_id] = claim

    def report(self, job_id: str, stage: Stage, step: int, steps: int, fraction: float) -> None:
        progress = Progress(stage=stage, step=step, steps=steps, fraction=fraction)
        self.ledger.claims.report(self.claims[job_id], progress, on_gpu=True)

    def succeed(self, job_id: str) -> None:
        if job_id not in self.claims:
            self.start(job_id)
        assert self.ledger.claims.finish(self.claims[job_id], result(self.claims[job_id]))

    def fail(self, job_id: str, error: JobError) -> None:
        if job_id not in self.claims:
            self.start(job_id)
        assert self.ledger.claims.finish(self.claims[job_id], error)


class Owned(Protocol):
    """Makes a client of the queue for one owner."""

    def __call__(self, owner: str) -> Client: ...


class Doors:
    """Two gateways to one Redis: `open` without keys, `locked` with keys for alice and bob."""

    def __init__(self, folder: Path) -> None:
        self.keys = {name: new_key(name) for name in ("alice", "bob")}
        entries = ",".join(key.entry for key in self.keys.values())
        with ExitStack() as parts:
            self.redis = parts.enter_context(start_or_skip(lambda: RedisServer.start(folder)))
            self.settings = Settings(url=self.redis.url, default_model="instant", **LIMITS)
            limits = {f"LTXQ_{name.upper()}": str(most) for name, most in LIMITS.items()}
            environment = {"LTXQ_URL": self.redis.url, "LTXQ_DEFAULT_MODEL": "instant", **limits}
            self.open = parts.enter_context(Gateway(environment))
            self.locked = parts.enter_context(Gateway({**environment, "LTXQ_API_KEYS": entries}))
            self._parts = parts.pop_all()

    def empty(self) -> None:
        """Forget all jobs."""
        with redis.Redis.from_url(self.redis.url, socket_timeout=5) as connection:
            connection.flushdb()

    def close(self) -> None:
        self._parts.close()


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    made = Doors(tmp_path_factory.mktemp("doors"))
    yield made
    made.close()


@dataclass
class Queue:
    """An empty queue for at most 3 jobs, 2 per owner; a client, a worker, clients of owners."""

    client: Client
    worker: Worker
    owned: Owned


@pytest.fixture(params=["memory", "redis", "http"])
def queue(request: pytest.FixtureRequest) -> Iterator[Queue]:
    if request.param == "memory":
        memory = MemoryTransport(default_model="instant", **LIMITS)
        yield Queue(Client(transport=memory), memory, partial(_sharing, memory))
        return
    with ExitStack() as parts:
        if request.param == "redis":
            url = request.getfixturevalue("redis_url")
            settings = Settings(url=url, default_model="instant", **LIMITS)
            client = parts.enter_context(Client(settings=settings))
            owned: Owned = partial(_sharing, client._transport)
        else:
            doors = request.getfixturevalue("doors")
            doors.empty()
            settings = doors.settings
            client = parts.enter_context(Client(doors.open.url))

            def owned(owner: str) -> Client:
                key = doors.keys[owner].key
                return parts.enter_context(Client(doors.locked.url, api_key=key))

        worker = LedgerWorker(settings)
        parts.callback(worker.ledger.close)
        yield Queue(client, worker, owned)


def _sharing(transport: Any, owner: str) -> Client:
    return Client(transport=transport, owner=owner)


@pytest.fixture
def owned(queue: Queue) -> Owned:
    return queue.owned


@pytest.fixture
def client(queue: Queue) -> Client:
    return queue.client


@pytest.fixture
def worker(queue: Queue) -> Worker:
    return queue.worker


def test_a_submitted_job_is_queued_with_its_model_and_seed_settled(client: Client) -> None:
    job = client.submit("a fox", seed=None, metadata={"order": "7"})
    assert job.state == "queued"
    assert job.request.model == "instant"
    assert job.request.seed is not None
    assert job.request.metadata == {"order": "7"}
    assert client.get(job.id) == job


@pytest.mark.parametrize("seed", [{}, {"seed": None}])
def test_each_submission_gets_a_new_random_seed(client: Client, seed: dict[str, None]) -> None:
    seeds = {client.submit("a fox", **seed).request.seed for _ in range(3)}
    assert len(seeds) == 3
    assert None not in seeds


def test_an_invalid_request_is_not_queued(client: Client) -> None:
    with pytest.raises(InvalidRequest, match=r"height: .*nearest: 480 or 512"):
        client.submit("a fox", height=500)
    assert client.list().jobs == ()


def test_a_prompt_may_be_given_by_its_name_and_once(client: Client) -> None:
    assert client.submit(prompt="a fox", num_frames=9).request.prompt == "a fox"
    with pytest.raises(TypeError, match="once"):
        client.submit("a fox", prompt="a hare")
    for wrong in (5, {"prompt": "a fox"}):
        with pytest.raises(InvalidRequest, match="prompt: must be text"):
            client.submit(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="prompt: is required"):
        client.submit()


def test_a_job_in_place_of_its_id_is_told(client: Client) -> None:
    job: Any = client.submit("a fox")
    for call in (client.get, client.cancel, client.delete, client.retry, client.wait):
        for wrong in (job, None, 7, b"x"):
            with pytest.raises(TypeError, match=r"a job's id is text, as job\.id, not "):
                call(wrong)
    assert client.get(job.id).state == "queued"


def test_an_unknown_id_is_an_error_not_a_pending_job(client: Client) -> None:
    for ask in (client.get, client.wait, client.cancel, client.retry, client.delete):
        with pytest.raises(JobNotFound, match="no job video_unknown"):
            ask("video_unknown")


def test_a_job_is_watched_from_queued_to_its_end(client: Client, worker: Worker) -> None:
    job = client.submit("a fox")
    seen = []
    for now in client.watch(job.id, timeout=30):
        seen.append(now.progress.step if now.progress else now.state)
        if now.state == "queued":
            worker.start(job.id)
        elif now.progress is None and now.state == "running":
            worker.report(job.id, "denoise", 1, 8, 0.1)
        elif now.progress and now.progress.step < 3:
            worker.report(job.id, "denoise", now.progress.step + 1, 8, 0.2)
        elif now.state == "running":
            worker.succeed(job.id)
    assert seen == ["queued", "running", 1, 2, 3, "succeeded"]


def test_a_change_is_reported_at_once(client: Client, worker: Worker) -> None:
    job = client.submit("a fox")
    watching = threading.Event()

    def watch() -> float:
        for now in client.watch(job.id, timeout=30):
            watching.set()
            if now.finished:
                return time.monotonic()
        raise AssertionError

    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(watch)
        assert watching.wait(30)
        worker.start(job.id)
        worker.succeed(job.id)
        done = time.monotonic()
        assert heard.result(30) - done < 1  # without the message, the next reading is after 2 s


def test_a_wait_ends_with_any_final_state(client: Client, worker: Worker) -> None:
    good, bad, cancelled = (client.submit("a fox") for _ in range(3))
    worker.succeed(good.id)
    worker.fail(bad.id, FAILED)
    client.cancel(cancelled.id)
    assert client.wait(good.id).result_or_raise().num_frames == 33
    with pytest.raises(JobFailed, match="out_of_memory: too large make it smaller"):
        client.wait(bad.id).result_or_raise()
    assert client.wait(cancelled.id).state == "cancelled"


def test_a_wait_that_times_out_says_that_the_job_continues(client: Client) -> None:
    job = client.submit("a fox")
    with pytest.raises(WaitTimeout, match=r"still queued after 0\.1 s"):
        client.wait(job.id, timeout=0.1)


def test_a_queued_job_is_cancelled_and_a_running_one_asked(client: Client, worker: Worker) -> None:
    queued, running = client.submit("a fox"), client.submit("a fox")
    worker.start(running.id)
    assert client.cancel(queued.id).state == "cancelled"
    asked = client.cancel(running.id)
    assert (asked.state, asked.cancel_requested) == ("running", True)


def test_cancelling_a_final_job_changes_nothing(client: Client, worker: Worker) -> None:
    job = client.submit("a fox")
    worker.succeed(job.id)
    assert client.cancel(job.id).state == "succeeded"


def test_a_retry_is_a_new_job_for_the_same_clip(client: Client, worker: Worker) -> None:
    job = client.submit("a fox", num_frames=17)
    worker.fail(job.id, FAILED)
    again = client.retry(job.id)
    assert again.id != job.id
    assert (again.state, again.retry_of, again.request) == ("queued", job.id, job.request)
    assert client.get(job.id).state == "failed"


def test_a_list_is_newest_first_by_state_and_paged(client: Client, worker: Worker) -> None:
    jobs = [client.submit(f"fox {i}") for i in range(3)]
    worker.succeed(jobs[1].id)
    newest = [job.id for job in reversed(jobs)]
    assert [job.id for job in client.list().jobs] == newest
    assert [job.id for job in client.list(state="succeeded").jobs] == [jobs[1].id]
    first = client.list(limit=2)
    assert first.after is not None
    rest = client.list(limit=2, after=first.after)
    assert [job.id for job in first.jobs + rest.jobs] == newest
    assert rest.after is None
    wrong: dict[str, Any]
    for wrong in ({"limit": 0}, {"limit": "7"}, {"state": "lost"}, {"order": "up"}):
        with pytest.raises(InvalidRequest, match=f"{next(iter(wrong))}: must be"):
            client.list(**wrong)


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_a_deleted_job_is_gone(client: Client, worker: Worker, state: str) -> None:
    job = client.submit("a fox", idempotency_key="order-7")
    if state == "running":
        worker.start(job.id)
    elif state == "succeeded":
        worker.succeed(job.id)
    client.delete(job.id)
    for ask in (client.get, client.cancel, client.delete, client.retry, client.wait):
        with pytest.raises(JobNotFound):
            ask(job.id)
    assert not client.list().jobs
    assert not client.get_many([job.id])
    assert client.submit("a fox", idempotency_key="order-7").id != job.id


def test_who_watches_a_job_learns_that_it_was_deleted(client: Client, worker: Worker) -> None:
    job = client.submit("a fox")
    worker.start(job.id)
    watch = client.watch(job.id)
    assert next(iter(watch)).state == "running"
    client.delete(job.id)
    with pytest.raises(JobNotFound):
        list(watch)


def test_an_idempotency_key_submits_once(client: Client) -> None:
    first = client.submit("a fox", idempotency_key="order-7")
    assert client.submit("a fox", seed=None, idempotency_key="order-7") == first
    with pytest.raises(IdempotencyConflict):
        client.submit("a bear", idempotency_key="order-7")
    with pytest.raises(InvalidRequest):
        client.submit("a fox", idempotency_key="")


def test_a_full_queue_refuses(client: Client) -> None:
    for _ in range(3):
        client.submit("a fox")
    with pytest.raises(QueueFull):
        client.submit("a fox")
    assert len(client.list().jobs) == 3


def test_an_owner_sees_and_changes_only_their_own_jobs(owned: Owned) -> None:
    alice, bob = owned("alice"), owned("bob")
    job, other = alice.submit("a fox"), bob.submit("a bear")
    assert (job.owner, other.owner) == ("alice", "bob")
    for ask in (bob.get, bob.wait, bob.cancel, bob.retry, bob.delete):
        with pytest.raises(JobNotFound, match=f"no job {job.id}"):
            ask(job.id)
    with pytest.raises(JobNotFound):
        bob.list(after=job.id)
    assert [found.id for found in bob.list().jobs] == [other.id]
    assert bob.get_many([job.id, other.id]) == {other.id: other}
    assert alice.get(job.id).state == "queued"


def test_idempotency_keys_and_resent_submissions_are_per_owner(owned: Owned) -> None:
    alice, bob = owned("alice"), owned("bob")
    first = alice.submit("a fox", idempotency_key="order-7", resent=False)
    assert bob.submit("a fox", idempotency_key="order-7").id != first.id
    assert bob.submit("a fox", resent=True).id != first.id


def test_one_owner_cannot_fill_the_queue(owned: Owned) -> None:
    alice, bob = owned("alice"), owned("bob")
    first, _ = alice.submit("a fox"), alice.submit("a fox")
    with pytest.raises(QueueFull, match="API key"):
        alice.submit("a fox")
    bob.submit("a fox")
    alice.cancel(first.id)
    alice.submit("a fox")


def test_a_submission_sent_again_is_the_same_job(client: Client) -> None:
    first = client.submit("a fox", seed=None, resent=False)
    assert client.submit("a fox", seed=None, resent=True).id == first.id
    second = client.submit("a fox", seed=None, resent=False)
    assert second.id != first.id  # another click
    assert client.submit("a fox", seed=None, resent=True).id == second.id
    client.cancel(second.id)
    client.delete(second.id)
    assert client.submit("a fox", seed=None, resent=True).id not in (first.id, second.id)


def test_a_queued_job_has_its_queue_position(client: Client, worker: Worker) -> None:
    first, second = client.submit("a fox"), client.submit("a fox")
    urgent = client.submit("a fox", priority="high")
    assert [job.queue_position for job in (first, second, urgent)] == [0, 1, 0]
    places = client.get_many([first.id, second.id, urgent.id, "video_unknown"])
    assert [job.queue_position for job in places.values()] == [1, 2, 0]
    assert [job.queue_position for job in client.list().jobs] == [0, 2, 1]
    worker.start(first.id)
    assert client.get(first.id).queue_position is None
    assert client.get(second.id).queue_position == 1


def test_a_list_can_start_with_the_oldest(client: Client) -> None:
    jobs = [client.submit(f"fox {i}").id for i in range(3)]
    page = client.list(order="asc", limit=2)
    assert [job.id for job in page.jobs] == jobs[:2]
    page = client.list(order="asc", limit=2, after=page.after)
    assert [job.id for job in page.jobs] == jobs[2:]
    assert page.after is None


def test_the_served_models_are_listed(client: Client) -> None:
    assert client.models() == {"instant": ServedModel(ready_workers=0)}


def test_the_async_client_is_the_same_without_blocking(client: Client, worker: Worker) -> None:
    async def use() -> None:
        async with AsyncClient(transport=client._transport) as queue:
            job = await queue.submit(VideoRequest(prompt="a fox"))
            with pytest.raises(WaitTimeout):
                await queue.wait(job.id, timeout=0.05)
            waiting = asyncio.create_task(queue.wait(job.id, timeout=30))
            await asyncio.to_thread(worker.succeed, job.id)
            assert (await waiting).state == "succeeded"
            states = [now.state async for now in queue.watch(job.id)]
            assert states == ["succeeded"]
            again = await queue.retry(job.id)
            assert (await queue.cancel(again.id)).state == "cancelled"
            assert len((await queue.list()).jobs) == 2
            await queue.delete(job.id)
            with pytest.raises(JobNotFound):
                await queue.get(job.id)

    asyncio.run(use())


def test_an_async_wait_can_be_cancelled(client: Client) -> None:
    async def use() -> None:
        queue = AsyncClient(transport=client._transport)
        job = await queue.submit("a fox")
        waiting = asyncio.create_task(queue.wait(job.id))
        await asyncio.sleep(0.1)  # it waits in its thread by now, or will: both must end well
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(use())


def test_a_wait_survives_a_restart_of_redis(tmp_path: Path) -> None:
    first = RedisServer.start(tmp_path)
    settings = Settings(url=first.url, default_model="instant")
    worker = LedgerWorker(settings)
    with Client(settings=settings) as client, ThreadPoolExecutor(1) as pool:
        job = client.submit("a fox")
        watching = threading.Event()

        def watch() -> str:
            for now in client.watch(job.id, timeout=60):
                watching.set()
                last = now.state
            return last

        waited = pool.submit(watch)
        assert watching.wait(30)
        first.stop()
        with RedisServer.start(tmp_path, port=first.port):
            worker.succeed(job.id)
            assert waited.result(30) == "succeeded"
    worker.ledger.close()


def test_redis_down_is_a_clear_error_within_5_seconds(tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path)
    with Client(server.url) as client:
        client.submit("a fox")
        server.stop()
        began = time.monotonic()
        with pytest.raises(QueueUnavailable, match="Is it running, and is LTXQ_URL right"):
            client.submit("a bear")
        assert time.monotonic() - began < 5
        with RedisServer.start(tmp_path, port=server.port):
            assert [job.request.prompt for job in client.list().jobs] == ["a fox"]


def test_a_url_of_another_scheme_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigurationError, match="must start with redis://") as caught:
        Client("postgres://user:s3cret@db/0")
    assert "s3cret" not in str(caught.value)
