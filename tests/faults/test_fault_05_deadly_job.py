"""A job that kills every worker that takes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleet import PATIENCE, SMALL, Fleet, eventually
from ltxq import Client


def test_it_fails_after_3_lost_workers_and_is_charged_alone(
    misbehaving: dict[str, str], client: Client
) -> None:
    with Fleet(misbehaving) as fleet:
        fleet.wait_until_ready()
        beside = client.submit("wait upload", **SMALL)
        eventually(lambda: getattr(client.get(beside.id).progress, "stage", None) == "upload")
        deadly = client.submit("die", **SMALL)
        other = client.submit("a fox", **SMALL)
        failed = client.wait(deadly.id, PATIENCE)
        assert failed.error is not None
        assert (failed.error.code, failed.attempts) == ("worker_lost", 3)
        Path(misbehaving["LTXQ_TEST_GO"]).touch()
        for job in (beside, other):
            assert client.wait(job.id, PATIENCE).state == "succeeded"
        assert client.get(beside.id).attempts > 1  # it was in a process that died
        assert client.get(beside.id).error is None

        again = subprocess.run(
            [sys.executable, "-m", "ltxq", "retry", deadly.id],
            env={**os.environ, **misbehaving, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert again.returncode == 0, again.stderr
        (new_id,) = (word for word in again.stdout.split() if word.startswith("video_"))
        retried = client.get(new_id)
        assert (retried.retry_of, retried.request) == (deadly.id, failed.request)
        assert client.get(deadly.id).state == "failed"  # a final state stays


@pytest.mark.extended
def test_a_bystander_is_not_charged_however_often_its_process_dies(
    misbehaving: dict[str, str], client: Client
) -> None:
    """Uploading, it loses more workers than would fail it if they were counted."""
    with Fleet({**misbehaving, "LTXQ_MAX_LOST": "1"}) as fleet:
        fleet.wait_until_ready()
        beside = client.submit("wait upload", **SMALL)
        eventually(lambda: getattr(client.get(beside.id).progress, "stage", None) == "upload")
        deadly = client.wait(client.submit("die", **SMALL).id, PATIENCE)
        assert deadly.error is not None
        assert (deadly.error.code, deadly.attempts) == ("worker_lost", 1)
        done = client.wait(beside.id, PATIENCE)
        assert (done.state, done.attempts) == ("succeeded", 2)
