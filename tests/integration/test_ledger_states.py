"""The ledger as a state machine: whatever order of steps hypothesis thinks of, on a real Redis,
agrees with a model of a few lines, and the indexes agree with the records.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from test_ledger import FAILED, HALF, let_time_pass, result

from ltxq.errors import JobNotFound
from ltxq.job import FINAL_STATES, Job, VideoRequest, new_job_id
from ltxq.ledger import BANDS, CANCELLED, PREFIX, Claim, Ledger, queue_name
from ltxq.settings import Settings

MAX_LOST = 2
WORKERS = st.sampled_from(["w1", "w2"])


@dataclass
class Model:
    """What a job must be."""

    state: str = "queued"
    nonce: str = ""  # of its claim, while or since it has one
    attempts: int = 0
    band: int = 1
    lost: int = 0
    cancel: bool = False
    on_gpu: bool = True
    worker: str = ""
    webhook: bool = False  # has one that nobody was told of yet
    finishes: list[str] = field(default_factory=list)


class Ledgers(RuleBasedStateMachine):
    """Clients, workers and supervisors doing anything at any time."""

    url: str  # set by the test

    submitted: Bundle[Job] = Bundle("submitted")
    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.redis = redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=5)
        self.redis.flushdb()
        self.ledger = Ledger(Settings(url=self.url, max_lost=MAX_LOST))
        self.jobs: dict[str, Model] = {}  # as clients see them
        self.withdrawn: dict[str, Model] = {}  # deleted, and their workers have not let go

    def teardown(self) -> None:
        self.ledger.close()
        self.redis.close()

    # --- clients --------------------------------------------------------------------------

    @rule(target=submitted, priority=st.sampled_from(list(BANDS)), webhook=st.booleans())
    def submit(self, priority: str, webhook: bool) -> Job:
        fields = {"webhook_url": "https://example.com/"} if webhook else {}
        request = VideoRequest.parse(
            {"seed": 42, "prompt": "x", "model": "m", "priority": priority, **fields}
        )
        job_id = new_job_id()
        job = self.ledger.jobs.submit(job_id, request, owner="alice")
        assert job == self.ledger.jobs.get(job_id)
        assert self.ledger.jobs.submit(job_id, request, owner="alice") == job
        self.jobs[job_id] = Model(webhook=webhook, band=BANDS[priority])
        return job

    @rule(submitted=submitted)
    def send_a_deleted_one_again(self, submitted: Job) -> None:
        if submitted.id not in self.jobs:
            request = VideoRequest(seed=42, prompt="x", model="m")
            again = self.ledger.jobs.submit(submitted.id, request, owner="alice")
            assert again.state == "queued"
            self.withdrawn.pop(submitted.id, None)
            self.jobs[submitted.id] = Model()

    @rule(submitted=submitted)
    def cancel(self, submitted: Job) -> None:
        job = self.jobs.get(submitted.id)
        if job is None:
            with pytest.raises(JobNotFound):
                self.ledger.jobs.cancel(submitted.id)
            return
        if job.state == "queued":
            job.state = "cancelled"
        job.cancel = job.cancel or job.state == "running"
        assert self.ledger.jobs.cancel(submitted.id) == job.state

    @rule(submitted=submitted)
    def delete(self, submitted: Job) -> None:
        job = self.jobs.get(submitted.id)
        if job is None:
            with pytest.raises(JobNotFound):
                self.ledger.jobs.delete(submitted.id)
        else:
            deleted = self.ledger.jobs.delete(submitted.id)
            assert deleted.unfinished == (job.state not in FINAL_STATES)
            made = job.state == "succeeded" or (job.state == "queued" and job.attempts > 0)
            assert bool(deleted.claims) == made
            del self.jobs[submitted.id]
            if job.state == "running":
                job.cancel = True
                self.withdrawn[submitted.id] = job

    # --- workers; a wake-up may arrive any number of times, or never -------------------------

    @rule(target=claims, worker=WORKERS)
    def claim(self, worker: str) -> Claim:
        nonce = secrets.token_hex(8)
        claimed = self.ledger.claims.take("m", worker, nonce=nonce)
        # The call of a lost reply is repeated.
        assert claimed == self.ledger.claims.take("m", worker, nonce=nonce)
        waiting = [i for i, job in self.jobs.items() if job.state == "queued"]
        if claimed is None:
            assert not waiting
            request = VideoRequest(seed=42, prompt="x")  # a claim nobody was given
            return Claim(job_id="video_none", nonce="", attempt=99, request=request, waited=0)
        job = self.jobs[claimed.job_id]
        assert job.state == "queued"
        assert job.band == min(self.jobs[i].band for i in waiting)
        job.state, job.worker, job.on_gpu, job.nonce = "running", worker, True, nonce
        job.attempts += 1
        assert claimed.attempt == job.attempts
        return claimed

    @rule(claim=claims, on_gpu=st.booleans())
    def report(self, claim: Claim, on_gpu: bool) -> None:
        standing = self.ledger.claims.report(claim, HALF, on_gpu=on_gpu)
        assert standing == self.ledger.claims.renew(claim) == self._standing(claim)
        if standing != "lost":
            self._held(claim).on_gpu = on_gpu

    @rule(claim=claims, how=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def finish(self, claim: Claim, how: str) -> None:
        job = self.jobs.get(claim.job_id)
        outcome = {"succeeded": result(claim), "failed": FAILED, "cancelled": CANCELLED}[how]
        standing = self._standing(claim)
        stands = self.ledger.claims.finish(claim, outcome)
        if self._withdrawn(claim):
            assert not stands
            del self.withdrawn[claim.job_id]
        elif standing != "lost":
            assert job is not None
            job.state = how
            job.finishes.append(how)
            assert stands
        else:  # refused, unless it is the very outcome that this claim's job has
            same = job is not None and job.nonce == claim.nonce and job.state == how
            assert stands == same

    @rule(claim=claims, charged=st.booleans())
    def give_back(self, claim: Claim, charged: bool) -> None:
        held = self._standing(claim) != "lost"
        returned = self.ledger.claims.give_back(claim, charged=charged)
        if self._withdrawn(claim):
            assert returned.state == "lost"
            del self.withdrawn[claim.job_id]
        elif held:
            self._take_back(self.jobs[claim.job_id], charged)
            assert returned.state == self.jobs[claim.job_id].state

    # --- supervisors ------------------------------------------------------------------------

    @rule(worker=WORKERS)
    def lose_worker(self, worker: str) -> None:
        theirs = {
            i
            for i, job in [*self.jobs.items(), *self.withdrawn.items()]
            if job.state == "running" and job.worker == worker
        }
        for returned in self.ledger.claims.give_back_all(worker):
            theirs.remove(returned.job_id)
            if self.withdrawn.pop(returned.job_id, None):
                assert returned.state == "lost"
                continue
            job = self.jobs[returned.job_id]
            self._take_back(job, job.on_gpu)
            assert returned.state == job.state
        assert not theirs

    @rule(leases=st.booleans())
    def sweep_after_a_while(self, leases: bool) -> None:
        let_time_pass(self.redis, leases=leases)
        running = [job for job in self.jobs.values() if job.state == "running"]
        swept = self.ledger.sweeper.sweep()
        if leases:
            for job in running:
                self._take_back(job, job.on_gpu)
        ended = len(running) + len(self.withdrawn) if leases else 0
        assert len(swept.lease_ended) == ended
        if leases:
            self.withdrawn.clear()

    @rule()
    def lose_messages(self) -> None:
        """Three sweeps on, there are as many again as jobs wait."""
        queued = [job for job in self.jobs.values() if job.state == "queued"]
        self.redis.delete(queue_name("m"))
        for _ in range(3):
            let_time_pass(self.redis, leases=False)
            self.ledger.sweeper.sweep()
        assert self.redis.llen(queue_name("m")) == len(queued)

    @rule(delivered=st.booleans())
    def send_webhook(self, delivered: bool) -> None:
        delivery = self.ledger.outbox.take(lease=60)
        due = [job for job in self.jobs.values() if job.webhook and job.state in FINAL_STATES]
        assert (delivery is not None) == bool(due)
        if delivery and delivered:
            self.jobs[delivery.job_id].webhook = False
            self.ledger.outbox.delivered(delivery)
        elif delivery:
            self.ledger.outbox.failed(delivery, "away", again_in=0)

    # --- what holds at all times ------------------------------------------------------------

    @invariant()
    def records_agree_with_the_model(self) -> None:
        for job_id, model in self.jobs.items():
            job = self.ledger.jobs.get(job_id)
            assert (job.state, job.attempts) == (model.state, model.attempts)
            assert job.cancel_requested == (model.state == "running" and model.cancel)
            assert (job.result is not None) == (job.state == "succeeded")
            assert (job.error is not None) == (job.state in ("failed", "cancelled"))
            assert len(model.finishes) <= 1

    @invariant()
    def a_deleted_job_is_gone(self) -> None:
        listed = {job.id for job in self.ledger.jobs.list(limit=100).jobs}
        assert len(self.jobs) > 100 or listed == set(self.jobs)
        for job_id in self.withdrawn:
            with pytest.raises(JobNotFound):
                self.ledger.jobs.get(job_id)

    @invariant()
    def indexes_agree_with_the_records(self) -> None:
        def members(pattern: str) -> list[str]:
            keys = self.redis.scan_iter(PREFIX + pattern, count=1000)
            return sorted(i for key in keys for i in self.redis.zrange(key, 0, -1))

        def jobs(*states: str) -> list[str]:
            return sorted(i for i, job in self.jobs.items() if job.state in states)

        for state in ("queued", "running", *FINAL_STATES):
            assert members(f"state:{state}") == jobs(state)
            assert members(f"owned:*:{state}") == jobs(state)
        assert sorted(m[16:] for m in members("waiting:*")) == jobs("queued")
        assert members("running") == sorted([*jobs("running"), *self.withdrawn])
        held = f"{PREFIX}held:"
        theirs = {k: self.redis.smembers(k) for k in self.redis.scan_iter(f"{held}*", count=1000)}
        working: dict[str, set[str]] = {}
        running = {i: job for i, job in self.jobs.items() if job.state == "running"}
        for job_id, job in [*running.items(), *self.withdrawn.items()]:
            working.setdefault(held + job.worker, set()).add(job_id)
        assert theirs == working
        due = sorted(i for i in jobs(*FINAL_STATES) if self.jobs[i].webhook)
        assert members("webhooks:*") == due
        assert members("webhooks") == (["example.com"] if due else [])
        assert members("expiry") == members("unreported") == jobs(*FINAL_STATES)

    def _standing(self, claim: Claim) -> str:
        job = self.jobs.get(claim.job_id) or self.withdrawn.get(claim.job_id)
        if job is None or job.state != "running" or job.nonce != claim.nonce:
            return "lost"
        return "cancel" if job.cancel else "held"

    def _held(self, claim: Claim) -> Model:
        return self.jobs.get(claim.job_id) or self.withdrawn[claim.job_id]

    def _withdrawn(self, claim: Claim) -> bool:
        job = self.withdrawn.get(claim.job_id)
        return job is not None and job.nonce == claim.nonce

    def _take_back(self, job: Model, charged: bool) -> None:
        job.lost += charged
        if job.cancel:
            job.state = "cancelled"
        elif charged and job.lost >= MAX_LOST:
            job.state = "failed"
        else:
            job.state = "queued"


def test_any_order_of_steps_keeps_every_promise(redis_url: str) -> None:
    class Here(Ledgers):
        url = redis_url

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
