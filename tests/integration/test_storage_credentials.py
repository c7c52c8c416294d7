"""Credentials that end, URLs that end with them, and credentials that cannot be had."""

from __future__ import annotations

import base64
import json
import logging
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from test_client import LedgerWorker

from ltxq import Client
from ltxq.errors import LtxqError, StorageRefused, StorageUnavailable
from ltxq.job import MAX_URL_SECONDS
from ltxq.storage import Storage
from servers import S3

pytest.importorskip("boto3")

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def jwt(end: datetime) -> str:
    """A session token that says when it ends, as MinIO's."""
    body = base64.urlsafe_b64encode(json.dumps({"exp": int(end.timestamp())}).encode())
    return f"head.{body.decode().rstrip('=')}.signature"


def signed_until(url: str) -> datetime:
    """When the signature of a URL ends."""
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    begin = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return begin + timedelta(seconds=int(query["X-Amz-Expires"]))


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile whose credentials come from this program, which the test writes."""
    program = tmp_path / "credentials.py"
    config = tmp_path / "config"
    config.write_text(f"[profile p]\ncredential_process = {sys.executable} {program}\n")
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "p")
    return program


def gives(program: Path, left: timedelta) -> None:
    """The program gives new keys at each call, for so long."""
    program.write_text(
        "import json, secrets, datetime as d\n"
        f"end = d.datetime.now(d.UTC) + d.timedelta(seconds={left.total_seconds()})\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': secrets.token_hex(8),\n"
        " 'SecretAccessKey': 'x', 'SessionToken': 't', 'Expiration': end.isoformat()}))\n"
    )


@pytest.mark.parametrize(
    "variables",
    [
        lambda end: {"AWS_SESSION_TOKEN": "t", "AWS_CREDENTIAL_EXPIRATION": iso(end)},
        lambda end: {"AWS_SESSION_TOKEN": jwt(end)},
    ],
    ids=["said", "in-the-token"],
)
def test_a_url_ends_with_the_session_that_signed_it(
    variables: object, moto: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = datetime.now(UTC) + HOUR
    for name, text in variables(end).items():  # type: ignore[operator]
        monkeypatch.setenv(name, text)
    storage = Storage.from_settings(moto.settings())
    assert not storage.credentials_end_unknown
    key = storage.clip_keys(f"video_1/{1:016x}").clip
    url, expires_at = storage.url(key, MAX_URL_SECONDS)
    assert expires_at is not None
    assert end - 2 * timedelta(seconds=1) <= expires_at <= end
    assert signed_until(url) == expires_at
    urls = storage.clip_urls(key, MAX_URL_SECONDS)
    assert end - 2 * timedelta(seconds=1) <= urls["expires_at"] <= end
    short, ends = storage.url(key, 60)
    assert signed_until(short) == ends < datetime.now(UTC) + 2 * MINUTE


def test_no_url_is_promised_for_longer_than_the_shortest_session_if_the_end_is_unknown(
    moto: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "opaque")
    storage = Storage.from_settings(moto.settings())
    assert storage.credentials_end_unknown
    _, expires_at = storage.url("ltxq/a", MAX_URL_SECONDS)
    assert expires_at is not None
    assert expires_at <= datetime.now(UTC) + 15 * MINUTE


def test_no_url_outlasts_its_clip(moto: S3, redis_url: str) -> None:
    settings = moto.settings(url=redis_url, default_model="instant", retention=3600)
    worker = LedgerWorker(settings)
    with Client(settings=settings) as client:
        job = client.submit("a fox", expires_in=MAX_URL_SECONDS)
        worker.succeed(job.id)
        done = client.get(job.id)
        result = done.result_or_raise()
        assert done.finished_at is not None
        assert result.expires_at is not None
        assert HOUR - MINUTE < result.expires_at - done.finished_at <= HOUR
        assert signed_until(result.poster_url) == result.expires_at
        behind = settings.model_copy(update={"content": "proxy", "public_url": "http://x"})
    with Client(settings=behind) as client:
        result = client.get(job.id).result_or_raise()
        assert result.url.startswith("http://x/v1/videos/")
        assert result.expires_at is not None
        assert HOUR - MINUTE < result.expires_at - done.finished_at <= HOUR
    worker.ledger.close()


def test_keys_without_an_end_sign_for_as_long_as_asked(moto: S3) -> None:
    _, expires_at = Storage.from_settings(moto.settings()).url("ltxq/a", MAX_URL_SECONDS)
    assert expires_at is not None
    assert expires_at > datetime.now(UTC) + timedelta(days=6)


def test_credentials_about_to_end_are_renewed_before_they_sign(moto: S3, process: Path) -> None:
    gives(process, 14 * MINUTE)
    storage = Storage.from_settings(moto.settings())
    first, _ = storage.url("ltxq/a", MAX_URL_SECONDS)
    gives(process, 2 * HOUR)
    second, ends = storage.url("ltxq/a", MAX_URL_SECONDS)
    assert ends is not None
    assert ends > datetime.now(UTC) + HOUR
    assert ("Credential=" + first.partition("Credential=")[2][:16]) not in second
    third, _ = storage.url("ltxq/b", MAX_URL_SECONDS)
    assert second.partition("Credential=")[2][:16] == third.partition("Credential=")[2][:16]


def test_urls_are_not_reused_for_much_of_a_short_rest_of_a_session(
    moto: S3, process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gives(process, 16 * MINUTE)
    storage = Storage.from_settings(moto.settings())
    now = [1000.0]
    monkeypatch.setattr("ltxq.storage.signing.time.monotonic", lambda: now[0])
    monkeypatch.setattr("ltxq.storage.signing.SIGNED_FOR", 1e6)
    key = storage.clip_keys(f"video_1/{1:016x}").clip
    first = storage.clip_urls(key, MAX_URL_SECONDS)["expires_at"]
    gives(process, 2 * HOUR)
    storage._calls.credentials._found._expiry_time = datetime.now(UTC) + 14 * MINUTE
    now[0] += 60
    assert storage.clip_urls(key, MAX_URL_SECONDS)["expires_at"] == first
    now[0] += 60  # more than a tenth of 16 minutes
    assert storage.clip_urls(key, MAX_URL_SECONDS)["expires_at"] > first + HOUR


# --- credentials that cannot be had ---------------------------------------------------------------


def failure(moto: S3) -> LtxqError:
    """What `check` says."""
    with pytest.raises((StorageRefused, StorageUnavailable)) as caught:
        Storage.from_settings(moto.settings()).check()
    return caught.value


def in_our_words(error: LtxqError, caplog: pytest.LogCaptureFixture) -> None:
    """No secret, nothing that botocore says itself, and something to do."""
    assert error.hint
    for text in (str(error), caplog.text):
        assert "topsecret" not in text
        for theirs in ("Unable to locate", "Error when retrieving", "Unable to parse", "Partial"):
            assert theirs not in text


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"AWS_ACCESS_KEY_ID": ""}, "There are no credentials for the bucket 'clips'"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "AWS_SECRET_ACCESS_KEY is missing"),
        ({"AWS_PROFILE": "nobody"}, "There is no AWS profile 'nobody'"),
        (
            {"AWS_SESSION_TOKEN": "topsecret", "AWS_CREDENTIAL_EXPIRATION": "tomorrow"},
            "AWS_CREDENTIAL_EXPIRATION is not a time",
        ),
        (
            {"AWS_SESSION_TOKEN": "topsecret", "AWS_CREDENTIAL_EXPIRATION": "2020-01-01T00:00:00Z"},
            "session credentials for the bucket 'clips' at http://127.0.0.1:",
        ),
        ({"AWS_DEFAULT_REGION": "no such region!"}, "region is missing or wrong"),
    ],
)
def test_credentials_of_the_environment_that_are_wrong(
    variables: dict[str, str],
    said: str,
    moto: S3,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    error = failure(moto)
    assert said in error.message
    in_our_words(error, caplog)


@pytest.mark.parametrize(
    ("program", "kind", "said"),
    [
        ("import sys; sys.exit('topsecret')", StorageUnavailable, "gave none"),
        ("print('topsecret')", StorageRefused, "cannot read its settings or the answer"),
        ("print('{}')", StorageUnavailable, "gave none"),
        (
            'print(\'{"Version": 1, "SecretAccessKey": "topsecret"}\')',
            StorageUnavailable,
            "gave none",
        ),
        (None, StorageUnavailable, "gave none"),
    ],
    ids=["fails", "no-json", "empty", "no-key-id", "missing"],
)
def test_a_program_for_credentials_that_gives_none(
    program: str | None,
    kind: type[LtxqError],
    said: str,
    moto: S3,
    process: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if program is not None:
        process.write_text(program)
    error = failure(moto)
    assert isinstance(error, kind)
    assert said in error.message
    in_our_words(error, caplog)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("credential_process = topsecret\n", "cannot read its configuration file"),
        ("[profile p]\ncredential_process = /nowhere/topsecret\n", "cannot read or run a source"),
        ("[profile p]\ncredential_process = 'topsecret\n", "cannot read its settings"),
        ("[profile p]\nrole_arn = arn:aws:iam::1:role/x\n", "incomplete"),
    ],
)
def test_a_configuration_file_that_is_wrong(
    config: str, said: str, moto: S3, process: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process.with_name("config").write_text(config)
    error = failure(moto)
    assert said in error.message
    in_our_words(error, caplog)


def test_a_source_that_fails_later_is_waited_for_and_prints_no_secret(
    moto: S3, process: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gives(process, 2 * HOUR)
    storage = Storage.from_settings(moto.settings())
    storage.check()
    process.write_text("import sys; sys.exit('topsecret')")
    storage._calls.credentials._found._expiry_time = datetime.now(UTC) + MINUTE
    with caplog.at_level(logging.INFO), pytest.raises(StorageUnavailable) as caught:
        storage.mark("ltxq/a")
    in_our_words(caught.value, caplog)
    gives(process, 2 * HOUR)
    storage.mark("ltxq/a")


@pytest.mark.parametrize("name", ["ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"])
def test_a_key_with_a_line_break_is_named(
    name: str, moto: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"AWS_{name}", "topsecret\n")
    with pytest.raises(StorageRefused, match=r"(key|token) for the bucket .* line break") as caught:
        Storage.from_settings(moto.settings()).check()
    assert "topsecret" not in str(caught.value)
