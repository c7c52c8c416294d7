"""What a watcher of a job does next, by a clock of the test's."""

from __future__ import annotations

import pytest

from ltxq import Client
from ltxq.client.job_watch import OUTAGE_PATIENCE, JobWatch
from ltxq.errors import WaitTimeout
from ltxq.job import Job
from ltxq.testing import MemoryTransport


@pytest.fixture
def job() -> Job:
    return Client(transport=MemoryTransport()).submit("a fox")


def test_a_job_is_shown_first_and_at_each_change(job: Job) -> None:
    watch = JobWatch(now=0)
    assert watch.changed(job)
    assert not watch.changed(job)
    assert not watch.changed(job.model_copy(update={"eta_seconds": 7.0}))
    assert watch.changed(job.model_copy(update={"queue_position": 3}))


def test_an_outage_is_survived_for_a_minute_and_not_before_the_first_reading(job: Job) -> None:
    watch = JobWatch(now=0)
    assert not watch.survives_outage(0)
    watch.changed(job)
    assert watch.survives_outage(10)
    assert watch.survives_outage(10 + OUTAGE_PATIENCE)
    assert not watch.survives_outage(11 + OUTAGE_PATIENCE)
    watch.changed(job)
    assert watch.survives_outage(12 + OUTAGE_PATIENCE), "a reading ends the outage"


def test_a_pause_ends_at_the_timeout(job: Job) -> None:
    watch = JobWatch(now=0, timeout=5)
    watch.changed(job)
    assert (watch.pause(2, now=1), watch.pause(2, now=4)) == (2, 1)
    with pytest.raises(WaitTimeout, match="still queued after 5 s"):
        watch.pause(2, now=5)
    assert JobWatch(now=0).pause(2, now=10**6) == 2
