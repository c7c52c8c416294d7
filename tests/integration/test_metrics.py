"""`/metrics`: what a real worker and the ledger tell Prometheus, and that the figures are true."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
import urllib3
from prometheus_client import CollectorRegistry, generate_latest

from fleet import PATIENCE, SMALL, Fleet, eventually, wait_until_running, worker_environment
from ltxq import Client
from ltxq.errors import ConfigurationError, JobError
from ltxq.job import Job, VideoRequest, new_job_id
from ltxq.ledger import PREFIX, WORKER_LOST, Claim, Ledger, queue_name
from ltxq.ops.metrics import FleetCollector, MetricsServer, new_registry
from ltxq.settings import Address, Settings
from ltxq_worker.embedded.servers import RedisServer, S3Server, free_port
from ltxq_worker.process.stats import MOST_TIMINGS, WorkerStats
from scrape import Scrape
from servers import S3, start_or_skip

FAILED = JobError(code="out_of_memory", message="it is too large")


@pytest.fixture
def ledger(redis_url: str) -> Iterator[Ledger]:
    made = Ledger(Settings(url=redis_url))
    yield made
    made.close()


def told(ledger: Ledger) -> Scrape:
    """What the ledger's part of `/metrics` says now."""
    registry = CollectorRegistry()
    registry.register(FleetCollector(ledger, default_model="instant"))
    return Scrape.read(generate_latest(registry).decode())


def submit(ledger: Ledger, **fields: Any) -> Job:
    request = VideoRequest.parse({"seed": 42, "prompt": "a fox", "model": "instant", **fields})
    return ledger.jobs.submit(new_job_id(), request)


def claim(ledger: Ledger, job: Job) -> Claim:
    claimed = ledger.claims.take("instant", "w")
    assert claimed
    return claimed


def test_depth_and_age_are_told_by_priority(ledger: Ledger, redis_url: str) -> None:
    submit(ledger, priority="low")
    old = submit(ledger, priority="high")
    submit(ledger, priority="high")
    with redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=5) as server:
        name = f"{PREFIX}job:{old.id}"
        server.hset(name, "submitted", int(server.hget(name, "submitted")) - 90_000)
    now = told(ledger)
    depth = {p: now.value("ltxq_queue_depth", priority=p) for p in ("high", "normal", "low")}
    assert depth == {"high": 2, "normal": 0, "low": 1}
    age = now.value("ltxq_queue_oldest_age_seconds", model="instant", priority="high")
    assert age is not None
    assert 90 <= age < 90 + PATIENCE
    assert now.value("ltxq_queue_oldest_age_seconds", priority="normal") == 0
    claim(ledger, old)
    now = told(ledger)
    assert now.value("ltxq_running_jobs") == 1
    assert now.value("ltxq_unfinished_jobs", model="instant") == 3


def test_every_event_is_counted_once_however_often_it_is_repeated(ledger: Ledger) -> None:
    request = VideoRequest(
        seed=42, prompt="a fox", model="instant", webhook_url="https://x.example/"
    )
    for _ in range(2):
        ledger.jobs.submit("video_1", request)
    claimed = None
    for _ in range(2):
        claimed = ledger.claims.take("instant", "w", nonce="same")
    assert claimed
    for _ in range(2):
        assert ledger.claims.finish(claimed, FAILED)
    delivery = ledger.outbox.take(lease=10)
    assert delivery
    ledger.outbox.failed(delivery, "away", again_in=0)
    delivery = ledger.outbox.take(lease=10)
    assert delivery
    for _ in range(2):
        ledger.outbox.delivered(delivery)
    ledger.jobs.cancel(submit(ledger).id)
    now = told(ledger)
    assert now.value("ltxq_jobs_submitted_total") == 2
    assert now.value("ltxq_jobs_claimed_total") == 1
    assert now.value("ltxq_jobs_finished_total", state="failed", code="out_of_memory") == 1
    assert now.value("ltxq_jobs_finished_total", state="cancelled", code="") == 1
    assert now.value("ltxq_jobs_finished_total") == 2
    assert now.value("ltxq_webhook_attempts_total", outcome="failed") == 1
    assert now.value("ltxq_webhook_attempts_total", outcome="delivered") == 1


def test_why_jobs_are_queued_again_is_told(ledger: Ledger) -> None:
    lost = claim(ledger, submit(ledger))
    free = claim(ledger, submit(ledger))
    ledger.claims.give_back(lost, charged=True, why=WORKER_LOST)
    ledger.claims.give_back(free, charged=False)
    now = told(ledger)
    assert now.value("ltxq_jobs_requeued_total", reason="worker_lost") == 1
    assert now.value("ltxq_jobs_requeued_total", reason="given_back") == 1


def test_a_lease_that_ended_is_told_before_and_after_the_sweep(redis_url: str) -> None:
    with_short_leases = Ledger(Settings(url=redis_url, lease=1))
    claim(with_short_leases, submit(with_short_leases))
    with_short_leases.sweeper.sweep(interval=60)  # or the first sweep would extend it
    eventually(lambda: told(with_short_leases).value("ltxq_leases_overdue") == 1)
    with redis.Redis.from_url(redis_url, socket_timeout=5) as server:
        server.decrby(f"{PREFIX}swept", 40_000)
    with_short_leases.sweeper.sweep(interval=60)
    now = told(with_short_leases)
    assert now.value("ltxq_leases_overdue") == 0
    assert now.value("ltxq_jobs_requeued_total", reason="lease_ended") == 1
    age = now.value("ltxq_sweep_age_seconds")
    assert age is not None
    assert age < PATIENCE
    with_short_leases.close()


def test_models_that_strangers_make_up_share_one_label(ledger: Ledger) -> None:
    for number in range(20):
        submit(ledger, model=f"made-up-{number}")
    submit(ledger)
    now = told(ledger)
    assert now.labels("ltxq_queue_depth", "model") == {"instant", "other"}
    assert now.value("ltxq_queue_depth", model="other") == 20
    assert now.value("ltxq_jobs_submitted_total", model="other") == 20


@pytest.mark.extended
def test_without_redis_the_metrics_say_that_and_nothing_stale(tmp_path: Path) -> None:
    with start_or_skip(lambda: RedisServer.start(tmp_path)) as server:
        ledger = Ledger(Settings(url=server.url))
        assert told(ledger).value("ltxq_ledger_up") == 1
    assert told(ledger).names == {"ltxq_ledger_up"}
    assert told(ledger).value("ltxq_ledger_up") == 0
    ledger.close()


def test_counts_written_over_by_hand_cost_no_job_and_no_other_figure(
    ledger: Ledger, redis_url: str
) -> None:
    job = submit(ledger)
    with redis.Redis.from_url(redis_url, socket_timeout=5) as server:
        server.set(f"{PREFIX}totals:{queue_name('instant')}", "garbage")
    assert ledger.claims.finish(claim(ledger, job), FAILED)
    assert told(ledger).value("ltxq_queue_depth") == 0


# --- a real worker ------------------------------------------------------------------------


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def own(redis_url: str, s3_server: S3Server, tmp_path: Path, port: int) -> dict[str, str]:
    return {
        **worker_environment(redis_url, s3_server, tmp_path / "spool"),
        "LTXQ_METRICS_ADDRESS": f"127.0.0.1:{port}",
    }


@pytest.fixture
def client(redis_url: str, s3: S3) -> Iterator[Client]:
    with Client(settings=s3.settings(url=redis_url, default_model="instant")) as made:
        yield made


def status(port: int, path: str) -> int:
    return urllib3.request("GET", f"http://127.0.0.1:{port}{path}", timeout=PATIENCE).status


def test_a_workers_figures_are_true_and_outlive_its_process(
    own: dict[str, str], client: Client, port: int
) -> None:
    with Fleet({**own, "LTXQ_INSTANT_SECONDS": "0.3"}) as fleet:
        fleet.wait_until_ready()
        for _ in range(3):
            client.wait(client.submit("a fox", **SMALL).id, PATIENCE).result_or_raise()
        eventually(lambda: Scrape.of(port).value("ltxq_job_seconds_count") == 3)
        before = Scrape.of(port)
        busy = before.value("ltxq_worker_gpu_busy_seconds_total", worker="cpu0@host")
        assert busy is not None
        assert busy >= 3 * 0.3
        for stage in ("encode_text", "denoise", "decode", "encode", "upload"):
            assert before.value("ltxq_stage_seconds_count", stage=stage) == 3, stage
        denoised = before.value("ltxq_stage_seconds_sum", stage="denoise")
        assert denoised is not None
        assert 3 * 0.3 <= denoised <= busy
        assert before.value("ltxq_worker_ready", worker="cpu0@host") == 1
        assert (status(port, "/healthz"), status(port, "/readyz")) == (200, 200)

        fleet.worker("cpu0@host").kill()
        eventually(lambda: Scrape.of(port).value("ltxq_worker_ready") == 0)
        fleet.wait_until_ready(times=2)
        eventually(lambda: Scrape.of(port).value("ltxq_worker_ready") == 1)
        after = Scrape.of(port)
        assert after.value("ltxq_worker_starts_total") == 2
        assert after.value("ltxq_job_seconds_count") == 3
        assert (after.value("ltxq_worker_gpu_busy_seconds_total") or 0) >= busy


def test_a_job_on_the_gpu_is_busy_time_while_it_runs(
    own: dict[str, str], client: Client, port: int
) -> None:
    with Fleet({**own, "LTXQ_INSTANT_SECONDS": "60"}) as fleet:
        fleet.wait_until_ready()
        job = client.submit("a fox", **SMALL)
        wait_until_running(client, job)
        eventually(lambda: Scrape.of(port).value("ltxq_worker_jobs", phase="gpu") == 1)
        eventually(lambda: (Scrape.of(port).value("ltxq_worker_gpu_busy_seconds_total") or 0) > 1)
        eventually(lambda: Scrape.of(port).value("ltxq_workers", state="ready") == 1)
        fleet.worker("cpu0@host").kill()  # its successor has the job in a moment
        eventually(lambda: Scrape.of(port).value("ltxq_worker_jobs") == 0)
        client.cancel(job.id)
        client.wait(job.id, PATIENCE)


@pytest.mark.extended
def test_uploads_the_storage_does_not_take_are_counted_and_seen_on_the_spool(
    redis_url: str, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_or_skip(lambda: S3Server.start(tmp_path / "s3"))
    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)
    environment = {
        **worker_environment(redis_url, server, tmp_path / "spool"),
        "LTXQ_METRICS_ADDRESS": f"127.0.0.1:{port}",
        "LTXQ_INSTANT_SECONDS": "1",
    }
    with Fleet(environment) as fleet, Client(settings=Settings(url=redis_url)) as client:
        fleet.wait_until_ready()
        job = client.submit("a fox", model="instant", **SMALL)
        wait_until_running(client, job)
        server.stop()
        eventually(lambda: (Scrape.of(port).value("ltxq_worker_storage_failures_total") or 0) > 0)
        now = Scrape.of(port)
        assert now.value("ltxq_worker_jobs", phase="spool") == 1
        assert (now.value("ltxq_spool_used_bytes") or 0) > 1000
        client.cancel(job.id)
        client.wait(job.id, PATIENCE)


def test_nothing_listens_unless_it_is_asked_to(
    redis_url: str, s3_server: S3Server, tmp_path: Path
) -> None:
    import psutil

    with Fleet(worker_environment(redis_url, s3_server, tmp_path / "spool")) as fleet:
        fleet.wait_until_ready()
        processes = [psutil.Process(fleet.supervisor.pid), *fleet.workers()]
        kinds = [c.status for process in processes for c in process.net_connections("inet")]
        assert psutil.CONN_LISTEN not in kinds


# --- the parts ----------------------------------------------------------------------------


def test_an_address_in_use_is_a_clear_error() -> None:
    server = MetricsServer(Address("127.0.0.1", 0), new_registry(), {"/readyz": lambda: False})
    try:
        assert status(server.port, "/readyz") == 503
        assert status(server.port, "/secret") == 404
        with pytest.raises(ConfigurationError, match="cannot be listened on"):
            MetricsServer(Address("127.0.0.1", server.port), new_registry())
    finally:
        server.close()


@pytest.mark.parametrize("address", ["[::1]:0", "127.0.0.1:0", "localhost:0"])
def test_metrics_are_served_at_an_address_of_either_kind(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTXQ_METRICS_ADDRESS", address)
    where = Settings.read().metrics_address
    assert where is not None
    assert str(where) == address
    try:
        server = MetricsServer(where, new_registry())
    except ConfigurationError:
        if where.host != "[::1]":
            raise
        pytest.skip("this machine has no IPv6")
    try:
        url = f"http://{where.host}:{server.port}/metrics"
        assert httpx2.get(url, timeout=PATIENCE, trust_env=False).status_code == 200
    finally:
        server.close()


@pytest.mark.parametrize(
    "address",
    ["9464", "127.0.0.1", "127.0.0.1:http", ":9464", "h:70000", "::1", "::1:9464", "[::1]"],
)
def test_an_address_that_is_none_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTXQ_METRICS_ADDRESS", address)
    with pytest.raises(ConfigurationError, match="LTXQ_METRICS_ADDRESS"):
        Settings.read()


def test_what_could_not_be_told_is_told_next_time() -> None:
    stats, ended = WorkerStats(), threading.Event()
    reports: list[dict[str, Any]] = []

    def tell(figures: dict[str, Any]) -> bool:
        reports.append(figures)
        ended.set()
        return len(reports) > 1

    stats.count("storage_failures")
    stats.finished({"denoise": 1.0})
    stats.begins()
    time.sleep(0.01)
    stats.frees_gpu()
    ended.set()
    stats.keep_reporting(tell, ended)
    stats.count("storage_failures")
    stats.keep_reporting(tell, ended)
    refused, told_then = reports
    assert refused["counts"] == {"storage_failures": 1}
    assert told_then["counts"] == {"storage_failures": 2}
    assert told_then["timings"] == [{"denoise": 1.0}]
    assert told_then["gpu_busy"] >= 0.01


def test_busy_time_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltxq_worker.process.stats.TICK_SECONDS", 0.001)
    stats, ended = WorkerStats(), threading.Event()
    stats.begins()
    reports: list[float] = []

    def tell(figures: dict[str, Any]) -> bool:
        reports.append(figures["gpu_busy"])
        if len(reports) == 5:
            stats.frees_gpu()
        if len(reports) == 20:
            ended.set()
        return True

    began = time.monotonic()
    stats.keep_reporting(tell, ended)
    assert 0 < sum(reports) < time.monotonic() - began
    assert sum(reports[6:]) == 0


def test_a_report_stays_small_however_many_jobs_ended() -> None:
    stats = WorkerStats()
    for _ in range(3 * MOST_TIMINGS):
        stats.finished({"denoise": 1.0})
    ended = threading.Event()
    ended.set()
    reports: list[dict[str, Any]] = []
    stats.keep_reporting(lambda f: bool(reports.append(f)) or True, ended)
    assert len(reports[0]["timings"]) == MOST_TIMINGS
