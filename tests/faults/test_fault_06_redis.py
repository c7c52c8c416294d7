"""Redis dies, goes away, is full, becomes read-only, cuts connections: no job is lost or done
twice, and everybody comes back by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from stages import STAGES

from fleet import PATIENCE, SMALL, Fleet, eventually, wait_until_running, worker_environment
from ltxq import Client
from ltxq.errors import QueueUnavailable
from ltxq.job import Job
from ltxq_worker.embedded.servers import RedisServer, S3Server
from proxy import Proxy
from servers import start_or_skip

SILENCE = 30.0  # seconds; the worker drops a silent connection after 11


class World:
    """A Redis of the test's own, to be cruel to, with a worker's environment and a client."""

    def __init__(self, folder: Path, s3: S3Server) -> None:
        self._folder = folder / "redis"
        self.redis = start_or_skip(lambda: RedisServer.start(self._folder))
        self.environment = {
            **worker_environment(self.redis.url, s3, folder / "spool"),
            "PYTHONPATH": str(Path(__file__).with_name("inside")),
            "LTXQ_TEST_GO": str(folder / "go"),
        }
        self.client = Client(self.redis.url)

    def submit(self, prompt: str = "a fox", **fields: Any) -> Job:
        return self.client.submit(prompt, model="instant", **SMALL, **fields)

    def kill(self) -> None:
        """kill -9."""
        self.redis.process.kill()
        self.redis.stop()

    def restart(self) -> None:
        """The same Redis again, from its append-only file."""
        self.redis = RedisServer.start(self._folder, port=self.redis.port)

    def ask(self, *words: object) -> Any:
        """A command as the administrator."""
        with redis.Redis.from_url(self.redis.url, socket_timeout=5) as server:
            return server.execute_command(*words)

    def succeeds_once(self, job: Job) -> None:
        done = self.client.wait(job.id, PATIENCE)
        assert (done.state, done.attempts) == ("succeeded", 1)

    def stop(self) -> None:
        self.client.close()
        self.redis.stop()


@pytest.fixture
def world(tmp_path: Path, s3_server: S3Server) -> Iterator[World]:
    made = World(tmp_path, s3_server)
    yield made
    made.stop()


def in_stage(world: World, job: Job, stage: str) -> Callable[[], bool]:
    return lambda: getattr(world.client.get(job.id).progress, "stage", None) == stage


def test_killed_while_jobs_wait(world: World) -> None:
    jobs = [world.submit() for _ in range(3)]
    world.kill()
    world.restart()
    with Fleet(world.environment) as fleet:
        fleet.wait_until_ready()
        for job in jobs:
            world.succeeds_once(job)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_while_a_job_runs(world: World, stage: str) -> None:
    with Fleet(world.environment) as fleet:
        fleet.wait_until_ready()
        job = world.submit(f"wait {stage}")
        eventually(in_stage(world, job, "upload" if stage == "finish" else stage))
        world.kill()
        Path(world.environment["LTXQ_TEST_GO"]).touch()  # it goes on without Redis
        with pytest.raises(QueueUnavailable):
            world.submit("not accepted")
        world.restart()
        world.succeeds_once(job)
        world.succeeds_once(world.submit("next"))


@pytest.mark.extended
def test_away_for_longer_than_a_lease(world: World) -> None:
    environment = {**world.environment, "LTXQ_LEASE": "1", "LTXQ_INSTANT_SECONDS": "2"}
    with Fleet(environment, name="red") as red, Fleet(environment, name="blue") as blue:
        red.wait_until_ready()
        blue.wait_until_ready()
        jobs = [wait_until_running(world.client, world.submit()) for _ in range(2)]
        world.kill()
        time.sleep(7)  # the outage itself: longer than three sweeps, by which the ledger knows one
        world.restart()
        for job in jobs:
            world.succeeds_once(job)
        world.succeeds_once(world.submit("next"))


def test_a_host_that_vanishes_without_a_word(world: World) -> None:
    """As in a failover behind one address: no connection is closed, and none is answered."""
    with Proxy(world.redis.port) as proxy:
        url = world.redis.url.replace(f":{world.redis.port}", f":{proxy.port}")
        with Fleet({**world.environment, "LTXQ_URL": url}) as fleet:
            fleet.wait_until_ready()
            world.succeeds_once(world.submit())
            proxy.fall_silent()
            job = world.submit()
            eventually(lambda: world.client.get(job.id).finished, within=SILENCE)
            world.succeeds_once(job)


def test_every_connection_cut(world: World) -> None:
    with Fleet({**world.environment, "LTXQ_INSTANT_SECONDS": "2"}) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(world.client, world.submit())
        watched = world.client.watch(job.id, timeout=PATIENCE)
        next(watched)
        for kind in ("normal", "pubsub"):
            world.ask("CLIENT", "KILL", "TYPE", kind)
        *_, last = watched
        assert (last.state, last.attempts) == ("succeeded", 1)
        world.succeeds_once(world.submit("next"))


def test_full(world: World) -> None:
    with Fleet({**world.environment, "LTXQ_INSTANT_SECONDS": "1"}) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(world.client, world.submit())
        world.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(QueueUnavailable, match=r"memory|full"):
            world.submit("not accepted")
        Path(world.environment["LTXQ_TEST_GO"]).touch()
        fleet.wait_for("Redis")  # the worker says so
        world.ask("CONFIG", "SET", "maxmemory", "0")
        world.succeeds_once(job)
        assert len(world.client.list().jobs) == 1  # what was refused left nothing
        world.succeeds_once(world.submit("next"))


@pytest.mark.extended
@pytest.mark.parametrize("trouble", ["full", "a read-only replica"])
def test_an_idle_workers_process_lives_through_it(world: World, trouble: str) -> None:
    """A message it takes meanwhile may be lost: the sweep finds it. A loaded model may not."""
    begin, end = {
        "full": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        "a read-only replica": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    }[trouble]
    with Fleet(world.environment) as fleet:
        fleet.wait_until_ready()
        workers = fleet.workers()
        world.succeeds_once(world.submit())
        jobs = [world.submit("wait denoise"), *(world.submit() for _ in range(3))]
        eventually(in_stage(world, jobs[0], "denoise"))
        world.ask(*begin)
        Path(world.environment["LTXQ_TEST_GO"]).touch()  # the GPU is free: it takes the next
        fleet.wait_for("No jobs are taken until Redis takes writes: .* (is full|read-only replica)")
        world.ask(*end)
        fleet.wait_for("jobs are taken again")
        for job in jobs:
            world.succeeds_once(job)
        assert fleet.workers() == workers
        assert "Traceback" not in fleet.log


@pytest.mark.extended
def test_a_replica_that_can_only_be_read(world: World) -> None:
    with Fleet({**world.environment, "LTXQ_INSTANT_SECONDS": "1"}) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(world.client, world.submit())
        world.ask("REPLICAOF", "127.0.0.1", "1")  # of a primary that is not there
        with pytest.raises(QueueUnavailable, match=r"replica|read"):
            world.submit("not accepted")
        fleet.wait_for("replica|read")
        world.ask("REPLICAOF", "NO", "ONE")
        world.succeeds_once(job)
        assert len(world.client.list().jobs) == 1
        world.succeeds_once(world.submit("next"))
