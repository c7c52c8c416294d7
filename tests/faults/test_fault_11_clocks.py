"""Worker hosts whose clocks are minutes off: leases are kept by Redis's clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet import PATIENCE, SMALL, Fleet, eventually, wait_until_running
from ltxq import Client

LEASE = 2


def host(own: dict[str, str], name: str, clock: float) -> Fleet:
    """A host whose clock is `clock` seconds off."""
    return Fleet(
        {
            **own,
            "LTXQ_LEASE": str(LEASE),
            "LTXQ_INSTANT_SECONDS": str(3 * LEASE),
            "PYTHONPATH": str(Path(__file__).with_name("wrong_clock")),
            "LTXQ_TEST_CLOCK": str(clock),
        },
        name=name,
    )


@pytest.mark.extended
def test_no_lease_is_taken_early_or_kept_too_long(own: dict[str, str], client: Client) -> None:
    with host(own, "early", -600) as early:
        early.wait_until_ready()
        job = wait_until_running(client, client.submit("a fox", **SMALL))
        with host(own, "late", 600) as late:  # its sweeps see a lease that ended long ago
            late.wait_until_ready()
            done = client.wait(job.id, PATIENCE)
            assert (done.state, done.attempts, done.worker) == ("succeeded", 1, "cpu0@early")

            lost = client.submit("a bear", **SMALL)
            eventually(lambda: client.get(lost.id).worker)
            first = early if client.get(lost.id).worker == "cpu0@early" else late
            (worker,) = first.workers()
            first.supervisor.kill()
            worker.kill()
            again = client.wait(lost.id, PATIENCE)  # the other finds the lease at its end
            assert (again.state, again.attempts) == ("succeeded", 2)
