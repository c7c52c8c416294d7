"""A bucket that other programs use too, and task ids that are names of their folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from celery import Celery

from fleet import PATIENCE, SMALL, Fleet, eventually
from ltxq import Client
from ltxq.errors import JobNotFound
from ltxq.ledger import PREFIX, queue_name
from ltxq.storage import Storage
from servers import S3, exists
from variants import variants


def is_gone(client: Client, job_id: str) -> bool:
    try:
        client.get(job_id)
    except JobNotFound:
        return True
    return False


@pytest.mark.parametrize("end", variants("deleted", extended=("expired",)))
def test_a_jobs_end_takes_nothing_but_its_own_objects(
    own: dict[str, str], redis_url: str, client: Client, server: redis.Redis, s3: S3, end: str
) -> None:
    job_id = f"backups-{end}"
    storage = Storage.from_settings(s3.settings())
    others = [f"{job_id}/2026/db.dump", f"{job_id}/1/clip.mp4", f"ltxq/{job_id}/notes.txt"]
    for key in others:
        storage.put(key, Path(__file__), "text/plain")
    with Fleet(own) as fleet, Celery(broker=redis_url, set_as_current=False) as plain:
        fleet.wait_until_ready()
        request = {"prompt": "a fox", **SMALL}
        plain.send_task(
            "ltxq.generate",
            task_id=job_id,
            kwargs={"request": request},
            queue=queue_name("instant"),
        )
        eventually(lambda: not is_gone(client, job_id))
        clip = client.wait(job_id, PATIENCE).result_or_raise().key
        assert clip.startswith(f"ltxq/{job_id}/")
        if end == "deleted":
            client.delete(job_id)
        else:
            server.zadd(f"{PREFIX}expiry", {job_id: 0})
            eventually(lambda: is_gone(client, job_id))
        eventually(lambda: not exists(storage, clip))
        assert all(exists(storage, key) for key in others)
        assert list(storage.list(f"{job_id}/")) == [others[-1]]


def test_nothing_outside_the_prefix_can_be_deleted(s3: S3) -> None:
    storage = Storage.from_settings(s3.settings())
    storage.put("holidays/2026.jpg", Path(__file__), "image/jpeg")
    with pytest.raises(ValueError, match="not under 'ltxq/'"):
        storage.delete(["ltxq/x", "holidays/2026.jpg"])
    storage.delete_clips(["../holidays/2026.jpg", "holidays", "", "a/b/c", "/holidays"])
    assert exists(storage, "holidays/2026.jpg")
