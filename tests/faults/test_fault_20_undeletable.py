"""Objects that the storage refuses to delete: they block nothing, and are counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import redis

from fleet import PATIENCE, SMALL, Fleet, eventually
from ltxq import Client
from ltxq.errors import JobNotFound
from ltxq.ledger import PREFIX, Ledger
from ltxq.ops import orphans
from ltxq.ops.storage_checks import check_undeleted
from ltxq.settings import Settings
from ltxq.storage import Storage
from servers import S3
from strict_s3 import StrictS3, keeps


@pytest.fixture
def front(moto: S3) -> Iterator[StrictS3]:
    with StrictS3(moto.endpoint) as strict:
        yield strict


@pytest.fixture
def settings(redis_url: str, front: StrictS3) -> Settings:
    return Settings(
        url=redis_url, default_model="instant", s3_endpoint=front.endpoint, s3_bucket="clips"
    )


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    with closing(Ledger(settings)) as made:
        yield made


def claims_of(front: StrictS3, settings: Settings, job_id: str) -> set[str]:
    keys = Storage.from_settings(settings).list(f"{job_id}/")
    return {key.removeprefix("ltxq/").rpartition("/")[0] for key in keys}


def test_one_undeletable_clip_keeps_no_record_and_blocks_no_other_deletion(
    own: dict[str, str],
    moto: S3,
    front: StrictS3,
    settings: Settings,
    redis_url: str,
    ledger: Ledger,
    server: redis.Redis,
) -> None:
    knows_no_bucket = Settings(url=redis_url, default_model="instant")
    environment = {**own, **moto.worker_environment, "LTXQ_S3_ENDPOINT": front.endpoint}
    with Fleet(environment) as fleet, Client(settings=knows_no_bucket) as client:
        fleet.wait_until_ready()
        kept, expired, deleted = (
            client.wait(client.submit(f"fox {n}", **SMALL).id, PATIENCE) for n in range(3)
        )
        (claim,) = claims_of(front, settings, kept.id)
        front.rules.append(keeps(f"{kept.id}/"))
        server.zadd(f"{PREFIX}expiry", {kept.id: 0, expired.id: 0})
        client.delete(deleted.id)
        for job in (expired, deleted):
            eventually(lambda job=job: not claims_of(front, settings, job.id))
        eventually(lambda: ledger.sweeper.undeleted() == (1, (claim,)))
        with pytest.raises(JobNotFound):
            client.get(kept.id)
        assert claims_of(front, settings, kept.id) == {claim}
        fleet.wait_for(f"Files under {claim} stay: .*AccessDenied")
        (finding,) = check_undeleted(settings)
        assert finding.status == "warning"
        assert claim in finding.message
        assert ledger.fleet.figures().undeleted == 1
        # It is tried again, and the storage has changed its mind.
        front.rules.clear()
        server.zadd(f"{PREFIX}garbage", {claim: 0})
        eventually(lambda: not claims_of(front, settings, kept.id))
        eventually(lambda: ledger.sweeper.undeleted() == (0, ()))
        assert not server.exists(f"{PREFIX}garbage", f"{PREFIX}undeleted")


def test_a_claim_is_given_up_when_the_search_for_orphans_has_found_it(
    settings: Settings, server: redis.Redis, ledger: Ledger
) -> None:
    claim = f"video_1/{1:016x}"
    server.zadd(f"{PREFIX}garbage", {claim: 0})
    ledger.sweeper.garbage_refused([claim])
    assert ledger.sweeper.take_garbage() == ((), False)  # not now
    assert server.zcard(f"{PREFIX}garbage") == 1
    server.zadd(f"{PREFIX}undeleted", {claim: 0})  # since 1970
    ledger.sweeper.garbage_refused([claim])
    assert server.zcard(f"{PREFIX}garbage") == 0
    assert ledger.sweeper.undeleted() == (1, (claim,))


def test_orphans_that_stay_are_counted_until_they_are_gone(
    settings: Settings,
    front: StrictS3,
    ledger: Ledger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = Storage.from_settings(settings)
    claims = [f"video_{n}/{n:016x}" for n in (1, 2, 3)]
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"x" * 10)
    for claim in claims:
        storage.put(storage.clip_keys(claim).clip, file, "video/mp4")

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):  # type: ignore[no-untyped-def]
            return super().now(tz) + timedelta(days=30)

    storage.put("ltxq/.check/left-by-a-start", file, "text/plain")
    monkeypatch.setattr(orphans, "datetime", Later)
    front.rules.append(keeps("video_2/"))
    found = orphans.clean(ledger, storage, settings.retention)
    assert (found.objects, found.refused) == (3, 1)
    assert not list(storage.list(".check/"))
    assert list(storage.list("video_")) == [storage.clip_keys(claims[1]).clip]
    assert ledger.sweeper.undeleted() == (1, (claims[1],))
    front.rules.clear()
    found = orphans.clean(ledger, storage, settings.retention)
    assert (found.objects, found.refused) == (1, 0)
    assert ledger.sweeper.undeleted() == (0, ())
