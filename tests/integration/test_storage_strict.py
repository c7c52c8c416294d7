"""Storage on stores that refuse what Amazon's allows, and with settings that only some need."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_client import LedgerWorker

from fleet import PATIENCE, Fleet
from gateways import Gateway
from ltxq import Client
from ltxq.errors import (
    ClipKept,
    ConfigurationError,
    JobNotFound,
    StorageRefused,
    StorageUnavailable,
)
from ltxq.settings import Settings
from ltxq.storage import Storage
from ltxq.storage.s3 import PART
from servers import S3, exists
from strict_s3 import (
    Rule,
    StrictS3,
    keeps,
    no_lists_of_keys,
    no_new_checksums,
    only_encrypted,
    only_virtual_hosts,
    only_with_md5,
    refuses,
)
from tls import certificate_for
from variants import variants

pytest.importorskip("boto3")

Front = Callable[..., StrictS3]


@pytest.fixture
def front(moto: S3) -> Iterator[Front]:
    """Makes a front with rules before moto."""
    made: list[StrictS3] = []

    def make(*rules: Rule) -> StrictS3:
        made.append(StrictS3(moto.endpoint, *rules).__enter__())
        return made[-1]

    yield make
    for one in made:
        one.__exit__()


def storage_at(front: StrictS3, **settings: object) -> Storage:
    return Storage.from_settings(
        Settings(s3_endpoint=front.endpoint, s3_bucket="clips", **settings)
    )


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(range(256)) * 4)
    return path


def whole_life(storage: Storage, clip: Path) -> None:
    """All that a worker, its supervisor and a gateway do."""
    storage.check("worker")
    storage.check("gateway")
    keys = storage.clip_keys(f"video_1/{1:016x}")
    for key in keys:
        storage.put(key, clip, "video/mp4")
    storage.mark(f"{storage.prefix}.queues/one")
    assert set(storage.list("video_1/")) == set(keys)
    assert storage.delete_clips([f"video_1/{1:016x}"]) == {}
    assert list(storage.list("video_1/")) == []


# --- deletions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    variants(
        (400, "MissingContentMD5"),
        (200, ""),
        extended=(
            (400, "InvalidRequest"), (411, "MissingContentLength"), (501, "NotImplemented"),
            (405, "MethodNotAllowed"), (404, "NoSuchKey"), (200, "<html>hello</html>"),
        ),
    ),
)  # fmt: skip
def test_a_store_that_deletes_no_lists_is_asked_for_each_key(
    status: int, code: str, front: Front, clip: Path
) -> None:
    strict = front(no_lists_of_keys(status, code))
    storage = storage_at(strict)
    whole_life(storage, clip)
    lists = strict.operations.count("DeleteObjects")
    storage.put("ltxq/more", clip, "video/mp4")
    storage.delete(["ltxq/more"])
    assert not exists(storage, "ltxq/more")
    if status != 200:  # and otherwise it may be a server that does delete lists
        assert strict.operations.count("DeleteObjects") == lists == 1  # and remembered


def test_what_the_store_does_not_confirm_is_deleted_one_by_one(front: Front, clip: Path) -> None:
    strict = front(no_lists_of_keys(200, "<DeleteResult></DeleteResult>"))
    storage = storage_at(strict)
    storage.put("ltxq/a", clip, "video/mp4")
    storage.delete(["ltxq/a"])
    assert not exists(storage, "ltxq/a")


def test_an_undeletable_object_blocks_no_other(front: Front, clip: Path) -> None:
    storage = storage_at(front(keeps("video_2/")))
    claims = [f"video_{n}/{n:016x}" for n in (1, 2, 3)]
    for claim in claims:
        storage.put(storage.clip_keys(claim).clip, clip, "video/mp4")
    refused = storage.delete_clips(claims)
    assert list(refused) == [claims[1]]
    assert "AccessDenied" in str(refused[claims[1]])
    assert "s3:DeleteObject" in refused[claims[1]].hint
    assert "retention must not cover ltxq/.check/" in refused[claims[1]].hint
    assert list(storage.list("")) == [storage.clip_keys(claims[1]).clip]
    with pytest.raises(StorageRefused, match="1 objects were not deleted, ltxq/video_2"):
        storage.delete([storage.clip_keys(claim).clip for claim in claims])


def test_deleted_is_said_only_of_what_is_deleted(front: Front, redis_url: str) -> None:
    strict = front()
    settings = Settings(
        url=redis_url, default_model="instant", s3_endpoint=strict.endpoint, s3_bucket="clips"
    )
    worker = LedgerWorker(settings)
    with Client(settings=settings) as client:
        job = client.submit("a fox")
        worker.succeed(job.id)
        strict.rules.append(refuses("DeleteObjects", "DeleteObject"))
        with pytest.raises(ClipKept, match=f"{job.id} is deleted, but not its clip") as said:
            client.delete(job.id)
        assert "s3:DeleteObject" in said.value.hint
        with pytest.raises(JobNotFound):
            client.get(job.id)
    assert worker.ledger.sweeper.undeleted()[0] == 1
    worker.ledger.close()


# --- uploads -----------------------------------------------------------------------------------


def test_a_store_without_the_newer_checksums_and_chunked_signing_is_enough(
    front: Front, clip: Path, tmp_path: Path
) -> None:
    storage = storage_at(front(no_new_checksums))
    whole_life(storage, clip)
    large = tmp_path / "large.mp4"
    large.write_bytes(b"x" * (PART + 1))
    storage.put("ltxq/large", large, "video/mp4")
    storage.delete(["ltxq/large"])


def test_every_body_comes_with_its_md5(front: Front, clip: Path, tmp_path: Path) -> None:
    strict = front(only_with_md5)
    storage = storage_at(strict)
    whole_life(storage, clip)
    large = tmp_path / "large.mp4"
    large.write_bytes(b"x" * (PART + 1))
    storage.put("ltxq/large", large, "video/mp4")
    storage.delete(["ltxq/large"])
    assert "DeleteObject" not in strict.operations  # a list of keys is taken


def test_the_bucket_may_be_in_the_hosts_name(
    front: Front, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = front(only_virtual_hosts)
    monkeypatch.setenv("HTTP_PROXY", strict.endpoint)
    settings = Settings(s3_endpoint="http://s3.test", s3_bucket="clips")
    with pytest.raises(StorageRefused, match="LTXQ_S3_ADDRESSING=virtual"):
        Storage.from_settings(settings).check()
    virtual = Storage.from_settings(settings.model_copy(update={"s3_addressing": "virtual"}))
    whole_life(virtual, clip)
    assert virtual.url("ltxq/a", 60)[0].startswith("http://clips.s3.test/ltxq/a?")


@pytest.mark.parametrize("sse", ["AES256", "aws:kms", "aws:kms:dsse"])
def test_every_call_that_writes_asks_for_encryption(
    sse: str, front: Front, clip: Path, tmp_path: Path
) -> None:
    key = None if sse == "AES256" else "arn:aws:kms:eu-west-1:1:key/2"
    strict = front(only_encrypted(key=key))
    with pytest.raises(StorageRefused, match=r"PutObject.*set LTXQ_S3_SSE"):
        storage_at(strict).check()
    storage = storage_at(strict, s3_sse=sse, s3_sse_key_id=key)
    whole_life(storage, clip)
    large = tmp_path / "large.mp4"
    large.write_bytes(b"x" * (PART + 1))
    storage.put("ltxq/large", large, "video/mp4")


def test_a_file_keeps_its_name_for_urls_that_do_not_have_one(front: Front, clip: Path) -> None:
    strict = front()
    storage = storage_at(strict)
    storage.put("ltxq/a", clip, "video/mp4", name="ein-Fuchs-über-Eis-42.mp4")
    kept = storage._calls.client.head_object(Bucket="clips", Key="ltxq/a")
    assert kept["ContentDisposition"].endswith("filename*=UTF-8''ein-Fuchs-%C3%BCber-Eis-42.mp4")


def test_another_server_from_amazons_own_variables_is_named(
    monkeypatch: pytest.MonkeyPatch, moto: S3
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(StorageUnavailable, match=r"bucket 'clips' at http://127\.0\.0\.1:1"):
        Storage.from_settings(Settings(s3_bucket="clips")).mark("ltxq/a")


def test_a_store_without_a_call_is_named(front: Front) -> None:
    strict = front(refuses("CreateMultipartUpload", status=501, code="NotImplemented"))
    with pytest.raises(StorageRefused, match="The store must have CreateMultipartUpload"):
        storage_at(strict).check()


def test_a_store_without_encryption_names_the_setting(front: Front) -> None:
    strict = front(refuses("PutObject", status=501, code="NotImplemented"))
    with pytest.raises(StorageRefused, match="may not support LTXQ_S3_SSE=aws:kms"):
        storage_at(strict, s3_sse="aws:kms").check()


# --- TLS, and the endpoint ---------------------------------------------------------------------


@pytest.fixture
def private(moto: S3, tmp_path: Path) -> Iterator[StrictS3]:
    """A server with TLS, whose certificate is its own authority's."""
    with StrictS3(moto.endpoint, certificate=certificate_for("127.0.0.1", tmp_path)) as front:
        yield front


def test_a_private_authority_is_trusted_where_it_is_named(
    private: StrictS3, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "server.pem"))
    storage = storage_at(private)
    whole_life(storage, clip)
    storage.put("ltxq/a", clip, "video/mp4")

    async def read() -> bytes:
        reader = storage.reader()
        async with reader.open(reader.sign("ltxq/a", head=False)) as opened:
            assert opened is not None
            body = b"".join([chunk async for chunk in opened.chunks])
        await reader.close()
        return body

    assert asyncio.run(read()) == clip.read_bytes()


def test_what_is_wrong_with_tls_is_named(
    private: StrictS3, moto: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltxq.storage.client.ATTEMPTS", 1)
    (tmp_path / "notes").write_text("no certificate")
    bundle = str(tmp_path / "server.pem")
    https, port = private.endpoint, private.endpoint.rpartition(":")[2]
    for file, endpoint, words in (
        ("", https, r"not trusted \(self.signed certificate\).*Set AWS_CA_BUNDLE"),
        (bundle, f"https://localhost:{port}", "not trusted .*localhost' doesn't match"),
        (bundle, moto.endpoint.replace("http:", "https:"), "https:// is for a port with TLS"),
        (str(tmp_path / "none"), https, r"CA bundle .*none cannot be read: No such file.*AWS_CA_"),
        (str(tmp_path / "notes"), https, "CA bundle .*notes cannot be read: it has no certificate"),
        (str(tmp_path), https, "CA bundle .* cannot be read: Is a directory"),
    ):
        for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
            monkeypatch.delenv(name, raising=False)
        if file:
            monkeypatch.setenv("AWS_CA_BUNDLE", file)
        with pytest.raises((StorageRefused, StorageUnavailable), match=words):
            Storage.from_settings(Settings(s3_endpoint=endpoint, s3_bucket="clips")).mark("ltxq/a")


def test_an_endpoint_with_the_bucket_in_its_host_is_named(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltxq.storage.probe.GONE_SECONDS", 0.2)
    strict = front()
    monkeypatch.setenv("HTTP_PROXY", strict.endpoint)
    settings = Settings(s3_endpoint="http://clips.s3.test:1234", s3_bucket="clips")
    with pytest.raises(StorageRefused, match=r"name the bucket too: try http://s3\.test:1234\."):
        Storage.from_settings(settings).check()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "QuotaExceeded"),
        (400, "XMinioAdminBucketQuotaExceeded"),
        (403, "AccessDenied: Cannot upload files, storage cap exceeded."),
        (507, "XMinioStorageFull"),
    ],
)
def test_a_full_store_may_have_room_later(
    status: int, code: str, front: Front, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltxq.storage.client.ATTEMPTS", 1)
    storage = storage_at(front(refuses("PutObject", status=status, code=code)))
    with pytest.raises(StorageUnavailable, match=r"storage is full \(.*raise the quota"):
        storage.put("ltxq/a", clip, "video/mp4")


def test_an_archived_object_is_named(front: Front) -> None:
    storage = storage_at(front(refuses("GetObject", code="InvalidObjectState")))
    with pytest.raises(StorageRefused, match="lifecycle rule has archived"):
        storage.check()


# --- lists -------------------------------------------------------------------------------------


def listing(*keys: str, more: str = "false", token: str = "") -> str:
    entries = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in keys)
    return (
        f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{token}'
        f"<IsTruncated>{more}</IsTruncated>{entries}</ListBucketResult>"
    )


def test_a_list_that_names_no_next_page_goes_on_after_its_last_key(front: Front) -> None:
    def rule(asked):  # type: ignore[no-untyped-def]
        if asked.operation != "ListObjectsV2":
            return None
        if "start-after=ltxq%2Fb" in asked.path:
            return 200, listing("ltxq/c")
        return 200, listing("ltxq/a", "ltxq/b", more="true")

    assert list(storage_at(front(rule)).list()) == ["ltxq/a", "ltxq/b", "ltxq/c"]


def test_a_list_that_does_not_go_on_ends_and_says_so(front: Front) -> None:
    def rule(asked):  # type: ignore[no-untyped-def]
        page = listing("ltxq/a", more="true")
        return (200, page) if asked.operation == "ListObjectsV2" else None

    with pytest.raises(StorageUnavailable, match="does not go on after ltxq/a"):
        list(storage_at(front(rule)).list())


def test_a_list_that_ignores_the_prefix_names_nobody_elses_objects(front: Front) -> None:
    def rule(asked):  # type: ignore[no-untyped-def]
        page = listing("another/a", "ltxq/a", "zzz")
        return (200, page) if asked.operation == "ListObjectsV2" else None

    assert list(storage_at(front(rule)).list()) == ["ltxq/a"]


# --- what is no S3 server ----------------------------------------------------------------------


def test_a_web_server_is_not_taken_for_a_store(front: Front, clip: Path) -> None:
    storage = storage_at(front(lambda _: (200, "<!doctype html><p>Hello</p>")))
    for call in (storage.check, lambda: list(storage.list()), lambda: storage.delete(["ltxq/a"])):
        with pytest.raises(StorageUnavailable, match="LTXQ_S3_ENDPOINT: another program"):
            call()


def test_a_server_that_says_yes_to_everything_is_not_taken_for_a_store(front: Front) -> None:
    with pytest.raises(StorageRefused, match=r"What was written is not what is read.*clips"):
        storage_at(front(lambda _: (200, ""))).check()


def test_what_is_not_gone_after_its_deletion_is_said(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltxq.storage.probe.GONE_SECONDS", 0.2)

    def rule(asked):  # type: ignore[no-untyped-def]
        return (204, "") if asked.operation == "DeleteObject" else None

    strict = front(no_lists_of_keys(), rule)
    with pytest.raises(StorageRefused, match="still there after its deletion"):
        storage_at(strict).check()


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_server_that_redirects_is_named(status: int, front: Front) -> None:
    with pytest.raises(StorageRefused, match=r"redirect.*AWS_DEFAULT_REGION"):
        storage_at(front(lambda _: (status, "Strange"))).check()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 411, 412])
def test_a_refusal_names_the_call_and_what_to_do(status: int, front: Front) -> None:
    storage = storage_at(front(lambda _: (status, "Strange")))
    with pytest.raises(StorageRefused, match=r"refused PutObject \(Strange") as caught:
        storage.check()
    assert caught.value.hint


# --- the start ---------------------------------------------------------------------------------


def test_a_worker_that_may_not_give_up_an_upload_does_not_start(
    moto: S3, front: Front, redis_url: str
) -> None:
    def rule(asked):  # type: ignore[no-untyped-def]
        return (403, "AccessDenied") if asked.operation == "DELETE" else None

    environment = {
        **moto.worker_environment,
        "LTXQ_URL": redis_url,
        "LTXQ_S3_ENDPOINT": front(rule).endpoint,
    }
    with Fleet(environment) as fleet:
        assert fleet.supervisor.wait(PATIENCE) == 1
    said = (
        r"refused AbortMultipartUpload .*Allow s3:AbortMultipartUpload on arn:aws:s3:::clips/ltxq/"
    )
    assert re.search(said, fleet.log), fleet.log


def test_a_gateway_that_may_not_delete_does_not_start(
    moto: S3, front: Front, redis_url: str
) -> None:
    strict = front(refuses("DeleteObjects", "DeleteObject"))
    environment = {
        **moto.worker_environment,
        "LTXQ_URL": redis_url,
        "LTXQ_S3_ENDPOINT": strict.endpoint,
    }
    said = r"refused DeleteObject .*Allow s3:DeleteObject"
    with pytest.raises(AssertionError, match=said), Gateway(environment):
        pass


def test_a_deletion_over_http_says_what_stays(moto: S3, front: Front, redis_url: str) -> None:
    strict = front()
    settings = Settings(
        url=redis_url, default_model="instant", s3_endpoint=strict.endpoint, s3_bucket="clips"
    )
    environment = {
        **moto.worker_environment,
        "LTXQ_URL": redis_url,
        "LTXQ_DEFAULT_MODEL": "instant",
        "LTXQ_S3_ENDPOINT": strict.endpoint,
    }
    worker = LedgerWorker(settings)
    with Gateway(environment) as gateway, Client(gateway.url) as client:
        job = client.submit("a fox")
        worker.succeed(job.id)
        strict.rules.append(refuses("DeleteObjects", "DeleteObject"))
        answer = gateway.ask("DELETE", f"/v1/videos/{job.id}")
        assert answer.status_code == 500
        assert "refuses to delete its files" in answer.json()["error"]["message"]
        second = client.submit("a bear")
        worker.succeed(second.id)
        with pytest.raises(ClipKept):
            client.delete(second.id)
    worker.ledger.close()


@pytest.mark.extended
def test_a_gateway_starts_while_its_storage_hangs(moto: S3, redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            **moto.worker_environment,
            "LTXQ_URL": redis_url,
            "LTXQ_S3_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        with Gateway(environment) as gateway:
            assert gateway.ask("GET", "/healthz").status_code == 200
            assert "The storage does not answer yet: it was silent" in gateway.log


def test_a_gateway_starts_while_its_storage_is_away(moto: S3, redis_url: str) -> None:
    environment = {
        **moto.worker_environment,
        "LTXQ_URL": redis_url,
        "LTXQ_S3_ENDPOINT": "http://127.0.0.1:1",
    }
    with Gateway(environment) as gateway:
        assert gateway.ask("GET", "/healthz").status_code == 200
        assert "The storage does not answer yet" in gateway.log


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ENDPOINT": "s3.example.com"}, "LTXQ_S3_ENDPOINT: must be a URL"),
        ({"ENDPOINT": "https://"}, "LTXQ_S3_ENDPOINT: must be a URL"),
        ({"ENDPOINT": "https://host:99999"}, "LTXQ_S3_ENDPOINT: is not a URL"),
        ({"ENDPOINT": "https://key:topsecret@host"}, "LTXQ_S3_ENDPOINT: must have no user"),
        ({"ENDPOINT": "https://host/?x=topsecret"}, "LTXQ_S3_ENDPOINT: must be a URL"),
        ({"PUBLIC_BASE_URL": "cdn.example"}, "LTXQ_S3_PUBLIC_BASE_URL: must be a URL"),
        ({"BUCKET": "s3://clips"}, "LTXQ_S3_BUCKET: must be a bucket's name"),
        ({"BUCKET": "clips/ltxq"}, "LTXQ_S3_BUCKET: must be a bucket's name"),
        ({"BUCKET": "clips", "ENDPOINT": "https://host/clips/"}, "LTXQ_S3_ENDPOINT ends with it"),
        (
            {"BUCKET": "clips", "PUBLIC_ENDPOINT": "https://host/clips"},
            "LTXQ_S3_PUBLIC_ENDPOINT ends with it",
        ),
        ({"PREFIX": "ltxq"}, "LTXQ_S3_PREFIX: must be one folder"),
        ({"PREFIX": "../"}, "LTXQ_S3_PREFIX: must be one folder"),
        ({"ADDRESSING": "dns"}, "LTXQ_S3_ADDRESSING: must be auto, path or virtual"),
        ({"ADDRESSING": "virtual", "ENDPOINT": "http://127.0.0.1:9"}, "an IP address"),
        ({"ADDRESSING": "virtual", "ENDPOINT": "http://[::1]:9"}, "an IP address"),
        ({"ADDRESSING": "virtual", "PUBLIC_ENDPOINT": "http://10.0.0.1"}, "S3_PUBLIC_ENDPOINT is"),
        ({"ADDRESSING": "virtual", "BUCKET": "My_Clips"}, "LTXQ_S3_BUCKET cannot be"),
        ({"ADDRESSING": "auto", "ENDPOINT": "http://host:0"}, "LTXQ_S3_ENDPOINT: must be a URL"),
        ({"SSE": "AES512"}, "LTXQ_S3_SSE: must be AES256"),
        ({"SSE_KEY_ID": "k"}, "LTXQ_S3_SSE_KEY_ID: needs LTXQ_S3_SSE=aws:kms"),
        ({"SSE_KEY_ID": "k", "SSE": "AES256"}, "LTXQ_S3_SSE_KEY_ID: needs LTXQ_S3_SSE=aws:kms"),
        ({"SSE_KEY_ID": "a b", "SSE": "aws:kms"}, "LTXQ_S3_SSE_KEY_ID: must be the id"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(f"LTXQ_S3_{name}", text)
    with pytest.raises(ConfigurationError) as caught:
        Settings.read()
    assert said in str(caught.value)
    assert "topsecret" not in str(caught.value)


def test_an_empty_setting_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "BUCKET", "SSE", "SSE_KEY_ID", "ADDRESSING", "PUBLIC_ENDPOINT"):
        monkeypatch.setenv(f"LTXQ_S3_{name}", "")
    assert Settings.read().s3_addressing == "auto"
