"""A call that never comes back from the GPU."""

from __future__ import annotations

from fleet import PATIENCE, SMALL, Fleet
from ltxq import Client


def test_the_job_is_ended_at_its_time_limit_retried_and_fails_as_timed_out(
    misbehaving: dict[str, str], client: Client
) -> None:
    with Fleet({**misbehaving, "LTXQ_MAX_LOST": "2"}) as fleet:
        fleet.wait_until_ready()
        (hung,) = fleet.workers()
        hanging = client.submit("hang", timeout=1, **SMALL)
        after = client.submit("a fox", **SMALL)
        done = client.wait(hanging.id, PATIENCE)
        assert done.error is not None
        assert (done.error.code, done.attempts) == ("timed_out", 2)
        assert client.wait(after.id, PATIENCE).state == "succeeded"
        assert hung not in fleet.workers()
