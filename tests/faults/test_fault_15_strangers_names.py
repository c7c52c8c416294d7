"""Strangers ask for models that nobody serves, tens of thousands of them."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import redis

from fleet import PATIENCE, SLOW, SMALL, Fleet, eventually, wait_until_running
from ltxq import Client
from ltxq.errors import QueueFull
from ltxq.job import CONTRACT, VideoRequest, new_job_id
from ltxq.ledger import PREFIX, Ledger, queue_name
from ltxq.settings import Settings

NAMES = 30_000


def ask_for_many_models(url: str) -> list[str]:
    """Submissions of 30,000 names, as the ledger's script takes them. Ids of those accepted."""
    ledger = Ledger(Settings(url=url))
    request = VideoRequest(prompt="x", model="m", seed=1).model_dump_json()
    accepted = []
    for start in range(0, NAMES, 500):
        ids: list[Any] = []
        with ledger._script.redis.pipeline(transaction=False) as pipe:
            for number in range(start, start + 500):
                arguments = [
                    *(
                        "submit",
                        new_job_id(),
                        CONTRACT,
                        request,
                        "",
                        queue_name(f"m{number}"),
                        1,
                        1,
                    ),
                    *("", "", "", "", NAMES, NAMES, "", ""),
                ]
                ids.append(arguments[1])
                ledger._script.lua(keys=[PREFIX], args=arguments, client=pipe)
            answers = zip(ids, pipe.execute(), strict=True)
            accepted += [job_id for job_id, answer in answers if answer[0] == "accepted"]
    ledger.close()
    return accepted


@pytest.mark.extended
def test_a_lost_hosts_job_still_comes_back(
    own: dict[str, str], client: Client, server: redis.Redis, redis_url: str
) -> None:
    with Fleet({**own, **SLOW}, name="red") as red:
        red.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        accepted = ask_for_many_models(redis_url)
        assert 200 < len(accepted) < 300
        with pytest.raises(QueueFull, match="256 models"):
            client.submit("a fox", model="one-more", **SMALL)
        known = client.submit("its model is known", **SMALL)
        for process in (*red.workers(), red.supervisor):
            process.send_signal(signal.SIGKILL)
        with Fleet({**own, **SLOW}, name="blue") as blue:
            blue.wait_until_ready()
            waiting = wait_until_running(client, known)
            eventually(lambda: client.get(job.id).state == "queued")
            client.cancel(waiting.id)
            assert wait_until_running(client, job).attempts == 2
            for job_id in accepted:
                client.cancel(job_id)
            queues = f"{PREFIX}queues"
            eventually(lambda: server.smembers(queues) == {queue_name("instant").encode()})
            named = client.submit("a fox", model="one-more", **SMALL)
            assert client.cancel(named.id).state == "cancelled"
            assert len(list(server.scan_iter(f"{PREFIX}totals:*"))) <= 3
            client.cancel(job.id)
            assert client.wait(job.id, PATIENCE).state == "cancelled"
