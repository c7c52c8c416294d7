"""Ways to reach Redis: a Unix socket, ACL users with any password, other makes of server. Behind
Sentinels: tests/faults/test_fault_19_sentinel.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from fleet import PATIENCE, SMALL, Fleet, worker_environment
from ltxq import Client
from ltxq.celery import make_app
from ltxq.celery.outcomes import report_refusal
from ltxq.errors import ConfigurationError, InvalidRequest, LtxqError
from ltxq.gateway.access.rates import Rates
from ltxq.gateway.models import GatewayTransport
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import EmbeddedServer, S3Server
from redis_servers import LOOPBACK, admin, start_redis
from variants import variants

PASSWORD = "Pl4nted@/ ?#%&;word"
PASSWORDS = (
    PASSWORD, "a:b", "50%41", "%zz", "+ +", "[x]", "ünï🦊", "\\'\"<>^`{|}", "=&?db=3", "p" * 512,
    "//redis://h/0", "@@@", "tab\tnew",
)  # fmt: skip


@pytest.fixture(scope="module", params=variants("redis-6", extended=("redis-8", "valkey-8")))
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedServer]:
    with start_redis(tmp_path_factory.mktemp(request.param), make=request.param) as made:
        yield made


def try_every_library(settings: Settings) -> None:
    """A call of the ledger's, of kombu's, of Celery's backend, and of the rate limits'."""
    with Client(settings=settings) as client:
        job = client.submit("a fox", **SMALL)
        assert client.get(job.id).state == "queued"
    with closing(make_app(settings)) as app:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            assert connection.default_channel.client.ping()
        report_refusal(app, "a-task", InvalidRequest("no").as_job_error())
        assert app.AsyncResult("a-task").state == "FAILURE"
    with closing(GatewayTransport(settings)) as transport:
        rates = Rates(settings, transport.connection_pool)
        for _ in range(3):
            rates.count_change("alice")


def test_any_password_of_an_acl_user_works_encoded(server: EmbeddedServer) -> None:
    for number, word in enumerate(PASSWORDS):
        name = f"user-{number}.x"
        with admin(server) as root:
            root.flushall()
            root.execute_command(
                "ACL", "SETUSER", name, "reset", "on", f">{word}", "~*", "&*", "+@all"
            )
            url = f"redis://{quote(name)}:{quote(word, safe='')}@{LOOPBACK}:{server.port}/0"
            try_every_library(Settings(url=url, default_model="instant"))
            assert root.keys("ltxq:rates:*"), word


def test_a_password_that_is_not_encoded_is_refused_and_shown_nowhere(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    refused = 0
    for word in PASSWORDS:
        try:
            settings = Settings(url=f"redis://nobody:{word}@{LOOPBACK}:{server.port}/0")
        except ValueError as exc:
            refused += 1
            assert word not in str(exc)  # noqa: PT017
            continue
        with Client(settings=settings) as client, pytest.raises(LtxqError) as told:
            client.submit("a fox")
        assert word not in f"{told.value} {told.value.__cause__!r} {told.value.__cause__}"
    assert refused == len(PASSWORDS) - 3  # a:b, 50%41 and 512 letters may be written so
    assert not [word for word in PASSWORDS if word in caplog.text]


def test_everything_works_through_a_unix_socket(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "redis.sock"
    with start_redis(tmp_path / "redis", unixsocket=str(path)) as server:
        with admin(server) as root:
            root.config_set("requirepass", PASSWORD)
        url = f"unix://:{quote(PASSWORD, safe='')}@{path}?db=2"
        environment = worker_environment(url, s3_server, tmp_path / "spool")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        settings = Settings.read()
        try_every_library(settings)
        with Fleet(environment) as fleet, Client() as client, closing(make_app(settings)) as app:
            fleet.wait_until_ready()
            job = client.wait(client.submit("a fox", **SMALL).id, PATIENCE)
            assert job.state == "succeeded"
            assert app.AsyncResult(job.id).get(timeout=PATIENCE)["sha256"]
            inspect = app.control.inspect(timeout=PATIENCE, limit=1)
            shown = [repr(ask()) for ask in (inspect.conf, inspect.stats, inspect.report)]
            assert "'virtual_host'" in shown[1]
        with redis.Redis(unix_socket_path=str(path), db=2, password=PASSWORD) as straight:
            assert straight.exists("ltxq:3:counter")
        for text in (*shown, fleet.log, repr(settings)):
            assert PASSWORD not in text
            assert quote(PASSWORD, safe="") not in text
        missing = Settings(url=f"unix://{tmp_path}/none.sock")
        with (
            Client(settings=missing) as client,
            pytest.raises(LtxqError, match=r"none\.sock does not"),
        ):
            client.submit("a fox")
        wrong = Settings(url=f"unix://:wrong@{path}")
        with Client(settings=wrong) as client, pytest.raises(ConfigurationError, match="password"):
            client.submit("a fox")


def test_celery_settings_of_another_application_are_its_own(
    server: EmbeddedServer, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_redis(tmp_path / "another") as another:
        elsewhere, url = (f"redis://{LOOPBACK}:{one.port}/0" for one in (another, server))
        for part in ("BROKER", "BROKER_READ", "BROKER_WRITE"):
            monkeypatch.setenv(f"CELERY_{part}_URL", elsewhere)
        monkeypatch.setenv("CELERY_RESULT_BACKEND", elsewhere)
        monkeypatch.setenv("CELERY_CONFIG_MODULE", "nowhere")
        monkeypatch.setenv("CELERY_LOADER", "nowhere")
        environment = worker_environment(url, s3_server, tmp_path / "spool")
        settings = Settings(url=url, default_model="instant")
        try_every_library(settings)
        with Fleet(environment) as fleet, Client(settings=settings) as client:
            fleet.wait_until_ready()
            job = client.wait(client.submit("a fox", **SMALL).id, PATIENCE)
            assert job.state == "succeeded"
        with admin(another) as root:
            assert not root.keys()


def test_celerys_own_worker_is_refused() -> None:
    command = [sys.executable, "-m", "celery", "-A", "ltxq.celery:app", "worker"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert "run `ltxq worker`" in done.stderr


def test_what_flower_shows_of_a_worker_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(Settings(url=f"rediss://:{quote(PASSWORD, safe='')}@{LOOPBACK}/0"))
    shown = app.conf.humanize(with_defaults=True)
    assert f"broker_url: 'rediss://{LOOPBACK}:6379/0'" in shown
    assert "Pl4nted" not in shown
    assert not caplog.records
