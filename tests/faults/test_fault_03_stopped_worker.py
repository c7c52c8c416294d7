"""A worker that is stopped past its lease, as by a frozen machine, and then goes on."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path

import pytest
from stages import STAGES

from fleet import PATIENCE, SMALL, Fleet, eventually, fetch
from ltxq import Client
from ltxq.storage import Storage
from servers import S3


@pytest.mark.parametrize("stage", STAGES)
def test_its_late_writes_are_refused_and_it_drops_the_job(
    misbehaving: dict[str, str], client: Client, s3: S3, stage: str
) -> None:
    environment = {**misbehaving, "LTXQ_LEASE": "2"}
    storage = Storage.from_settings(s3.settings())
    with Fleet(environment, name="late") as late:
        late.wait_until_ready()
        job = client.submit(f"wait {stage}", **SMALL)
        eventually(lambda: client.get(job.id).progress)
        stage_shown = "upload" if stage == "finish" else stage
        eventually(lambda: getattr(client.get(job.id).progress, "stage", None) == stage_shown)
        (worker,) = late.workers()
        worker.suspend()
        with Fleet(environment, name="prompt") as prompt:
            prompt.wait_until_ready()
            done = client.wait(job.id, PATIENCE)
            assert (done.state, done.attempts, done.worker) == ("succeeded", 2, "cpu0@prompt")
            assert prompt.stop() == 0
        Path(misbehaving["LTXQ_TEST_GO"]).touch()
        worker.send_signal(signal.SIGCONT)
        late.wait_for(f"{job.id} was deleted, or lost to another claim; dropped")
        same = client.get(job.id)
        assert (same.state, same.attempts, same.worker) == (done.state, done.attempts, done.worker)
        assert same.finished_at == done.finished_at
        result = same.result_or_raise()
        assert result.sha256 == done.result_or_raise().sha256
        assert hashlib.sha256(fetch(result.url)).hexdigest() == result.sha256
        left = list(storage.clip_keys(result.key.rpartition("/")[0].removeprefix("ltxq/")))
        eventually(lambda: list(storage.list(f"{job.id}/")) == sorted(left))  # none uploaded late
        following = client.wait(client.submit("next", **SMALL).id, PATIENCE)
        assert (following.state, following.worker) == ("succeeded", "cpu0@late")
        assert late.workers() == [worker]
