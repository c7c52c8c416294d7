"""One thread drives the device: everything that a worker asks of its pipeline happens on it."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ltxq.job import Job, JobError, VideoRequest, VideoResult, new_job_id
from ltxq.ledger import CANCELLED, Claim
from ltxq.logs import about_job, set_up_logging
from ltxq.settings import Settings
from ltxq_worker.models.tiny.model import make_tiny
from ltxq_worker.models.weights import resident
from ltxq_worker.pipeline import DeviceBroken
from ltxq_worker.pipeline.decode import transfer as delivery
from ltxq_worker.pipeline.decode.frames import Decoding
from ltxq_worker.pipeline.ltx import LtxPipeline
from ltxq_worker.pipeline.thread import GpuThread
from ltxq_worker.process import main as app
from ltxq_worker.process.attempt import Attempt, Cancelled
from ltxq_worker.process.runner import Runner
from servers import S3

Seen = dict[str, set[str]]  # names of threads by what they did


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Which threads load, run any part of a network, take frames and close them."""
    seen: Seen = {}

    def note(what: str) -> None:
        seen.setdefault(what, set()).add(threading.current_thread().name)

    def noting(owner: Any, name: str) -> None:
        act = getattr(owner, name)

        def noted(*args: Any, **options: Any) -> Any:
            note(name)
            return act(*args, **options)

        monkeypatch.setattr(owner, name, noted)

    noting(resident, "load")
    noting(LtxPipeline, "warm_up")
    noting(LtxPipeline, "generate")
    noting(Decoding, "sound")
    noting(Attempt, "report")
    frames = Decoding.frames

    def decoded(*args: Any) -> Iterator[Any]:
        try:
            for chunk in frames(*args):
                note("frames")
                yield chunk
        finally:
            note("frames closed")

    monkeypatch.setattr(Decoding, "frames", decoded)
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: note("networks"))
    yield seen
    hook.remove()


@pytest.fixture
def runner(
    redis_url: str, s3: S3, tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Runner]:
    """A worker process's own, with the tiny model, but for Celery."""
    make_tiny(tmp_path / "models" / "tiny")
    settings: Settings = s3.settings(
        url=redis_url,
        default_model="tiny",
        model_dir=tmp_path / "models",
        optimize="hoist,decode,text",
        spool_jobs=2,
    )
    monkeypatch.setattr(app, "consume", lambda *_: None)
    options = Namespace(model="tiny", device="cpu", name="w", spool=tmp_path / "spool")
    supervisor = SimpleNamespace(send=lambda **_: None)
    runner, _ = app._prepare(options, settings, supervisor)  # type: ignore[arg-type]
    yield runner
    runner.ledger.close()


def submit(runner: Runner, prompt: str = "a fox") -> Job:
    request = VideoRequest.parse(
        {"seed": 42, "prompt": prompt, "model": "tiny", "width": 64, "height": 64, "num_frames": 9}
    )
    return runner.ledger.jobs.submit(new_job_id(), request)


def claim(runner: Runner) -> Claim:
    claimed = runner.claim()
    assert claimed
    return claimed


def test_whatever_thread_runs_a_job_one_thread_drives_the_device(
    runner: Runner, seen: Seen
) -> None:
    with ThreadPoolExecutor(3, thread_name_prefix="pool") as pool:
        for number in range(4):
            submit(runner, f"fox {number}")
        outcomes = list(pool.map(runner.run, [claim(runner) for _ in range(4)]))
    assert all(isinstance(outcome, VideoResult) for outcome in outcomes)
    assert seen.pop("report") >= {"gpu_0", "pool_0"}  # encoding and uploading are the pool's
    assert seen.keys() == {
        *("load", "warm_up", "generate", "networks", "sound", "frames", "frames closed")
    }
    assert set.union(*seen.values()) == {"gpu_0"}


def test_a_job_that_is_cancelled_in_a_step_ends_there_and_the_next_one_runs(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, steps = Attempt.report, []

    def cancel_in_the_third(self: Attempt, stage: Any, step: int, of: int) -> None:
        if self.claim.request.prompt == "stop" and stage == "denoise":
            steps.append(step)
            if step == 3:
                self.cancel()
        report(self, stage, step, of)

    monkeypatch.setattr(Attempt, "report", cancel_in_the_third)
    submit(runner, "stop")
    assert runner.run(claim(runner)) == CANCELLED
    assert steps == [0, 1, 2, 3]
    submit(runner)
    assert isinstance(runner.run(claim(runner)), VideoResult)


@pytest.mark.parametrize("where", ["generate", "frames"])
def test_a_broken_device_ends_the_process_while_the_job_still_has_the_gpu(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def break_it(*_: Any) -> Any:
        raise DeviceBroken("CUDA error: an illegal memory access was encountered")
        yield

    if where == "frames":
        monkeypatch.setattr(Decoding, "frames", break_it)
    else:
        monkeypatch.setattr(LtxPipeline, "generate", lambda *_: next(break_it()))
    happened: list[str] = []
    runner.end_process = lambda: happened.append("the end")
    submit(runner)
    outcome = runner.run(claim(runner), gpu_free=lambda: happened.append("GPU free"))
    assert happened == ["the end", "GPU free"]
    assert isinstance(outcome, JobError)  # had the process not ended


def test_what_fails_there_is_raised_here_and_its_tensors_are_let_go() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def step() -> None:
        large = torch.zeros(10)
        kept.append(weakref.ref(large))
        raise Cancelled("job")

    gc.disable()
    try:
        with pytest.raises(Cancelled, match="job") as raised:
            GpuThread().run(step)
        assert kept[0]() is None  # though the error is still in hand
        assert raised.traceback[-1].name == "step"
    finally:
        gc.enable()


def test_lines_that_are_logged_there_name_the_job(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        set_up_logging("human")
        with about_job("video_1"):
            GpuThread().run(lambda: logging.getLogger("ltxq.worker").warning("out of plans"))
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert "video_1: out of plans" in capfd.readouterr().err


def test_sound_is_waited_for_by_the_thread_that_looks_at_it() -> None:
    """On a GPU it is still being made when the encoder starts."""
    waited: list[str] = []

    def fetch() -> Any:
        waited.append(threading.current_thread().name)
        return torch.zeros(2, 8).numpy()

    made: Callable[[], delivery.PendingSound] = lambda: delivery.PendingSound(fetch, 24_000)  # noqa: E731
    sound = GpuThread().run(made)
    assert waited == []
    assert sound.samples.shape == (2, 8)
    assert waited == [threading.current_thread().name]
