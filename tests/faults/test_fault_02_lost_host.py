"""kill -9 of a whole host, and of a supervisor alone."""

from __future__ import annotations

import signal
import time

import psutil
import pytest

from fleet import PATIENCE, SLOW, SMALL, Fleet, eventually, has_ended, name_of, wait_until_running
from ltxq import Client

PROMISE = 45.0  # seconds, with the lease as it is by default


def kill_host(fleet: Fleet) -> None:
    """Supervisor and workers at once."""
    workers = fleet.workers()
    fleet.supervisor.kill()
    for worker in workers:
        worker.kill()


@pytest.mark.extended
def test_a_lost_hosts_job_is_run_by_another_within_45_seconds(
    own: dict[str, str], client: Client
) -> None:
    with Fleet({**own, "LTXQ_INSTANT_SECONDS": "60"}, name="red") as red:
        red.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        with Fleet({**own, "LTXQ_INSTANT_SECONDS": "60"}, name="blue") as blue:
            blue.wait_until_ready()
            waiting = client.submit("waiting", priority="low", **SMALL)
            wait_until_running(client, waiting)
            client.cancel(waiting.id)
            kill_host(red)
            killed = time.monotonic()
            eventually(lambda: client.get(job.id).attempts == 2, within=PROMISE)
            assert time.monotonic() - killed < PROMISE
            assert client.get(job.id).worker == "cpu0@blue"
            client.cancel(job.id)


def test_a_lost_hosts_job_is_the_first_of_the_queue(own: dict[str, str], client: Client) -> None:
    environment = {**own, **SLOW}
    with Fleet(environment, name="red") as red:
        red.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        with Fleet(environment, name="blue") as blue:
            blue.wait_until_ready()
            waiting = [client.submit("waiting", **SMALL) for _ in range(3)]
            first = wait_until_running(client, waiting[0])
            kill_host(red)
            eventually(lambda: client.get(job.id).state == "queued")
            client.cancel(first.id)
            wait_until_running(client, job)
            assert {client.get(other.id).state for other in waiting[1:]} == {"queued"}
            for left in (*waiting[1:], job):
                client.cancel(left.id)


def test_a_dead_supervisors_workers_give_back_and_end(own: dict[str, str], client: Client) -> None:
    with Fleet({**own, **SLOW}) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        (worker,) = fleet.workers()
        fleet.supervisor.kill()
        worker.wait(PATIENCE)
        assert client.get(job.id).state == "queued"


@pytest.mark.extended
def test_a_supervisor_that_dies_before_it_has_heard_all_is_noticed_too(
    own: dict[str, str], client: Client
) -> None:
    """What its worker told it and it never read makes the line end with an error."""
    with Fleet({**own, **SLOW}) as fleet:
        fleet.wait_for("starts")
        (worker,) = fleet.workers()
        fleet.supervisor.send_signal(signal.SIGSTOP)
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        fleet.supervisor.kill()
        worker.wait(PATIENCE)
        assert client.get(job.id).state == "queued"


@pytest.mark.extended
def test_a_restarted_supervisor_waits_until_the_place_is_free(
    own: dict[str, str], client: Client
) -> None:
    with Fleet(own) as first:
        first.wait_until_ready()
        (worker,) = first.workers()
        worker.suspend()  # it cannot notice
        first.supervisor.kill()
        with Fleet(own) as early:
            early.wait_for("A worker named cpu0@host runs on this machine already")
            assert early.supervisor.wait(PATIENCE) != 0
        assert workers_of(own) == [worker.pid]
        with Fleet(own) as second:
            worker.send_signal(signal.SIGCONT)
            second.wait_until_ready()
            assert has_ended(worker)
            assert workers_of(own) == [second.workers()[0].pid]
            assert client.wait(client.submit("a fox", **SMALL).id, PATIENCE).state == "succeeded"


def workers_of(own: dict[str, str]) -> list[int]:
    """The worker processes that live and have this test's spool."""
    return [
        process.pid
        for process in psutil.process_iter()
        if name_of(process) == "cpu0@host"
        and any(word.startswith(own["LTXQ_SPOOL_DIR"]) for word in process.cmdline())
    ]
