"""One attempt over a real ledger: the lease is kept, progress told, an end heard of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet import eventually
from ltxq.errors import TimedOut
from ltxq.job import VideoRequest, new_job_id
from ltxq.ledger import PREFIX, Claim, Ledger
from ltxq.settings import Settings
from ltxq_worker.process.attempt import Attempt, Cancelled, ClaimLost
from ltxq_worker.process.runner import Runner


@pytest.fixture
def ledger(redis_url: str) -> Iterator[Ledger]:
    made = Ledger(Settings(url=redis_url, lease=1))
    yield made
    made.close()


def claim(ledger: Ledger, **fields: object) -> Claim:
    request = VideoRequest.parse({"seed": 42, "prompt": "a fox", "model": "instant", **fields})
    ledger.jobs.submit(new_job_id(), request)
    claimed = ledger.claims.take("instant", "w")
    assert claimed is not None
    return claimed


def test_the_lease_is_kept_while_the_attempt_lasts(ledger: Ledger) -> None:
    claimed = claim(ledger)

    def lease_end() -> float:
        return ledger._script.redis.zscore(f"{PREFIX}running", claimed.job_id)

    first = lease_end()
    with Attempt(ledger, claimed, lease=1):
        eventually(lambda: lease_end() > first + 1000)  # ms: a whole lease
    eventually(lambda: ledger.sweeper.sweep(interval=0.5).lease_ended, within=10)


def test_progress_is_told_and_its_bar_never_goes_back(ledger: Ledger) -> None:
    claimed = claim(ledger)
    fractions = []
    with Attempt(ledger, claimed, lease=1) as attempt:
        for stage, steps in (("encode_text", 1), ("denoise", 8), ("decode", 5), ("upload", 4)):
            for step in range(steps + 1):
                attempt.report(stage, step, steps)  # type: ignore[arg-type]
                fractions.append(attempt._progress.fraction)
        eventually(lambda: (p := ledger.jobs.get(claimed.job_id).progress) and p.fraction == 1)
    assert fractions == sorted(fractions)
    assert set(attempt.end_timings()) == {
        "queued", "encode_text", "denoise", "decode", "upload", "total",
    }  # fmt: skip


def test_a_cancelled_attempt_stops_at_its_next_step(ledger: Ledger) -> None:
    claimed = claim(ledger)
    with Attempt(ledger, claimed, lease=30) as attempt:
        ledger.jobs.cancel(claimed.job_id)
        with pytest.raises(Cancelled):
            eventually(lambda: attempt.report("denoise", 1, 8))


def test_a_cancelling_is_heard_before_the_next_report(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltxq_worker.process.attempt.REPORT_SECONDS", 600.0)  # no report is sent
    nothing: Any = None
    runner = Runner(
        ledger=ledger, storage=nothing, pipeline=nothing, settings=Settings(),
        worker="w", spool=tmp_path,
    )  # fmt: skip
    ended = threading.Event()
    listener = threading.Thread(target=runner.listen, args=(ended,))
    listener.start()
    claimed = claim(ledger)
    with Attempt(ledger, claimed, lease=3000) as attempt:
        runner._attempts.add(attempt)
        with pytest.raises(Cancelled):
            eventually(lambda: ledger.jobs.cancel(claimed.job_id) and attempt.check(), within=20)
    ended.set()
    listener.join(20)
    assert not listener.is_alive()


def test_an_attempt_whose_claim_is_lost_stops_at_its_next_step(ledger: Ledger) -> None:
    claimed = claim(ledger)
    with Attempt(ledger, claimed, lease=30) as attempt:
        ledger.claims.give_back(claimed, charged=False)
        with pytest.raises(ClaimLost):
            eventually(lambda: attempt.report("denoise", 1, 8))


def test_the_timeout_ends_with_the_encoded_clip(ledger: Ledger) -> None:
    claimed = claim(ledger, timeout=1)
    with Attempt(ledger, claimed, lease=30) as attempt:
        attempt.report("denoise", 3, 8)
        with pytest.raises(TimedOut, match=r"timeout of 1 s \(in denoise, 3 of 8\)"):
            eventually(attempt.check)
        attempt.encoded({})
        attempt.report("upload", 1, 4)


def test_a_job_off_the_gpu_is_known_to_be(ledger: Ledger) -> None:
    claimed = claim(ledger)
    with Attempt(ledger, claimed, lease=30) as attempt:
        attempt.free_gpu()
        eventually(lambda: not ledger.claims.running_on("w")[0].on_gpu)
        attempt.free_gpu()
    assert attempt.timings["gpu"] > 0


def test_no_thread_outlives_the_attempt(ledger: Ledger) -> None:
    with Attempt(ledger, claim(ledger), lease=30):
        assert any(t.name.startswith("lease-") for t in threading.enumerate())
    assert not [t for t in threading.enumerate() if t.name.startswith(("lease-", "report-"))]
