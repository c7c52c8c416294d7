"""Flower is told if it can be: nothing that keeps it from being told is a job's business."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from ltxq.celery import make_app
from ltxq.celery.flower import TaskEvents, show_outcome
from ltxq.errors import JobError
from ltxq.job import Job, Progress, VideoRequest
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import free_port

MOST_SECONDS = 30.0  # of two events; each gives up after about six


@pytest.mark.parametrize("events", [True, False])
def test_a_redis_that_is_away_breaks_and_blocks_nothing(events: bool) -> None:
    app = make_app(Settings(url=f"redis://127.0.0.1:{free_port()}", events=events))
    failed = Job(
        id="video_1",
        state="failed",
        request=VideoRequest(seed=42, prompt="a fox"),
        error=JobError(code="internal", message="it broke"),
        submitted_at=datetime.now(UTC),
    )
    began = time.monotonic()
    show_outcome(app, failed, "w")
    task_events = TaskEvents(app, "w")
    task_events.begins(failed.id)
    task_events.progress(failed.id, Progress(stage="denoise", step=1, steps=8, fraction=0.1))
    assert time.monotonic() - began < MOST_SECONDS
    app.close()
