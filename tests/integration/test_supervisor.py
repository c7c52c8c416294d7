"""The supervisor's loop and threads at moments that no whole fleet could be made to meet."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet import PATIENCE, eventually
from ltxq.ledger import RunningJob, Swept
from ltxq.limits import ModelLimits
from ltxq_worker.supervisor.child import WorkerProcess, WorkerSlot, lock_slot
from ltxq_worker.supervisor.supervisor import SupervisedSlot, Supervisor
from servers import S3

LIMITS = ModelLimits(stages=(1,), num_inference_steps=8)
SLOT = WorkerSlot(name="cpu0@here", device="cpu", gpu=None)


@pytest.fixture
def supervisor(
    redis_url: str, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Supervisor]:
    """One with one slot; its worker finds the same servers."""
    for name, value in {**s3.worker_environment, "LTXQ_URL": redis_url}.items():
        monkeypatch.setenv(name, value)
    with lock_slot(SLOT, tmp_path) as lock:
        slot = SupervisedSlot(identity=SLOT, lock=lock, spool=tmp_path / SLOT.file_name)
        made = Supervisor(s3.settings(url=redis_url), "instant", LIMITS, "here", [slot])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        yield made
        for number, handler in handlers.items():
            signal.signal(number, handler)
        made._ledger.close()
        made._app.close()


def test_a_sigterm_while_a_process_starts_ends_that_process_too(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = WorkerProcess.start
    started = []

    def interrupted(*args: Any) -> WorkerProcess:
        os.kill(os.getpid(), signal.SIGTERM)
        started.append(start(*args))
        return started[0]

    monkeypatch.setattr(WorkerProcess, "start", interrupted)
    assert supervisor.run() == 0
    assert [worker.process.poll() is None for worker in started] == [False]


@pytest.fixture
def sweeping(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """Its sweeps alone, quickly after each other, with a worker that is ready."""
    monkeypatch.setattr("ltxq_worker.supervisor.supervisor.SWEEP_SECONDS", 0.01)
    yield supervisor
    supervisor._ended.set()


def keep_sweeping(supervisor: Supervisor) -> threading.Thread:
    thread = threading.Thread(target=supervisor._keep_sweeping)
    thread.start()
    return thread


def test_a_sweep_that_meets_an_unknown_error_is_not_the_last(
    sweeping: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([ValueError("spoilt"), Swept(), Swept()])
    asked = []

    def sweep(**_: Any) -> Swept:
        asked.append(answer := next(answers, Swept()))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(sweeping._ledger.sweeper, "sweep", sweep)
    thread = keep_sweeping(sweeping)
    eventually(lambda: len(asked) >= 3)
    sweeping._ended.set()
    thread.join(PATIENCE)
    assert "an unexpected error" in caplog.text


def test_a_hung_worker_that_ends_by_itself_just_then_is_no_error(
    sweeping: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (slot,) = sweeping._slots
    worker = slot.worker = WorkerProcess.start(
        SLOT, "instant", slot.spool, slot.lock, lambda *_: None
    )

    def running_on(_name: str) -> tuple[RunningJob, ...]:
        slot.worker = None  # as the loop does once the process has ended
        return (RunningJob(job_id="video_1", attempt=1, on_gpu=True, running=10_000, timeout=1),)

    monkeypatch.setattr(sweeping._ledger.claims, "running_on", running_on)
    thread = keep_sweeping(sweeping)
    eventually(lambda: slot.worker is None)
    assert worker.process.wait(PATIENCE) == -signal.SIGKILL
    sweeping._ended.set()
    thread.join(PATIENCE)
    assert "Traceback" not in caplog.text


def test_a_models_limits_are_told_with_its_workers(supervisor: Supervisor) -> None:
    supervisor._send_heartbeat()
    fleet, own = supervisor._ledger.fleet, supervisor._instance
    fleet.heartbeat("instant", "here", {SLOT.name: "ready"}, instance=own)
    assert fleet.served()["instant"].limits == LIMITS
