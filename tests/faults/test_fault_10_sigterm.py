"""SIGTERM and SIGHUP, once and twice, to one process or to all, and rolling restarts under load."""

from __future__ import annotations

import signal
import threading

import pytest

from fleet import PATIENCE, SLOW, SMALL, Fleet, wait_until_running
from ltxq import Client
from ltxq.job import Job
from variants import variants

BACKLOG = 6  # jobs that wait while hosts restart, however long that takes


def test_the_first_lets_the_running_job_finish_and_takes_no_more(
    own: dict[str, str], client: Client
) -> None:
    with Fleet({**own, "LTXQ_INSTANT_SECONDS": "2"}) as fleet:
        fleet.wait_until_ready()
        running = wait_until_running(client, client.submit("a fox", **SMALL))
        waiting = client.submit("a bear", **SMALL)
        assert fleet.stop() == 0
        done = client.get(running.id)
        assert (done.state, done.attempts) == ("succeeded", 1)
        assert client.get(waiting.id).state == "queued"


def test_an_idle_worker_ends_at_once(own: dict[str, str], client: Client) -> None:
    with Fleet(own) as fleet:
        fleet.wait_until_ready()
        assert fleet.stop() == 0
        assert fleet.workers() == []


def test_a_second_one_gives_the_running_job_back(own: dict[str, str], client: Client) -> None:
    with Fleet({**own, **SLOW}) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        fleet.supervisor.terminate()
        fleet.wait_for("draining")
        assert fleet.stop() == 0
        again = client.get(job.id)
        assert (again.state, again.attempts) == ("queued", 1)


def test_one_that_reaches_every_process_is_one_request(own: dict[str, str], client: Client) -> None:
    """As systemd stops a service by default; `timeout` also signals its command twice."""
    with Fleet({**own, "LTXQ_INSTANT_SECONDS": "2"}) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        for process in (*fleet.workers(), fleet.supervisor, fleet.supervisor):
            process.terminate()
        assert fleet.supervisor.wait(PATIENCE) == 0
        done = client.get(job.id)
        assert (done.state, done.attempts) == ("succeeded", 1)
    assert "ended (" not in fleet.log


def test_a_second_one_that_reaches_every_process_gives_the_running_job_back(
    own: dict[str, str], client: Client
) -> None:
    with Fleet({**own, **SLOW}) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        for _ in range(2):
            for process in (*fleet.workers(), fleet.supervisor):
                process.terminate()
            fleet.wait_for("draining")
        assert fleet.supervisor.wait(PATIENCE) == 0
        again = client.get(job.id)
        assert (again.state, again.attempts) == ("queued", 1)


@pytest.mark.extended
def test_a_closed_terminal_is_one_request_however_often_it_is_told(
    own: dict[str, str], client: Client
) -> None:
    with Fleet({**own, "LTXQ_INSTANT_SECONDS": "2"}) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        for _ in range(2):
            fleet.supervisor.send_signal(signal.SIGHUP)
            fleet.wait_for("draining")
        assert fleet.supervisor.wait(PATIENCE) == 0
        assert client.get(job.id).state == "succeeded"


@pytest.mark.extended
def test_nohup_keeps_a_worker_running(own: dict[str, str], client: Client) -> None:
    with Fleet(own, inside=["nohup"]) as fleet:
        fleet.wait_until_ready()
        for process in (fleet.supervisor, *fleet.workers()):
            process.send_signal(signal.SIGHUP)
        assert client.wait(client.submit("a fox", **SMALL).id, PATIENCE).state == "succeeded"
        assert fleet.stop() == 0


@pytest.mark.parametrize(
    "number", variants(signal.SIGTERM, extended=(signal.SIGHUP, signal.SIGINT))
)
def test_a_worker_process_that_alone_is_signalled_finishes_and_is_replaced(
    own: dict[str, str], client: Client, number: signal.Signals
) -> None:
    with Fleet({**own, "LTXQ_INSTANT_SECONDS": "2"}) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        (worker,) = fleet.workers()
        for _ in range(2):
            worker.send_signal(number)
        done = client.wait(job.id, PATIENCE)
        assert (done.state, done.attempts) == ("succeeded", 1)
        fleet.wait_until_ready(times=2)


@pytest.mark.extended
def test_rolling_restarts_of_two_hosts_under_load_lose_nothing(
    own: dict[str, str], client: Client
) -> None:
    environment = {**own, "LTXQ_INSTANT_SECONDS": "0.4"}
    hosts = {name: Fleet(environment, name=name) for name in ("red", "blue")}
    for host in hosts.values():
        host.wait_until_ready()
    jobs: list[Job] = []
    enough = threading.Event()

    def load() -> None:
        while not enough.wait(0.1):
            if len(client.list(state="queued", limit=BACKLOG).jobs) < BACKLOG:
                jobs.append(client.submit(f"fox {len(jobs)}", **SMALL))

    loader = threading.Thread(target=load)
    loader.start()
    try:
        for name in ("red", "blue"):
            assert hosts[name].stop() == 0
            hosts[name].__exit__(None, None, None)
            hosts[name] = Fleet(environment, name=name).wait_until_ready()
    finally:
        enough.set()
        loader.join(PATIENCE)
        try:
            ends = [client.wait(job.id, PATIENCE) for job in jobs]
        finally:
            for host in hosts.values():
                host.__exit__(None, None, None)
    assert len(ends) > 10
    assert {(job.state, job.attempts) for job in ends} == {("succeeded", 1)}
