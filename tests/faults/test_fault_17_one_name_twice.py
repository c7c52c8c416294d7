"""Two supervisors of one name, on machines that were given the same one."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fleet import PATIENCE, SLOW, SMALL, Fleet, eventually, wait_until_running
from ltxq import Client

TAKEN = r"A worker named cpu0@host belongs to another supervisor\.\s+(hint: )?Give each machine"


def elsewhere(own: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of another machine."""
    return {**own, **SLOW, "LTXQ_LEASE": "4", "LTXQ_SPOOL_DIR": str(tmp_path / "elsewhere")}


def test_the_second_one_does_not_start_and_takes_no_job_away(
    own: dict[str, str], client: Client, tmp_path: Path
) -> None:
    with Fleet({**own, **SLOW}) as first:
        first.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        with Fleet(elsewhere(own, tmp_path)) as second:
            second.wait_for(TAKEN)
            assert second.supervisor.wait(PATIENCE) != 0
            assert "Traceback" not in second.log
        assert (client.get(job.id).state, client.get(job.id).attempts) == ("running", 1)
        client.cancel(job.id)


@pytest.mark.extended
def test_the_name_of_a_host_that_was_lost_is_free_after_a_lease(
    own: dict[str, str], client: Client, tmp_path: Path
) -> None:
    with Fleet({**own, **SLOW, "LTXQ_LEASE": "4"}) as lost:
        lost.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        for process in (*lost.workers(), lost.supervisor):
            process.send_signal(signal.SIGKILL)
        with Fleet(elsewhere(own, tmp_path)) as next_one:
            next_one.wait_until_ready()
            assert wait_until_running(client, job).attempts == 2
            client.cancel(job.id)


def test_a_supervisor_that_starts_again_has_its_name_at_once(
    own: dict[str, str], client: Client
) -> None:
    environment = {**own, **SLOW, "LTXQ_LEASE": "3600"}  # nobody waits for its end
    with Fleet(environment) as killed:
        killed.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        for process in (*killed.workers(), killed.supervisor):
            process.send_signal(signal.SIGKILL)
    with Fleet(environment) as again:
        again.wait_until_ready()
        eventually(lambda: client.get(job.id).attempts == 2)
        client.cancel(job.id)


@pytest.mark.extended
def test_a_supervisor_that_was_frozen_ends_when_another_has_its_name(
    own: dict[str, str], client: Client, tmp_path: Path
) -> None:
    with Fleet({**own, **SLOW}) as frozen:
        frozen.wait_until_ready()
        (worker,) = frozen.workers()
        worker.suspend()
        frozen.supervisor.send_signal(signal.SIGSTOP)
        with Fleet(elsewhere(own, tmp_path)) as second:
            second.wait_until_ready()
            job = wait_until_running(client, client.submit("a fox", **SMALL))
            frozen.supervisor.send_signal(signal.SIGCONT)
            worker.resume()
            frozen.wait_for(TAKEN)
            assert frozen.supervisor.wait(PATIENCE) != 0
            worker.wait(PATIENCE)
            assert (client.get(job.id).state, client.get(job.id).attempts) == ("running", 1)
            client.cancel(job.id)
