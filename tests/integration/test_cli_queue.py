"""The command line as its own process, on a real Redis: what a person or a script sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_ledger import result

from ltxq.ledger import Ledger
from ltxq.settings import Settings
from ltxq.storage import Storage
from ltxq_worker.embedded.servers import free_port
from servers import S3


def ltxq(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ltxq", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def at_redis(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LTXQ_URL", redis_url)
    return redis_url


def test_a_job_is_submitted_listed_and_cancelled(at_redis: str) -> None:
    done = ltxq("submit", "a fox", "--json")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert job["state"] == "queued"
    assert json.loads(ltxq("list", "--json").stdout)["jobs"][0]["id"] == job["id"]
    assert ltxq("cancel", job["id"]).returncode == 0
    watched = ltxq("watch", job["id"])
    assert watched.returncode == 1
    assert "cancelled" in watched.stderr


def test_a_model_without_a_worker_is_told_or_refused(at_redis: str, tmp_path: Path) -> None:
    done = ltxq("submit", "a fox", "--model", "ltx-2-19b-destilled")
    assert done.returncode == 0
    assert "No worker has served the model ltx-2-19b-destilled" in done.stderr
    assert "Did you mean ltx-2-19b-distilled?" in done.stderr
    assert "waits      no worker is ready" in ltxq("status", done.stdout.strip()).stdout
    for words in (["submit", "a fox"], ["batch", str(tmp_path / "lines.jsonl")]):
        (tmp_path / "lines.jsonl").write_text('{"prompt": "a fox"}\n')
        refused = ltxq(*words, "--require-worker", "--json")
        assert refused.returncode == 2
        assert "No worker is ready" in refused.stdout
    assert len(json.loads(ltxq("list", "--json").stdout)["jobs"]) == 1


def test_redis_away_is_told_in_time_and_without_its_password() -> None:
    url = f"redis://:secret-word@127.0.0.1:{free_port()}/0"
    done = ltxq("submit", "a fox", "--json", LTXQ_URL=url)
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"]["retryable"] is True
    assert "secret-word" not in done.stdout + done.stderr


def test_wrong_settings_are_named_and_not_shown() -> None:
    done = ltxq("list", LTXQ_URL="mysql://user:secret-word@host")
    assert done.returncode == 2
    assert "LTXQ_URL" in done.stderr
    assert "secret-word" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_early_is_no_error(at_redis: str) -> None:
    ltxq("submit", "a fox")
    with subprocess.Popen(
        [sys.executable, "-m", "ltxq", "list"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        shown = process.stderr.read()
        process.wait(30)
    assert shown == ""


def test_delete_takes_the_clip_with_the_record(at_redis: str, s3: S3) -> None:
    environment = {**s3.worker_environment, "LTXQ_URL": at_redis}
    job_id = ltxq("submit", "a fox", **environment).stdout.strip()
    storage = Storage.from_settings(Settings(s3_endpoint=s3.endpoint, s3_bucket=s3.bucket))
    ledger = Ledger(Settings(url=at_redis))
    claim = ledger.claims.take(str(ledger.jobs.get(job_id).request.model), "w")
    assert claim
    storage.put(storage.clip_keys(claim.objects).clip, Path(__file__), "video/mp4")
    assert ledger.claims.finish(claim, result(claim))
    ledger.close()
    assert ltxq("delete", job_id, **environment).returncode == 0
    assert list(storage.list(f"{job_id}/")) == []
    assert ltxq("status", job_id, **environment).returncode == 3
