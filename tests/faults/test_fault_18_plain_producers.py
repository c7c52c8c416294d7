"""Redis goes away while a worker takes in the jobs of plain Celery producers: killed, and stopped.
Either may cost the answer by which the worker was given a message.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from fleet import PATIENCE, SMALL, Fleet, eventually, worker_environment
from ltxq import Client
from ltxq.ledger import PREFIX, queue_name
from ltxq_worker.embedded.servers import RedisServer, S3Server
from servers import start_or_skip

OUTAGES, JOBS = 4, 60


@pytest.mark.extended
@pytest.mark.timeout(400)
def test_no_job_is_lost_between_its_message_and_its_record(
    tmp_path: Path, s3_server: S3Server
) -> None:
    def start(port: int | None = None) -> RedisServer:
        return RedisServer.start(tmp_path / "redis", port=port, fsync="always")

    server = start_or_skip(start)
    environment = worker_environment(server.url, s3_server, tmp_path / "spool")
    sent: list[str] = []
    with (
        Fleet(environment) as fleet,
        Celery(broker=server.url, set_as_current=False) as plain,
        Client(server.url) as client,
    ):
        fleet.wait_until_ready()
        for outage in range(OUTAGES):
            ids = [f"order-{outage}-{number}" for number in range(JOBS)]
            sender = threading.Thread(target=send_all, args=(plain, ids))
            sender.start()
            eventually(lambda ids=ids: client.get_many(ids[:5]))
            if outage % 2:
                server.process.kill()
            server.stop()
            server = start(server.port)
            sender.join(PATIENCE)
            sent += ids
        eventually(lambda: len(client.get_many(sent)) == len(sent), within=2 * PATIENCE)
        for job_id in sent:
            done = client.wait(job_id, PATIENCE)
            assert (done.state, done.attempts) == ("succeeded", 1)
    server.stop()


def send_all(plain: Celery, ids: list[str], queue: str = queue_name("instant")) -> None:
    """Each until Redis has taken it."""
    for job_id in ids:
        while True:
            try:
                plain.send_task(
                    "ltxq.generate",
                    task_id=job_id,
                    kwargs={"request": {"prompt": "a fox", **SMALL}},
                    queue=queue,
                    retry=False,
                )
                break
            except (OperationalError, redis.RedisError):
                threading.Event().wait(0.05)


def cut_consumers(server: redis.Redis) -> int:
    """Cut the connections on which a worker waits for messages; how many there were."""
    waiting = [one["id"] for one in server.client_list() if one["cmd"] == "blmove"]
    return sum(server.client_kill_filter(_id=number) for number in waiting)


def test_a_worker_that_is_connected_again_begins_with_what_it_had_in_hand(
    own: dict[str, str], client: Client, redis_url: str
) -> None:
    taken = f"{PREFIX}taken:cpu0@host"
    with (
        Fleet(own) as fleet,
        Celery(broker=redis_url, set_as_current=False) as plain,
        redis.Redis.from_url(redis_url, socket_timeout=5) as server,
    ):
        fleet.wait_until_ready()
        send_all(plain, ["order-1"], queue="elsewhere")
        server.lmove("elsewhere", taken)
        eventually(lambda: cut_consumers(server))  # it is ready before it takes messages
        eventually(lambda: client.get_many(["order-1"]))
        assert client.wait("order-1", PATIENCE).state == "succeeded"
        eventually(lambda: not server.exists(taken))
