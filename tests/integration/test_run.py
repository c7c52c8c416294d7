"""The runner in this process, over real Redis, storage and encoder: what must come before what."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fleet import eventually
from ltxq.errors import JobError, QueueUnavailable
from ltxq.job import Job, VideoRequest, VideoResult, new_job_id
from ltxq.ledger import Claim, Ledger
from ltxq.settings import Settings
from ltxq.storage import Storage
from ltxq_worker.pipeline.instant import InstantPipeline
from ltxq_worker.process.attempt import Attempt
from ltxq_worker.process.job_events import JobEvents
from ltxq_worker.process.runner import Runner
from servers import S3


@pytest.fixture
def runner(redis_url: str, s3: S3, tmp_path: Path) -> Iterator[Runner]:
    settings: Settings = s3.settings(url=redis_url)
    ledger = Ledger(settings)
    yield Runner(
        ledger=ledger,
        storage=Storage.from_settings(settings),
        pipeline=InstantPipeline(),
        settings=settings,
        worker="w",
        spool=tmp_path,
    )
    ledger.close()


def submit(runner: Runner, **fields: Any) -> Job:
    request = VideoRequest.parse(
        {"seed": 42, "prompt": "a fox", "model": "instant", "width": 256, "height": 256, **fields}
    )
    return runner.ledger.jobs.submit(new_job_id(), request)


def run_first(runner: Runner) -> VideoResult | JobError | None:
    claim = runner.claim()
    assert claim
    return runner.run(claim)


def test_the_gpu_is_free_before_the_clip_is_encoded_and_uploaded(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    report, free_gpu = Attempt.report, Attempt.free_gpu

    def reported(self: Attempt, stage: Any, step: int, steps: int) -> None:
        events.append(f"{stage} {step}/{steps}")
        report(self, stage, step, steps)

    def freed(self: Attempt) -> None:
        events.append("gpu free")
        free_gpu(self)

    monkeypatch.setattr(Attempt, "report", reported)
    monkeypatch.setattr(Attempt, "free_gpu", freed)
    submit(runner)
    assert isinstance(run_first(runner), VideoResult)
    decoded = max(i for i, event in enumerate(events) if event.startswith("decode"))
    assert decoded < events.index("gpu free")
    assert events.index("gpu free") < events.index("encode 33/33") < events.index("upload 4/4")


def test_celery_is_told_once_the_ledger_knows(runner: Runner) -> None:
    told: list[tuple[str, str]] = []

    class Events(JobEvents):
        def finished(self, claim: Claim) -> None:
            told.append((claim.job_id, runner.ledger.jobs.get(claim.job_id).state))

    runner.events = Events()
    good, late = submit(runner), submit(runner)
    run_first(runner)
    runner.ledger.jobs.cancel(late.id)
    assert runner.claim() is None  # the client that cancelled it stored the result
    assert told == [(good.id, "succeeded")]


def test_a_message_that_cannot_be_claimed_is_left_to_the_sweep(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    job, ledger = submit(runner), runner.ledger
    runner.ledger = Ledger(Settings(url="redis://127.0.0.1:1/0"))
    assert runner.claim() is None
    assert "No job is claimed" in caplog.text
    runner.ledger.close()
    runner.ledger = ledger
    assert ledger.jobs.get(job.id).state == "queued"


def lose_spool(runner: Runner) -> None:
    """What a process does after it has given its jobs back, moments before it ends."""
    shutil.rmtree(runner.spool)


def test_a_worker_that_gave_its_jobs_back_claims_and_fails_no_more(runner: Runner) -> None:
    in_flight, waiting = submit(runner), submit(runner)
    claim = runner.claim()  # its thread has not begun
    assert claim
    runner.give_back()
    lose_spool(runner)
    assert runner.run(claim) is None
    assert runner.take_turn() is None
    for job in (in_flight, waiting):
        assert runner.ledger.jobs.get(job.id).state == "queued"


def test_a_job_that_could_not_be_given_back_does_not_fail_for_its_lost_folder(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(runner)

    def end_during(*_: Any) -> Any:
        with monkeypatch.context() as away:
            away.setattr(runner.ledger.claims, "give_back", unavailable)
            with pytest.raises(QueueUnavailable):
                runner.give_back()
        lose_spool(runner)
        raise FileNotFoundError

    def unavailable(*_: Any, **__: Any) -> Any:
        raise QueueUnavailable("Redis is away.")

    monkeypatch.setattr(InstantPipeline, "generate", end_during)
    assert run_first(runner) is None
    assert runner.ledger.jobs.get(job.id).state == "running"  # until its lease ends


def test_what_a_lost_claim_uploaded_is_removed(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(runner)
    put = Storage.put

    def lose_the_claim_at_the_last(
        self: Storage, key: str, path: Path, kind: str, **more: str
    ) -> None:
        put(self, key, path, kind, **more)
        if key.endswith("clip.mp4"):
            runner.ledger.claims.give_back_all("w")

    monkeypatch.setattr(Storage, "put", lose_the_claim_at_the_last)
    assert run_first(runner) is None
    assert list(runner.storage.list(f"{job.id}/")) == []
    assert runner.ledger.jobs.get(job.id).state == "queued"


def test_an_uploaded_clip_waits_until_redis_answers_with_the_secret_of_links(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret, asked = runner.ledger.link_secret, []

    def away_at_first() -> str:
        asked.append(1)
        if len(asked) < 3:
            raise QueueUnavailable("Redis is away.")
        return secret()

    monkeypatch.setattr(runner.ledger, "link_secret", away_at_first)
    own = {"content": "proxy", "public_url": "https://clips.example"}
    linking = dataclasses.replace(runner, settings=runner.settings.model_copy(update=own))
    job = submit(runner)
    made = run_first(linking)
    assert isinstance(made, VideoResult)
    assert made.url.startswith(f"https://clips.example/v1/videos/{job.id}/content?")
    assert caplog.text.count(f"{job.id} waits for the queue: Redis is away.") == 2


def test_a_job_that_breaks_the_pipeline_fails_without_its_secrets(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("password=s3cret")

    monkeypatch.setattr(InstantPipeline, "generate", broken)
    job = submit(runner)
    run_first(runner)
    error = runner.ledger.jobs.get(job.id).error
    assert error is not None
    assert (error.code, error.retryable) == ("internal", True)
    assert "RuntimeError" in error.message
    assert "s3cret" not in error.model_dump_json()
    assert list(runner.spool.iterdir()) == []


class Turns:
    """Takes turns as Celery does, in a thread: one after the other."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.upload = threading.Event()
        self.pool = ThreadPoolExecutor(1)

    def take(self) -> Future[None]:
        return self.pool.submit(self.runner.take_turn)

    def states(self) -> list[str]:
        """Of all jobs, the first one first."""
        return [job.state for job in self.runner.ledger.jobs.list(order="asc").jobs]


@pytest.fixture
def turns(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Turns]:
    """A runner of two places in the spool, whose uploads wait."""
    settings = runner.settings.model_copy(update={"spool_jobs": 2})
    made = Turns(dataclasses.replace(runner, settings=settings))
    put = Storage.put

    def wait_and_put(self: Storage, key: str, path: Path, kind: str, **more: str) -> None:
        assert made.upload.wait(60)
        put(self, key, path, kind, **more)

    monkeypatch.setattr(Storage, "put", wait_and_put)
    yield made
    made.upload.set()
    made.runner.join()


def test_a_turn_ends_when_the_gpu_is_free_while_the_spool_has_a_place(turns: Turns) -> None:
    for _ in range(4):
        submit(turns.runner)
    turns.take().result(60)
    turns.take().result(60)
    assert turns.states() == ["running", "running", "queued", "queued"]
    third = turns.take()
    eventually(turns.runner._spool_is_full, within=60)
    assert not third.done()
    assert turns.states() == ["running", "running", "running", "queued"]
    turns.upload.set()
    third.result(60)
    turns.runner.join()
    assert turns.states() == ["succeeded", "succeeded", "succeeded", "queued"]


def test_a_turn_without_a_job_ends_at_once(turns: Turns) -> None:
    for _ in range(5):  # more than there are places
        turns.take().result(60)


def test_a_turn_ends_whatever_happens_to_its_job(
    turns: Turns, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_it(*_: Any) -> Any:
        raise RuntimeError("a mistake in ltxq")

    monkeypatch.setattr(Runner, "_finish", break_it)
    for _ in range(5):
        submit(turns.runner)
        turns.take().result(60)
        turns.upload.set()
    turns.runner.join()
    assert "a mistake in ltxq" in caplog.text


def test_no_job_is_claimed_once_it_is_closed_though_a_message_was_taken(turns: Turns) -> None:
    submit(turns.runner)
    turns.runner.close()
    turns.take().result(60)
    assert turns.states() == ["queued"]
