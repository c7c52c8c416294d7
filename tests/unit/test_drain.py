"""SIGTERM: a worker process drains, and at a second SIGTERM gives its jobs back."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
from celery.worker import state

from ltxq_worker.process import main as app


def test_a_second_signal_in_the_midst_of_the_first_gives_the_jobs_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given_back, closed = threading.Event(), []

    class Runner:
        def close(self) -> None:
            assert not closed, "the first signal's work has begun again"
            closed.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    runner: Any = Runner()
    monkeypatch.setattr(state, "should_stop", None)
    monkeypatch.setattr(app, "_give_back_and_exit", lambda *_: given_back.set())
    before = signal.signal(signal.SIGTERM, lambda *_: app._drain(runner))
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert given_back.wait(30)
        assert state.should_stop == 0
    finally:
        signal.signal(signal.SIGTERM, before)
