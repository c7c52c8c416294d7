"""Storage is away, slow, full or says no; and what the spool keeps meanwhile."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
import redis
from broker import take_message

from fleet import (
    PATIENCE,
    SMALL,
    Fleet,
    eventually,
    fetch,
    wait_until_running,
    worker_environment,
)
from ltxq import Client
from ltxq.job import Job
from ltxq.ledger import PREFIX
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import S3Server
from proxy import Proxy
from servers import S3, moto_server, start_or_skip

SPOOL_JOBS = 2


class Storage:
    """rclone's S3 server of the test's own, which can go away and come back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.server = start_or_skip(lambda: S3Server.start(folder))

    def go_away(self) -> None:
        self.server.stop()

    def come_back(self) -> None:
        keys = self.server.credentials
        self.server = S3Server.start(
            self._folder,
            port=self.server.port,
            access_key=keys["AWS_ACCESS_KEY_ID"],
            secret_key=keys["AWS_SECRET_ACCESS_KEY"],
        )


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    made = Storage(tmp_path / "s3")
    for name, value in made.server.credentials.items():
        monkeypatch.setenv(name, value)
    yield made
    made.go_away()


@pytest.fixture
def environment(redis_url: str, storage: Storage, tmp_path: Path) -> dict[str, str]:
    return {
        **worker_environment(redis_url, storage.server, tmp_path / "spool"),
        "LTXQ_SPOOL_JOBS": str(SPOOL_JOBS),
        "LTXQ_INSTANT_SECONDS": "0.5",
    }


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    """A client that knows no bucket: it hands out the URLs as the worker signed them."""
    with Client(settings=Settings(url=redis_url, default_model="instant")) as made:
        yield made


def emptied_and_deleted(s3: Any, bucket: str) -> bool:
    for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", ()):
        s3.delete_object(Bucket=bucket, Key=entry["Key"])
    try:
        s3.delete_bucket(Bucket=bucket)
    except s3.exceptions.ClientError:  # BucketNotEmpty: again
        return False
    return True


def succeeds_once(client: Client, job: Job) -> None:
    done = client.wait(job.id, PATIENCE)
    assert (done.state, done.attempts) == ("succeeded", 1)
    result = done.result_or_raise()
    assert hashlib.sha256(fetch(result.url)).hexdigest() == result.sha256


def test_away_clips_are_kept_up_to_the_spools_bound_and_uploaded_later(
    environment: dict[str, str], client: Client, storage: Storage, tmp_path: Path
) -> None:
    with Fleet(environment) as fleet:
        fleet.wait_until_ready()
        jobs = [client.submit(f"fox {i}", **SMALL) for i in range(SPOOL_JOBS + 3)]
        wait_until_running(client, jobs[0])
        storage.go_away()
        said = fleet.wait_for("No more jobs are taken: the spool holds as many finished clips as.*")
        assert f"LTXQ_SPOOL_JOBS={SPOOL_JOBS}" in said[0]
        assert "The storage cannot be reached" in fleet.log
        states = [client.get(job.id).state for job in jobs]
        assert states == ["running"] * (SPOOL_JOBS + 1) + ["queued"] * 2
        spool = tmp_path / "spool" / "cpu0_host"
        eventually(lambda: len(list(spool.glob("clip-*/clip.mp4"))) == SPOOL_JOBS + 1)
        storage.come_back()
        fleet.wait_for("Storage answers: jobs are taken again")
        for job in jobs:
            succeeds_once(client, job)
        assert fleet.log.count("No more jobs are taken") == 1
        assert fleet.stop() == 0
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["cpu0_host.lock"]


def test_away_for_longer_than_a_clip_is_kept_its_job_alone_fails(
    environment: dict[str, str], client: Client, storage: Storage, tmp_path: Path
) -> None:
    with Fleet({**environment, "LTXQ_UPLOAD_PATIENCE": "1"}) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        storage.go_away()
        failed = client.wait(job.id, PATIENCE)
        assert failed.error is not None
        assert (failed.error.code, failed.error.retryable) == ("storage_unavailable", True)
        assert "cannot be reached" in failed.error.message
        assert not list((tmp_path / "spool" / "cpu0_host").iterdir())
        storage.come_back()
        succeeds_once(client, client.submit("a bear", **SMALL))


def test_away_at_sigterm_the_worker_waits_and_uploads(
    environment: dict[str, str], client: Client, storage: Storage
) -> None:
    with Fleet(environment) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        storage.go_away()
        fleet.wait_for(f"{job.id} waits for storage")
        fleet.supervisor.terminate()
        fleet.wait_for("draining")
        storage.come_back()
        assert fleet.supervisor.wait(PATIENCE) == 0
        succeeds_once(client, job)


def test_away_at_a_second_sigterm_the_job_is_given_back(
    environment: dict[str, str], client: Client, storage: Storage, tmp_path: Path
) -> None:
    with Fleet(environment) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        storage.go_away()
        fleet.wait_for(f"{job.id} waits for storage")
        fleet.supervisor.terminate()
        fleet.wait_for("draining")
        assert fleet.stop() == 0
    assert client.get(job.id).state == "queued"
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["cpu0_host.lock"]


@pytest.mark.extended
def test_spool_files_of_a_dead_process_are_removed_and_their_job_runs_again(
    environment: dict[str, str], client: Client, storage: Storage, tmp_path: Path
) -> None:
    spool = tmp_path / "spool" / "cpu0_host"
    with Fleet(environment) as fleet:
        fleet.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        storage.go_away()
        fleet.wait_for(f"{job.id} waits for storage")
        (left,) = spool.iterdir()
        fleet.workers()[0].kill()
        storage.come_back()
        done = client.wait(job.id, PATIENCE)
        assert (done.state, done.attempts) == ("succeeded", 2)
        assert not left.exists()


@pytest.mark.extended
def test_storage_that_hangs_holds_up_no_sweep_and_loses_no_object(
    environment: dict[str, str], client: Client, storage: Storage, tmp_path: Path, redis_url: str
) -> None:
    with (
        Fleet(environment) as fleet,
        redis.Redis.from_url(redis_url, socket_timeout=5) as server,
    ):
        fleet.wait_until_ready()
        old = client.wait(client.submit("old", **SMALL).id, PATIENCE)
        deleted = client.wait(client.submit("deleted", **SMALL).id, PATIENCE)
        hung = psutil.Process(storage.server.process.pid)
        hung.suspend()
        try:
            server.zadd(f"{PREFIX}expiry", {old.id: 0})  # past its retention
            client.delete(deleted.id)  # this client does not know the bucket
            eventually(lambda: not client.get_many([old.id]))  # its objects are garbage now
            busy = wait_until_running(client, client.submit("wait", **SMALL))
            lost = client.submit("a fox", **SMALL)
            take_message(server, lost.id)
            eventually(lambda: client.get(lost.id).progress, within=15)  # the sweep found it
            assert list((tmp_path / "s3").rglob(f"{old.id}/*/*"))
        finally:
            hung.resume()
        for job in (busy, lost):
            succeeds_once(client, job)
        for job in (old, deleted):
            eventually(lambda job=job: not list((tmp_path / "s3").rglob(f"{job.id}/*/*")))
        assert not server.exists(f"{PREFIX}garbage")


@pytest.mark.extended
def test_slow_storage_does_not_hold_up_the_gpu(
    environment: dict[str, str], client: Client, storage: Storage
) -> None:
    slow = Proxy(storage.server.port, pause=0.3)
    try:
        with Fleet({**environment, "LTXQ_S3_ENDPOINT": f"http://127.0.0.1:{slow.port}"}) as fleet:
            fleet.wait_until_ready()
            jobs = [client.submit(f"fox {i}", **SMALL) for i in range(3)]
            for job in jobs:
                done = client.wait(job.id, PATIENCE)
                assert (done.state, done.attempts) == ("succeeded", 1)
            first, second = (client.get(job.id) for job in jobs[:2])
            assert second.started_at is not None
            assert first.finished_at is not None
            assert second.started_at < first.finished_at  # made while the first was uploaded
    finally:
        slow.stop()


def test_full_storage_is_waited_for(
    own: dict[str, str], client: Client, moto: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """507, as MinIO says it, from a server in this process that keeps nothing until it has room."""
    import moto.s3.responses as responses

    room = threading.Event()
    put = responses.S3Response.put_object

    def put_if_there_is_room(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        return put(self, *args, **kwargs) if room.is_set() else (507, {}, "XMinioStorageFull")

    monkeypatch.setattr(responses.S3Response, "put_object", put_if_there_is_room)
    with moto_server() as endpoint, closing(boto3.Session().client("s3", endpoint_url=endpoint)):
        environment = {**own, **moto.worker_environment, "LTXQ_S3_ENDPOINT": endpoint}
        room.set()
        with Fleet(environment) as fleet:
            fleet.wait_until_ready()
            room.clear()
            job = client.submit("a fox", **SMALL)
            fleet.wait_for(f"{job.id} waits for storage: The storage is full")
            room.set()
            done = client.wait(job.id, PATIENCE)
            assert (done.state, done.attempts) == ("succeeded", 1)


def test_a_missing_bucket_fails_the_job_at_once_with_the_reason(
    own: dict[str, str], client: Client, moto: S3
) -> None:
    with Fleet({**own, **moto.worker_environment}) as fleet:
        fleet.wait_until_ready()
        with closing(boto3.Session().client("s3", endpoint_url=moto.endpoint)) as s3:
            eventually(lambda: emptied_and_deleted(s3, moto.bucket))  # its supervisor marks it
        failed = client.wait(client.submit("a fox", **SMALL).id, PATIENCE)
    assert failed.error is not None
    assert (failed.error.code, failed.error.retryable) == ("storage_unavailable", False)
    assert "NoSuchBucket" in failed.error.message
    assert failed.attempts == 1


def test_wrong_credentials_fail_the_job_at_once_with_the_reason(
    environment: dict[str, str], client: Client, storage: Storage, tmp_path: Path
) -> None:
    with Fleet(environment) as fleet:
        fleet.wait_until_ready()
        storage.go_away()
        keys = storage.server.credentials
        with S3Server.start(
            tmp_path / "s3",
            port=storage.server.port,
            access_key=keys["AWS_ACCESS_KEY_ID"],
            secret_key="another-secret-than-the-workers",
        ):
            failed = client.wait(client.submit("a fox", **SMALL).id, PATIENCE)
    assert failed.error is not None
    assert (failed.error.code, failed.error.retryable) == ("storage_unavailable", False)
    assert "SignatureDoesNotMatch" in failed.error.message
    assert "AWS_SECRET_ACCESS_KEY" in failed.error.hint


def test_a_worker_does_not_start_without_its_bucket(environment: dict[str, str]) -> None:
    with Fleet({**environment, "LTXQ_S3_BUCKET": "no-such-bucket"}) as fleet:
        assert fleet.supervisor.wait(PATIENCE) == 1
        fleet.wait_for("NoSuchBucket")
    eventually(lambda: "Create the bucket, or correct LTXQ_S3_BUCKET" in fleet.log)
