"""Redis and S3 behind TLS with certificates of their own, and passwords to both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from cryptography.hazmat.primitives import serialization
from kombu.exceptions import OperationalError

from fleet import PATIENCE, SMALL, Fleet, worker_environment
from ltxq import Client
from ltxq.celery import make_app, report_refusal
from ltxq.errors import ConfigurationError, InvalidRequest, QueueUnavailable
from ltxq.settings import Settings
from ltxq.storage.s3 import Storage, StorageRefused
from ltxq_worker.embedded.servers import RedisServer, S3Server
from proxy import Proxy
from servers import start_or_skip
from tls import certificate_for, serving

PASSWORD = "a wörd/with#signs"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate_for("127.0.0.1", tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def environment(
    certificate: Path, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A worker's settings: both servers are reached through TLS alone."""
    folder = tmp_path_factory.mktemp("redis")
    server = start_or_skip(lambda: RedisServer.start(folder, password=PASSWORD))
    with (
        server,
        Proxy(server.port, tls=serving(certificate)) as redis,
        Proxy(s3_server.port, tls=serving(certificate)) as s3,
    ):
        url = server.url.replace("redis:", "rediss:").replace(str(server.port), str(redis.port))
        yield {
            **worker_environment(url, s3_server, folder / "spool"),
            "LTXQ_REDIS_CA": str(certificate),
            "LTXQ_S3_ENDPOINT": f"https://127.0.0.1:{s3.port}",
            "AWS_CA_BUNDLE": str(certificate),
        }


@pytest.fixture
def settings(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings.read()


def test_a_clip_is_made_with_all_of_it_behind_tls(
    environment: dict[str, str], settings: Settings, certificate: Path
) -> None:
    with Fleet(environment) as fleet, Client() as client:
        fleet.wait_until_ready()
        job = client.submit("a fox", **SMALL)
        result = client.wait(job.id, PATIENCE).result_or_raise()
        assert result.url.startswith("https://")
        with urllib3.PoolManager(ca_certs=str(certificate)) as trusting:
            assert trusting.request("GET", result.url, timeout=PATIENCE).data[4:8] == b"ftyp"
        app = make_app(settings)
        assert app.AsyncResult(job.id).get(timeout=PATIENCE)["sha256"] == result.sha256
        assert app.control.ping(timeout=5) == [{"cpu0@host": {"ok": "pong"}}]
        app.close()


@pytest.mark.parametrize("ca", ["another's", "none"])
def test_a_redis_that_is_not_trusted_is_not_spoken_to(
    ca: str, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = certificate_for("127.0.0.1", tmp_path) if ca == "another's" else None
    settings = settings.model_copy(update={"redis_ca": other})
    with (
        Client(settings=settings) as client,
        pytest.raises(ConfigurationError, match="certificate that is not trusted") as refused,
    ):
        client.submit("a fox")
    assert "LTXQ_REDIS_CA" in refused.value.hint
    app = make_app(settings)
    report_refusal(app, "a task", InvalidRequest("no").as_job_error())
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text
    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        app.connection_for_write().ensure_connection(max_retries=1, timeout=1)
    app.close()


def test_a_certificate_for_another_host_is_not_trusted(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    wrong = certificate_for("127.0.0.2", tmp_path)
    with Proxy(redis_server.port, tls=serving(wrong)) as proxy:
        settings = Settings(url=f"rediss://127.0.0.1:{proxy.port}/0", redis_ca=wrong)
        with (
            Client(settings=settings) as client,
            pytest.raises(ConfigurationError, match="not trusted"),
        ):
            client.submit("a fox")
        app = make_app(settings)
        with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
            app.connection_for_write().ensure_connection(max_retries=1, timeout=1)
        app.close()


def test_a_redis_without_tls_is_a_redis_that_does_not_answer(redis_server: RedisServer) -> None:
    settings = Settings(url=f"rediss://127.0.0.1:{redis_server.port}/0")
    with Client(settings=settings) as client, pytest.raises(QueueUnavailable) as refused:
        client.submit("a fox")
    assert "rediss:// with TLS, redis:// without" in refused.value.hint


def test_a_wrong_password_is_told(settings: Settings) -> None:
    url = settings.url.get_secret_value().replace("signs", "sighs")
    wrong = Settings(url=url, redis_ca=settings.redis_ca)
    with Client(settings=wrong) as client, pytest.raises(ConfigurationError, match="refuses this"):
        client.submit("a fox")


def test_a_storage_that_is_not_trusted_gets_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate_for("127.0.0.1", tmp_path)))
    with pytest.raises(StorageRefused, match="not trusted") as refused:
        Storage.from_settings(settings).check()
    assert "AWS_CA_BUNDLE" in refused.value.hint


def test_a_file_that_holds_no_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    for file in (tmp_path / "empty.pem", tmp_path / "missing.pem", tmp_path):
        with pytest.raises(ValueError, match=r"redis_ca\n.*cannot be read as certificates"):
            Settings(redis_ca=file)


@pytest.mark.timeout(30)
def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(tmp_path: Path) -> None:
    pem = certificate_for("127.0.0.1", tmp_path).read_bytes()
    key = serialization.load_pem_private_key(pem, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"word"),
    )
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "certificate.pem").write_bytes(pem)
    files = f"ssl_certfile={tmp_path}/certificate.pem&ssl_keyfile={tmp_path}/key.pem"
    with pytest.raises(ValueError, match="a key that has a passphrase: write the key without"):
        Settings(url=f"rediss://127.0.0.1?{files}")
