"""The runner in this process, over real Redis, storage and encoder: what must come before what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ltxq.job import Job, VideoRequest, VideoResult, new_job_id
from ltxq.ledger import Ledger
from ltxq.settings import Settings
from ltxq.storage import Storage
from ltxq_worker.attempt import Attempt
from ltxq_worker.gate import Gate
from ltxq_worker.pipeline.instant import InstantPipeline
from ltxq_worker.run import Runner
from servers import S3


@pytest.fixture
def runner(redis_url: str, s3: S3, tmp_path: Path) -> Iterator[Runner]:
    settings: Settings = s3.settings(url=redis_url)
    ledger = Ledger.from_settings(settings)
    yield Runner(
        ledger=ledger,
        storage=Storage.from_settings(settings),
        pipeline=InstantPipeline(),
        gate=Gate(threads=2),
        settings=settings,
        worker="w",
        spool=tmp_path,
        report_outcome=lambda job_id: None,
    )
    ledger.close()


def submit(runner: Runner, **fields: Any) -> Job:
    request = VideoRequest.parse(
        {"prompt": "a fox", "model": "instant", "width": 256, "height": 256, **fields}
    )
    return runner.ledger.submit(new_job_id(), request)


def test_the_gpu_is_free_before_the_clip_is_encoded_and_uploaded(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    report, release_gpu = Attempt.report, Gate.release_gpu

    def reported(self: Attempt, stage: Any, step: int, steps: int) -> None:
        events.append(f"{stage} {step}/{steps}")
        report(self, stage, step, steps)

    def released(self: Gate, delivery: str) -> None:
        events.append("gpu free")
        release_gpu(self, delivery)

    monkeypatch.setattr(Attempt, "report", reported)
    monkeypatch.setattr(Gate, "release_gpu", released)
    submit(runner)
    assert isinstance(runner.run("delivery"), VideoResult)
    decoded = max(i for i, event in enumerate(events) if event.startswith("decode"))
    assert decoded < events.index("gpu free")
    assert events.index("gpu free") < events.index("encode 33/33") < events.index("upload 4/4")


def test_celery_is_told_once_the_ledger_knows(runner: Runner) -> None:
    told: list[tuple[str, str]] = []
    runner.report_outcome = lambda job_id: told.append((job_id, runner.ledger.get(job_id).state))
    good, late = submit(runner), submit(runner)
    runner.run("first")
    runner.ledger.cancel(late.id)
    runner.run("second")  # is not to be had: whoever cancelled it has told
    assert told == [(good.id, "succeeded")]


def test_a_message_that_cannot_be_claimed_is_left_to_the_sweep(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    job, ledger = submit(runner), runner.ledger
    runner.ledger = Ledger.from_settings(Settings(url="redis://127.0.0.1:1/0"))
    assert runner.run("delivery") is None
    assert "No job is claimed" in caplog.text
    runner.ledger.close()
    runner.ledger = ledger
    assert ledger.get(job.id).state == "queued"


def test_what_a_lost_claim_uploaded_is_removed(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(runner)
    put = Storage.put

    def lose_the_claim_at_the_last(self: Storage, key: str, path: Path, kind: str) -> None:
        put(self, key, path, kind)
        if key.endswith("clip.mp4"):
            runner.ledger.give_back_all("w")

    monkeypatch.setattr(Storage, "put", lose_the_claim_at_the_last)
    assert runner.run("delivery") is None
    assert list(runner.storage.list(f"{job.id}/")) == []
    assert runner.ledger.get(job.id).state == "queued"


def test_a_job_that_breaks_the_pipeline_fails_without_its_secrets(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("password=s3cret")

    monkeypatch.setattr(InstantPipeline, "generate", broken)
    job = submit(runner)
    runner.run("delivery")
    error = runner.ledger.get(job.id).error
    assert error is not None
    assert (error.code, error.retryable) == ("internal", True)
    assert "RuntimeError" in error.message
    assert "s3cret" not in error.model_dump_json()
    assert list(runner.spool.iterdir()) == []
