"""A message that is lost between Redis and the worker: its job runs within 60 seconds."""

from __future__ import annotations

import threading

import pytest
import redis
from broker import QUEUE, take_message

from fleet import PATIENCE, SLOW, SMALL, Fleet, eventually, wait_until_running
from ltxq import Client

PROMISE = 60.0  # seconds


@pytest.mark.extended
def test_in_a_quiet_system(own: dict[str, str], client: Client, server: redis.Redis) -> None:
    job = client.submit("a fox", **SMALL)
    assert take_message(server, job.id)
    with Fleet(own) as fleet:
        fleet.wait_until_ready()
        done = client.wait(job.id, PROMISE)
        assert (done.state, done.attempts) == ("succeeded", 1)


def test_while_its_only_worker_is_busy(
    own: dict[str, str], client: Client, server: redis.Redis
) -> None:
    with Fleet({**own, **SLOW}) as fleet:
        fleet.wait_until_ready()
        first = wait_until_running(client, client.submit("long", **SMALL))
        job = client.submit("a fox", **SMALL)
        assert take_message(server, job.id)
        eventually(lambda: server.llen(QUEUE), within=PROMISE)  # sent again
        client.cancel(first.id)
        wait_until_running(client, job)
        client.cancel(job.id)


@pytest.mark.extended
def test_under_a_constant_backlog(own: dict[str, str], client: Client, server: redis.Redis) -> None:
    with Fleet({**own, "LTXQ_INSTANT_SECONDS": "0.2"}) as fleet:
        fleet.wait_until_ready()
        enough = threading.Event()
        lengths = []

        def keep_a_backlog() -> None:
            while not enough.is_set():
                lengths.append(server.llen(QUEUE))
                if lengths[-1] < 20:
                    client.submit("another", **SMALL)
                enough.wait(0.02)

        for _ in range(20):
            client.submit("another", **SMALL)
        job = client.submit("a fox", **SMALL)
        assert take_message(server, job.id)
        feeder = threading.Thread(target=keep_a_backlog)
        feeder.start()
        try:
            done = client.wait(job.id, PROMISE)
        finally:
            enough.set()
            feeder.join(PATIENCE)
        assert (done.state, done.attempts) == ("succeeded", 1)
        assert min(lengths) > 0  # the list was never empty
