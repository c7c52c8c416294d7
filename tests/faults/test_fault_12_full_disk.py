"""The disk fills up under a worker's spool; under the model folder: unit/test_download.py."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fleet import PATIENCE, SMALL, Fleet, eventually
from ltxq import Client

UNSHARE = ("unshare", "--user", "--mount", "--map-root-user")


@pytest.fixture
def on_a_small_disk(own: dict[str, str]) -> tuple[str, ...]:
    """What runs a worker with its spool on a disk of 4 MB, a tmpfs in a namespace of its own."""
    if subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=30).returncode:
        pytest.skip("this machine allows no user namespaces")
    spool = own["LTXQ_SPOOL_DIR"]
    Path(spool).mkdir(mode=0o700)
    mount = f'mount -t tmpfs -o size=4m,mode=700 none {spool} && exec "$@"'
    return (*UNSHARE, "sh", "-c", mount, "sh")


def test_no_job_is_taken_until_there_is_room_and_none_is_lost(
    own: dict[str, str], misbehaving: dict[str, str], client: Client,
    on_a_small_disk: tuple[str, ...],
) -> None:  # fmt: skip
    environment = {**misbehaving, "LTXQ_TEST_FULL_DISK_SECONDS": "1"}
    with Fleet(environment, inside=on_a_small_disk) as fleet:
        fleet.wait_until_ready()
        # The disk as the worker sees it, in its namespace.
        root = Path(f"/proc/{fleet.supervisor.pid}/root")
        filling = root / own["LTXQ_SPOOL_DIR"].lstrip("/") / "somebody-elses-file"
        fill(filling)
        jobs = [client.submit(f"fox {i}", **SMALL) for i in range(2)]
        fleet.wait_for(r"is given back, and no job taken for 1 s: The disk that holds .* is full")
        filling.unlink()
        for job in jobs:
            assert client.wait(job.id, PATIENCE).state == "succeeded"
        assert sum(client.get(job.id).attempts for job in jobs) > 2


def test_a_spool_that_was_removed_is_made_anew(
    own: dict[str, str], misbehaving: dict[str, str], client: Client
) -> None:
    environment = {**misbehaving, "LTXQ_TEST_FULL_DISK_SECONDS": "1"}
    with Fleet(environment) as fleet:
        fleet.wait_until_ready()
        spool = Path(own["LTXQ_SPOOL_DIR"])
        shutil.rmtree(spool)
        made = client.wait(client.submit("a fox", **SMALL).id, PATIENCE)
        assert (made.state, made.attempts) == ("succeeded", 1)
        # If the spool cannot be made, the job is given back and does not fail.
        shutil.rmtree(spool)
        spool.touch()
        waiting = client.submit("an owl", **SMALL)
        fleet.wait_for("is given back, and no job taken for 1 s: .* cannot be written: File exists")
        spool.unlink()
        assert client.wait(waiting.id, PATIENCE).state == "succeeded"


def test_a_job_that_never_fits_fails_with_the_reason(
    own: dict[str, str], misbehaving: dict[str, str], client: Client,
    on_a_small_disk: tuple[str, ...],
) -> None:  # fmt: skip
    environment = {**misbehaving, "LTXQ_TEST_FULL_DISK_SECONDS": "0.5"}
    with Fleet(environment, inside=on_a_small_disk) as fleet:
        fleet.wait_until_ready()
        root = Path(f"/proc/{fleet.supervisor.pid}/root")
        fill(root / own["LTXQ_SPOOL_DIR"].lstrip("/") / "somebody-elses-file")
        failed = client.wait(client.submit("a fox", **SMALL).id, PATIENCE)
        assert failed.error is not None
        assert (failed.error.code, failed.error.retryable) == ("storage_unavailable", True)
        assert "is full" in failed.error.message
        assert "LTXQ_SPOOL_DIR" in failed.error.hint
        assert failed.attempts == 3
        eventually(lambda: len(fleet.workers()) == 1)
        assert fleet.log.count("is ready") == 1  # no process was replaced


def fill(path: Path) -> None:
    """Write until there is no room."""
    done = subprocess.run(["dd", "if=/dev/zero", f"of={path}"], capture_output=True, timeout=60)
    assert b"No space left" in done.stderr
