"""What an operator asks of a fleet: workers, queues, draining, objects without a job."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from fleet import PATIENCE, SMALL, Fleet, eventually, wait_until_running, worker_environment
from ltxq import Client, cli
from ltxq.errors import BucketShared, ConfigurationError, InvalidRequest
from ltxq.job import VideoRequest, new_job_id
from ltxq.ledger import PREFIX, Ledger
from ltxq.ops.operator import Operator
from ltxq.settings import Settings
from ltxq.storage import Storage
from ltxq_worker.embedded.servers import S3Server
from servers import exists, start_or_skip


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A bucket of the test's own, whose objects are files."""
    with start_or_skip(lambda: S3Server.start(tmp_path / "s3")) as server:
        for name, value in server.credentials.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def settings(redis_url: str, bucket: S3Server) -> Settings:
    return Settings(
        url=redis_url,
        default_model="instant",
        s3_endpoint=bucket.endpoint,
        s3_bucket=bucket.bucket,
    )


@pytest.fixture
def operator(settings: Settings) -> Iterator[Operator]:
    with Operator(settings) as made:
        yield made


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    made = Ledger(settings)
    yield made
    made.close()


def submit(ledger: Ledger, **fields: object) -> str:
    job_id = new_job_id()
    ledger.jobs.submit(
        job_id, VideoRequest.parse({"seed": 42, "prompt": "a fox", "model": "instant", **fields})
    )
    return job_id


def test_workers_are_shown_with_their_jobs_until_nobody_tells_of_them(
    operator: Operator, ledger: Ledger, redis_url: str
) -> None:
    ledger.fleet.heartbeat("instant", "a", {"gpu0@a": "ready", "gpu1@a": "loading"})
    ledger.fleet.heartbeat("instant", "b", {"gpu0@b": "ready"})
    job_id = new_job_id()
    ledger.jobs.submit(job_id, VideoRequest(seed=42, prompt="a fox", model="instant"))
    assert ledger.claims.take("instant", "gpu0@b")
    found = {worker.name: (worker.host, worker.state, worker.jobs) for worker in operator.workers()}
    assert found == {
        "gpu0@a": ("a", "ready", ()),
        "gpu1@a": ("a", "loading", ()),
        "gpu0@b": ("b", "ready", (job_id,)),
    }
    with redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=5) as server:
        now = server.time()[0] * 1000
        server.zadd(f"{PREFIX}seen", {"gpu0@a": now - 60_000, "gpu1@a": now - 90_000_000})
        assert operator.workers()[0].state == "away"
        server.set(f"{PREFIX}swept", 0)
        ledger.sweeper.sweep()
        assert [worker.name for worker in operator.workers()] == ["gpu0@a", "gpu0@b"]
        server.hset(f"{PREFIX}fleet", "gpu0@a", "{spoilt")
        assert [worker.name for worker in operator.workers()] == ["gpu0@b"]


def test_the_queue_tells_depth_age_and_when_it_is_empty(
    operator: Operator, ledger: Ledger, redis_url: str
) -> None:
    assert operator.queues() == ((), 0)
    first = submit(ledger)
    for priority in ("normal", "high", "low", "low"):
        submit(ledger, priority=priority)
    with redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=5) as server:
        server.hincrby(f"{PREFIX}job:{first}", "submitted", -90_000)
        (queue,), finished = operator.queues()
        jobs = {priority: waiting.jobs for priority, waiting in queue.waiting.items()}
        assert (queue.model, jobs, queue.depth) == (
            "instant",
            {"high": 1, "normal": 2, "low": 2},
            5,
        )
        assert queue.waiting["normal"].oldest == pytest.approx(90, abs=5)
        assert queue.waiting["low"].oldest < 30
        assert queue.empty_in is None  # nobody is there to make them
        assert finished == 0
        server.hset(f"{PREFIX}pace:ltxq.3.instant", mapping={"gpu": 4000, "whole": 6000})
    ledger.fleet.heartbeat("instant", "a", {"gpu0@a": "ready", "gpu1@a": "ready"})
    (queue,), _ = operator.queues()
    assert queue.workers == 2
    assert queue.empty_in == pytest.approx(5 / 2 * 4 + 6)
    ledger.jobs.cancel(first)
    (queue,), finished = operator.queues()
    assert (queue.depth, finished) == (4, 1)


def test_a_host_nobody_heard_of_cannot_be_drained(operator: Operator, ledger: Ledger) -> None:
    ledger.fleet.heartbeat("instant", "a", {"gpu0@a": "ready"})
    with pytest.raises(InvalidRequest, match="There are: a"):
        operator.drain("b")
    operator.drain("a")
    assert operator.draining() == {"a"}
    assert ledger.fleet.heartbeat("instant", "a", {"gpu0@a": "draining"})
    assert not ledger.fleet.heartbeat("instant", "b", {"gpu0@b": "ready"})


def test_a_drained_host_finishes_its_job_takes_no_more_and_comes_back(
    operator: Operator, settings: Settings, redis_url: str, bucket: S3Server, tmp_path: Path
) -> None:
    environment = worker_environment(redis_url, bucket, tmp_path / "spool")
    environment |= {"LTXQ_INSTANT_SECONDS": "3"}
    with Client(settings=settings) as client, Fleet(environment, name="box") as fleet:
        fleet.wait_until_ready()
        running = wait_until_running(client, client.submit("a fox", **SMALL))
        operator.drain("box")
        fleet.wait_for("cpu0@box is drained")
        assert client.get(running.id).state == "succeeded"
        waiting = client.submit("a hare", **SMALL)
        eventually(lambda: operator.workers()[0].state == "drained")
        assert fleet.workers() == []
        assert client.get(waiting.id).state == "queued"
        operator.drain("box", undo=True)
        fleet.wait_until_ready(times=2)
        assert client.wait(waiting.id, PATIENCE).state == "succeeded"
        assert "ERROR" not in fleet.log


def test_draining_outlives_a_restart_of_the_supervisor(
    operator: Operator, settings: Settings, redis_url: str, bucket: S3Server, tmp_path: Path
) -> None:
    environment = worker_environment(redis_url, bucket, tmp_path / "spool")
    ledger = Ledger(settings)
    ledger.fleet.heartbeat("instant", "box", {"cpu0@box": "ready"})
    operator.drain("box")
    with Fleet(environment, name="box") as fleet:
        fleet.wait_for("box is to drain")
        eventually(lambda: operator.workers()[0].state == "drained")
        assert "starts" not in fleet.log
        assert fleet.stop() == 0


def place(tmp_path: Path, bucket: S3Server, key: str, *, days: float) -> None:
    """An object of ten bytes, as if uploaded so many days ago: the server's files are its objects.
    It looks at a folder once in a while, so this comes before it is asked for anything.
    """
    file = tmp_path / "s3" / bucket.bucket / key
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"1234567890")
    then = time.time() - days * 24 * 3600
    os.utime(file, (then, then))


def test_objects_without_a_job_are_removed_and_all_others_stay(
    operator: Operator, ledger: Ledger, settings: Settings, bucket: S3Server, tmp_path: Path
) -> None:
    storage = Storage.from_settings(settings)
    gone, known = new_job_id(), submit(ledger)
    one, two = f"{1:016x}", f"{2:016x}"
    old = [
        *storage.clip_keys(f"{gone}/{one}"),
        storage.clip_keys(f"{known}/{one}").clip,
        "ltxq/holidays/2026/clip.mp4",
        f"ltxq/{gone}/{one}/no",
        f"{gone}/{one}/clip.mp4",  # outside the prefix: another program's
    ]
    young = storage.clip_keys(f"{gone}/{two}").clip
    for key in old:
        place(tmp_path, bucket, key, days=9)
    place(tmp_path, bucket, young, days=7.5)  # past the retention, not yet a day

    assert str(operator.clean(remove=False)) == "4 objects, 0.0 MB"
    assert all(exists(storage, key) for key in old)
    assert operator.clean(remove=True).size == 40
    assert exists(storage, old[-1])
    mark = f"ltxq/.queues/{ledger.queue_id()}"
    assert set(storage.list()) == {*old[4:-1], young, mark}
    assert operator.clean(remove=True).objects == 0


def test_a_bucket_where_another_queue_has_clips_is_left_alone(
    operator: Operator, settings: Settings, bucket: S3Server, tmp_path: Path
) -> None:
    storage = Storage.from_settings(settings)
    anothers = storage.clip_keys(f"{new_job_id()}/{1:016x}").clip
    place(tmp_path, bucket, anothers, days=90)
    storage.mark("ltxq/.queues/0123456789abcdef")
    with pytest.raises(BucketShared, match=r"delete ltxq/\.queues/0123456789abcdef"):
        operator.clean(remove=True)
    assert exists(storage, anothers)


def test_a_supervisor_cleans_by_itself_and_one_of_the_fleet_at_a_time(
    ledger: Ledger, settings: Settings, redis_url: str, bucket: S3Server, tmp_path: Path
) -> None:
    storage = Storage.from_settings(settings)
    orphan = storage.clip_keys(f"{new_job_id()}/{1:016x}").clip
    place(tmp_path, bucket, orphan, days=9)
    with Fleet(worker_environment(redis_url, bucket, tmp_path / "spool")) as fleet:
        fleet.wait_for("removed 1 object, 0.0 MB without a job")
    assert not exists(storage, orphan)
    assert not ledger.sweeper.may_clean(60)


def test_an_operators_command_needs_the_queue_itself() -> None:
    settings = Settings().model_copy(update={"url": SecretStr("https://ltxq.example.com")})
    with pytest.raises(ConfigurationError, match="names a gateway"):
        Operator(settings)


def test_the_commands_show_it_to_a_person_and_to_a_program(
    settings: Settings,
    ledger: Ledger,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LTXQ_URL", redis_url)
    assert cli.main(["workers"]) == 0
    assert "Start one with: ltxq worker" in capsys.readouterr().err
    ledger.fleet.heartbeat("instant", "a", {"gpu0@a": "ready"})
    submit(ledger)
    assert cli.main(["queue"]) == 0
    assert "normal         1 queued, the oldest for 0." in capsys.readouterr().out
    assert cli.main(["drain", "a"]) == 0
    assert cli.main(["drain", "b", "--json"]) == 2
    capsys.readouterr()
    assert cli.main(["drain", "a", "--wait", "--wait-timeout", "0"]) == 5
    assert "gpu0@a still at work" in capsys.readouterr().err
    ledger.fleet.heartbeat("instant", "a", {"gpu0@a": "drained"})
    assert cli.main(["drain", "a", "--wait"]) == 0
    capsys.readouterr()
    assert cli.main(["workers"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split() == ["gpu0@a", "instant", "drained", "now", "no", "job"]
    assert "ltxq drain a --undo" in err
    assert cli.main(["workers", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["workers"][0]["state"], shown["draining"]) == ("drained", ["a"])
