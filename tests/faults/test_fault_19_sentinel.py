"""Redis behind three Sentinels: its primary is killed under load, and no job that was accepted is
lost; the logins of Redis and of the Sentinels are shown nowhere.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from fleet import PATIENCE, SMALL, Fleet, eventually, worker_environment
from gateways import Gateway
from ltxq import Client
from ltxq.celery import make_app
from ltxq.errors import ConfigurationError, QueueUnavailable
from ltxq.gateway.access.keys import new_key
from ltxq.ledger import Ledger
from ltxq.ops.redis_checks import check_redis
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import S3Server
from redis_servers import Sentinels, admin, sentinels, start_redis

PASSWORD, OWN = "Pl4ntedRedisWord", "Pl4ntedSentinelWord"
OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"
SENDERS = 4
JOBS_BEFORE = 12  # accepted by the time the primary is killed
OUTAGE_MOST = 90.0  # seconds without an accepted job; Sentinels need about four, and 30 if delayed


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Sentinels]:
    with sentinels(tmp_path / "redis", password=PASSWORD, own=OWN) as made:
        yield made


@pytest.fixture
def environment(
    group: Sentinels, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    made = worker_environment(group.url, s3_server, tmp_path / "spool")
    made |= {"LTXQ_REDIS_REPLICAS": "1", "LTXQ_INSTANT_SECONDS": "0.1"}
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    return made


class Load:
    """Threads that submit without a pause, each with a client of its own."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.times: list[float] = []
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(SENDERS)
        self._futures = [self._pool.submit(self._send, number) for number in range(SENDERS)]

    def _send(self, number: int) -> None:
        with Client() as client:
            for count in range(10_000):
                if self._ended.is_set():
                    return
                key = f"{number}-{count}"
                while not self._ended.is_set():  # as the error says: with the same key
                    try:
                        job = client.submit("a fox", idempotency_key=key, **SMALL)
                    except QueueUnavailable:
                        continue
                    self.accepted.append(job.id)
                    self.times.append(time.monotonic())
                    break

    def end(self) -> None:
        self._ended.set()
        for future in self._futures:
            future.result(PATIENCE)
        self._pool.shutdown()


def test_no_accepted_job_is_lost_with_its_primary(
    group: Sentinels, environment: dict[str, str]
) -> None:
    with Fleet(environment) as fleet, Client() as client, closing(make_app(Settings.read())) as app:
        fleet.wait_until_ready()
        # Only the replica of the start can take over: the primary does not come back.
        group.connection(group.replica).config_set("min-replicas-to-write", "0")
        load = Load()
        eventually(lambda: len(load.accepted) >= JOBS_BEFORE)
        group.kill_primary()
        killed = time.monotonic()
        # The new primary has no replica, and WAIT is asked for one: so none is accepted until…
        eventually(lambda: group.connection(group.replica).info()["role"] == "master")
        load.end()
        took = time.monotonic() - killed
        assert took < OUTAGE_MOST
        for job_id in load.accepted:
            job = client.wait(job_id, PATIENCE)
            assert job.state == "succeeded", job
            assert app.AsyncResult(job_id).get(timeout=PATIENCE)["sha256"]
        assert len(set(load.accepted)) >= JOBS_BEFORE
        # Others were recorded and not confirmed: they may run, and end.
        for state in ("queued", "running"):
            eventually(lambda state=state: not client.list(state=state).jobs)
        # The old primary comes back, as a replica, and submissions are accepted again.
        folder = group.folder / "a"
        with start_redis(folder, port=group.primary.port, **group.login):
            eventually(lambda: group.connection(group.primary).info()["role"] == "slave")
            load = Load()
            eventually(lambda: load.accepted)
            load.end()
            for job_id in load.accepted:
                assert client.wait(job_id, PATIENCE).state == "succeeded"
        assert PASSWORD not in fleet.log
        assert OWN not in fleet.log


def test_client_worker_and_gateway_go_on_after_a_failover(
    group: Sentinels, environment: dict[str, str]
) -> None:
    environment = environment | {"LTXQ_REDIS_REPLICAS": "0"}
    key = new_key("alice")
    with (
        Fleet(environment) as fleet,
        Gateway(environment | {"LTXQ_API_KEYS": key.entry}) as gateway,
        Client(settings=Settings(**{"redis_replicas": 0})) as client,
        Client(gateway.url, api_key=key.key) as remote,
    ):
        fleet.wait_until_ready()
        for each in (client, remote):
            assert each.wait(each.submit("a fox", **SMALL).id, PATIENCE).state == "succeeded"
        # A replica has this job before the primary dies.
        with Client(settings=Settings(**{"redis_replicas": 1})) as sure:
            watched = sure.submit("an owl", **SMALL)
        group.kill_primary()
        begun = time.monotonic()
        for each in (client, remote):
            while True:
                try:
                    job = each.submit("a hare", idempotency_key="after", **SMALL)
                    break
                except QueueUnavailable:
                    assert time.monotonic() - begun < OUTAGE_MOST
            assert each.wait(job.id, PATIENCE).state == "succeeded"
        assert client.wait(watched.id, PATIENCE).state == "succeeded"
        fleet.wait_for("jobs are taken again|Redis takes writes")


def test_what_is_wrong_with_sentinels_is_told(
    group: Sentinels, environment: dict[str, str]
) -> None:
    def refusal(url: str) -> str:
        with (
            closing(Ledger(Settings(url=url))) as ledger,
            pytest.raises((ConfigurationError, QueueUnavailable)) as refused,
        ):
            ledger.jobs.get("video_1")
        assert PASSWORD not in str(refused.value)
        assert OWN not in str(refused.value)
        return str(refused.value)

    assert "know no primary 'films'" in refusal(group.url.replace("/clips/", "/films/"))
    assert "add ?sentinel_password=" in refusal(group.url.partition("?")[0])
    assert "refuse the password" in refusal(group.url.replace(OWN, "wrong"))
    assert "refuses this user or password" in refusal(group.url.replace(PASSWORD, "wrong"))
    redis_port, first = group.primary.port, group.servers[0].port
    straight = f"sentinel://:{PASSWORD}@127.0.0.1:{redis_port}/clips?sentinel_password={PASSWORD}"
    assert "is no Sentinel" in refusal(straight)
    assert "does not know the command" in refusal(f"redis://:{OWN}@127.0.0.1:{first}/0")
    assert "No Sentinel of" in refusal("sentinel://127.0.0.1:1;127.0.0.1:2/clips")
    documented = re.search(r"ACL SETUSER NAME (.*)>WORD(.*)(\+sentinel\S*)", OPERATING.read_text())
    assert documented
    *rights, masters = " ".join(documented.groups()).split()
    settings = Settings(
        url=group.url.replace(OWN, "word&sentinel_username=lx"), default_model="instant"
    )
    for granted in ("-ping",), (masters, "-ping"):  # the line grants more than must be
        for server in group.servers:
            with admin(server, password=OWN) as root:
                root.execute_command("ACL", "SETUSER", "lx", ">word", *rights, *granted)
        if masters not in granted:
            told = refusal(settings.url.get_secret_value())
            assert "do not let their user 'lx' run SENTINEL" in told
            assert "at each Sentinel: ACL SETUSER lx +sentinel|masters" in told
    with Client(settings=settings) as client:
        assert client.submit("a fox", **SMALL).state == "queued"
    assert "All 3 Sentinels answer" in " ".join(each.message for each in check_redis(settings))


def test_doctor_and_celery_show_neither_password_nor_what_is_well_as_a_problem(
    group: Sentinels, environment: dict[str, str]
) -> None:
    settings = Settings.read()
    found = list(check_redis(settings))
    assert [each for each in found if each.status != "ok"] == []
    assert any("All 3 Sentinels answer" in each.message for each in found)
    group.servers[1].stop()
    (worry,) = [each for each in check_redis(settings) if each.status == "warning"]
    assert f"127.0.0.1:{group.servers[1].port}" in worry.message
    with Fleet(environment) as fleet, closing(make_app(settings)) as app:
        fleet.wait_until_ready()
        inspect = app.control.inspect(timeout=PATIENCE, limit=1)
        shown = [repr(ask()) for ask in (inspect.conf, inspect.stats, inspect.report)]
        shown += [repr(settings), str(found), fleet.log, repr(app.connection())]
        assert "'transport': 'sentinel'" in shown[1]
    for text in shown:
        assert PASSWORD not in text, text
        assert OWN not in text, text
