"""Producers and workers of two versions of the job contract on one Redis, as in an upgrade."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fleet import PATIENCE, SMALL, Fleet, worker_environment
from ltxq import Client
from ltxq.job import CONTRACT
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import S3Server

NEWER = str(Path(__file__).with_name("newer"))
SIZE = ("--width", "64", "--height", "64", "--num-frames", "9")


def ltxq(*words: str, environment: dict[str, str]) -> tuple[int, Any]:
    """The exit code and the JSON of one command of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "ltxq", *words, "--json"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def older(redis_url: str, s3_server: S3Server, tmp_path: Path) -> dict[str, str]:
    return worker_environment(redis_url, s3_server, tmp_path / "spool")


@pytest.fixture
def newer(older: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return {**older, "PYTHONPATH": NEWER, "LTXQ_SPOOL_DIR": str(tmp_path / "newer-spool")}


def test_a_newer_job_waits_for_a_newer_worker_and_older_jobs_go_on(
    older: dict[str, str], newer: dict[str, str], redis_url: str
) -> None:
    settings = Settings(url=redis_url, default_model="instant")
    with Client(settings=settings) as client, Fleet(older, name="older") as fleet:
        fleet.wait_until_ready()
        code, job = ltxq("submit", "a fox", *SIZE, environment=newer)
        assert (code, job["contract"], job["state"]) == (0, CONTRACT + 1, "queued")
        for _ in range(2):  # the older worker is free, and makes what is its own
            assert client.wait(client.submit("a hare", **SMALL).id, PATIENCE).state == "succeeded"
        assert ltxq("status", job["id"], environment=newer)[1]["state"] == "queued"
        code, answer = ltxq("status", job["id"], environment=older)
        assert (code, answer["error"]["code"]) == (3, "job_not_found")

        with Fleet(newer, name="newer") as upgraded:
            upgraded.wait_until_ready()
            code, done = ltxq("watch", job["id"], environment=newer)
            assert (code, done["state"], done["worker"]) == (0, "succeeded", "cpu0@newer")
            older_job = client.wait(client.submit("a hare", **SMALL).id, PATIENCE)
            assert (older_job.state, older_job.worker) == ("succeeded", "cpu0@older")
            assert fleet.stop() == 0  # the last older worker goes: its queue is empty
            last = client.submit("a hare", **SMALL)
            assert ltxq("submit", "a fox", *SIZE, "--wait", environment=newer)[0] == 0
            assert client.get(last.id).state == "queued"  # never taken by a worker it is not for
        assert "ERROR" not in fleet.log + upgraded.log
