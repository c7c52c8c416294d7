"""`ltxq doctor`: each thing it knows, broken for real, and what it then says to do."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

import model_files
from ltxq import cli
from ltxq.ledger import Ledger
from ltxq.ops import doctor as base
from ltxq.ops import redis_checks, storage_checks
from ltxq.ops.doctor import base_checks, examine
from ltxq.ops.findings import Finding
from ltxq.ops.redis_checks import check_redis
from ltxq.settings import Settings
from ltxq_worker import doctor
from ltxq_worker.embedded.servers import RedisServer, S3Server
from ltxq_worker.models.tiny.model import make_tiny
from servers import S3, start_or_skip
from strict_s3 import StrictS3

CARD = "0, NVIDIA H100 80GB HBM3, {driver}, {used}, {total}, 0"


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with start_or_skip(lambda: RedisServer.start(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture
def broken(own_redis: RedisServer) -> Iterator[redis.Redis]:
    """A Redis to misconfigure; afterwards it is as before."""
    names = ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy", "requirepass")
    with redis.Redis.from_url(own_redis.url, socket_timeout=5, decode_responses=True) as server:
        before = {name: server.config_get(name)[name] for name in names}
        yield server
        for name, value in before.items():
            server.config_set(name, value)
        server.replicaof("NO", "ONE")


@pytest.fixture
def tiny(tmp_path: Path) -> Settings:
    make_tiny(tmp_path / "models" / "tiny")
    return Settings(model_dir=tmp_path / "models", default_model="tiny")


def said(findings: Iterator[Finding], status: str) -> list[str]:
    return [f"{f.message} {f.hint}".strip() for f in findings if f.status == status]


def of_redis(server: RedisServer, status: str) -> list[str]:
    settings = Settings(url=server.url)
    return said(examine(settings, (("Redis", check_redis),)), status)


def of_storage(settings: Settings, status: str) -> list[str]:
    return said(examine(settings, (("S3 storage", storage_checks.check_storage),)), status)


def test_a_healthy_queue_has_no_problem(own_redis: RedisServer, s3: S3) -> None:
    settings = s3.settings(url=own_redis.url)
    findings = list(examine(settings, base_checks(settings)))
    assert {finding.status for finding in findings} == {"ok"}, findings
    about = " ".join(finding.message for finding in findings)
    for fact in (
        "Redis 6.",
        "appendfsync everysec",
        "last second",
        "A signed URL can be fetched",
    ):
        assert fact in about


@pytest.mark.parametrize(
    ("setting", "value", "status", "words"),
    [
        ("appendonly", "no", "problem", "a restart loses jobs .* Set `appendonly yes`"),
        ("appendfsync", "no", "warning", "half a minute .* Set `appendfsync everysec`"),
        ("maxmemory", "1gb", None, ""),
        ("maxmemory", "3mb", "warning", "of its maxmemory; full, it accepts no jobs"),
    ],
)
def test_what_redis_is_set_to(
    broken: redis.Redis, own_redis: RedisServer, setting: str, value: str, status: str | None,
    words: str,
) -> None:  # fmt: skip
    if value == "3mb":
        value = str(int(broken.info("memory")["used_memory"] * 1.1))
    broken.config_set(setting, value)
    if status is None:
        assert of_redis(own_redis, "problem") + of_redis(own_redis, "warning") == []
        return
    (line,) = of_redis(own_redis, status)
    assert_matches(words, line)


def test_a_redis_that_evicts_jobs(broken: redis.Redis, own_redis: RedisServer) -> None:
    broken.config_set("maxmemory", "1gb")
    broken.config_set("maxmemory-policy", "allkeys-lru")
    (line,) = of_redis(own_redis, "problem")
    assert_matches("allkeys-lru: when it is full it deletes jobs. Set `maxmemory-policy", line)


def test_a_replica(broken: redis.Redis, own_redis: RedisServer, redis_server: RedisServer) -> None:
    broken.replicaof("127.0.0.1", redis_server.port)
    assert "It is a replica. Point LTXQ_URL at the primary." in of_redis(own_redis, "problem")


def test_a_redis_that_refuses_config_still_gets_a_report(
    broken: redis.Redis, own_redis: RedisServer
) -> None:
    broken.acl_setuser(
        "guest", enabled=True, passwords=["+guest"], keys=["*"], commands=["+@all", "-config"]
    )
    settings = Settings(url=f"redis://guest:guest@127.0.0.1:{own_redis.port}/0")
    findings = list(check_redis(settings))
    assert "its fsync policy is hidden" in " ".join(finding.message for finding in findings)
    broken.acl_deluser("guest")


def test_a_redis_that_is_not_there_and_one_with_another_password(own_redis: RedisServer) -> None:
    nobody = Settings(url="redis://127.0.0.1:1/0")
    findings = list(examine(nobody, base_checks(nobody)[1:2]))
    assert [f.status for f in findings] == ["problem"]
    assert_matches("does not answer.*Is it running", f"{findings[0].message} {findings[0].hint}")


def test_a_network_without_tls_or_password_is_warned_of() -> None:
    open_door = Settings(url="redis://queue.example.com:6379/0")
    lines = " ".join(said(redis_checks._exposure(open_door), "warning"))
    assert_matches("unencrypted.*rediss://.*no password.*requirepass", lines)
    closed = Settings(url="rediss://:secret@queue.example.com:6380/0")
    assert list(redis_checks._exposure(closed)) == []


def test_a_storage_that_refuses(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = of_storage(s3.settings().model_copy(update={"s3_bucket": "missing"}), "problem")
    assert "Create the bucket, or correct LTXQ_S3_BUCKET." in line
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-wrong-wrong")
    (line,) = of_storage(s3.settings(), "problem")
    assert "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in line
    assert "wrong-wrong-wrong" not in line
    (line,) = of_storage(Settings(), "problem")
    assert "Set LTXQ_S3_BUCKET" in line


def test_what_a_gateway_may_is_enough_where_no_worker_is(
    moto: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_lists(asked):  # type: ignore[no-untyped-def]
        return (403, "AccessDenied") if asked.operation == "ListObjectsV2" else None

    with StrictS3(moto.endpoint, no_lists) as front:
        settings = Settings(s3_endpoint=front.endpoint, s3_bucket="clips")
        (line,) = of_storage(settings, "problem")
        assert_matches("refused ListObjectsV2.*Allow s3:ListBucket on arn:aws:s3:::clips", line)
        monkeypatch.setattr(storage_checks, "find_spec", lambda _: None)
        assert of_storage(settings, "problem") == []
        assert_matches("Enough for a gateway.*ListObjectsV2", " ".join(of_storage(settings, "ok")))


def test_a_bucket_that_keeps_what_is_deleted_is_told_of(moto: S3) -> None:
    import boto3

    assert "versions" not in " ".join(of_storage(moto.settings(), "ok"))
    bucket = boto3.resource("s3", endpoint_url=moto.endpoint).Bucket(moto.bucket)
    bucket.Versioning().enable()
    assert "noncurrent versions" in " ".join(of_storage(moto.settings(), "ok"))
    bucket.object_versions.delete()  # so that the next test can delete the bucket


def test_a_session_that_does_not_say_when_it_ends_is_warned_of(
    moto: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "opaque")
    (line,) = of_storage(moto.settings(), "warning")
    assert_matches("signed for 15 minutes.*AWS_CREDENTIAL_EXPIRATION", line)


def test_clips_that_cannot_be_deleted_are_counted(redis_url: str) -> None:
    settings = Settings(url=redis_url)
    with closing(Ledger(settings)) as ledger:
        assert list(storage_checks.check_undeleted(settings)) == []
        ledger.sweeper.garbage_refused([f"video_1/{1:016x}"])
        (line,) = said(storage_checks.check_undeleted(settings), "warning")
        assert_matches("files of 1 clips, as video_1/0000000000000001", line)


def test_a_proxying_gateway_needs_no_urls_for_viewers(s3: S3) -> None:
    settings = s3.settings(s3_public_endpoint="http://127.0.0.1:1", content="proxy")
    assert of_storage(settings, "warning") == []
    assert_matches("without LTXQ_PUBLIC_URL.*storage's URLs", " ".join(of_storage(settings, "ok")))


def test_a_store_whose_urls_cannot_have_a_name(moto: S3) -> None:
    def rule(asked):  # type: ignore[no-untyped-def]
        return (400, "InvalidArgument") if "response-content-disposition" in asked.path else None

    with StrictS3(moto.endpoint, rule) as front:
        settings = Settings(s3_endpoint=front.endpoint, s3_bucket="clips")
        (line,) = of_storage(settings, "problem")
    assert_matches("signed URL answers HTTP 400", line)


def test_urls_that_viewers_cannot_use(s3: S3, s3_server: S3Server) -> None:
    (line,) = of_storage(s3.settings(s3_public_endpoint="http://127.0.0.1:1"), "warning")
    assert_matches("127.0.0.1:1 does not answer.*LTXQ_S3_PUBLIC_ENDPOINT", line)
    # The bucket is not public, so its bare URL is refused.
    closed = s3.settings(s3_public_base_url=f"{s3_server.endpoint}/{s3_server.bucket}")
    (line,) = of_storage(closed, "problem")
    assert_matches("answers HTTP 4.. .*is the bucket public", line)


@pytest.mark.parametrize(
    ("seconds", "status"), [(3, "ok"), (-300, "warning"), (300, "warning"), (1200, "problem")]
)
def test_a_clock_that_is_off(seconds: float, status: str) -> None:
    found = storage_checks._skew(seconds)
    assert found.status == status
    assert ("set-ntp" in found.hint) == (status != "ok")


def test_jobs_that_nobody_makes(redis_url: str) -> None:
    settings = Settings(url=redis_url, default_model="instant")
    assert said(base.check_workers(settings), "ok") == ["No worker is ready, and no job waits."]
    ledger = Ledger(settings)
    from ltxq import Client

    with Client(settings=settings) as client:
        client.submit("a fox")
    (line,) = said(base.check_workers(settings), "warning")
    assert "instant: 1 queued, and no worker is ready. Start one: ltxq worker --model" in line
    ledger.fleet.heartbeat("instant", "a", {"gpu0@a": "ready"})
    assert said(base.check_workers(settings), "ok") == ["instant: 1 ready."]


def cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *lines: str) -> None:
    """An nvidia-smi that shows these cards."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_drivers_and_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (line,) = said(doctor.check_gpus(Settings()), "warning")
    assert "no GPU here. The real models need one" in line
    cards(monkeypatch, tmp_path, CARD.format(driver="580.95.05", total=81559, used=10))
    assert said(doctor.check_gpus(Settings()), "ok") == [
        "0: NVIDIA H100 80GB HBM3, 86 GB, driver 580.95.05."
    ]
    cards(monkeypatch, tmp_path, CARD.format(driver="550.54.15", total=81559, used=60000))
    (line,) = said(doctor.check_gpus(Settings()), "problem")
    assert "Install NVIDIA's driver 580 or newer." in line
    (line,) = said(doctor.check_gpus(Settings()), "warning")
    assert "62.9 GB are in use" in line


def test_torch_and_torchaudio_of_two_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.11.0", "torchaudio": "2.10.0", "ltx-core": "1.0.0"}
    monkeypatch.setattr(doctor, "version", versions.__getitem__)
    (line,) = said(doctor.check_torch(Settings()), "problem")
    assert_matches("2.11.0 and torchaudio 2.10.0: they must match.*requirements/worker.txt", line)


def test_a_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: not found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (line,) = said(doctor.check_torch(Settings()), "problem")
    assert_matches("cannot be imported.*libcudart.so.13", line)


def test_torch_that_sees_no_gpu_though_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {"torch": "2.11.0+cpu", "cuda": None, "gpus": []}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert said(doctor._what_torch_sees(seen), "ok")
    cards(monkeypatch, tmp_path, CARD.format(driver="580.95.05", total=81559, used=10))
    (line,) = said(doctor._what_torch_sees(seen), "problem")
    assert_matches("sees no GPU, though nvidia-smi does.*not a build for CPUs", line)


def test_a_missing_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    (line,) = said(doctor.check_compiler(Settings()), "warning")
    assert_matches("gcc.*without torch.compile.*apt install gcc", line)
    assert said(doctor.check_compiler(Settings(optimize="hoist")), "skipped")


def test_a_model_that_is_missing_cut_short_or_damaged(tiny: Settings) -> None:
    def look(settings: Settings, *, hashes: bool = False) -> list[Finding]:
        checks = doctor.WorkerChecks.of(settings, None, None, hashes)
        return list(examine(settings, (("Model", checks.check_model),)))

    assert [f.status for f in look(tiny)] == ["ok"]
    (finding,) = look(tiny.model_copy(update={"default_model": "mine"}))
    assert (finding.status, "There is no model folder" in finding.message) == ("problem", True)

    folder = tiny.model_dir / "tiny"
    file = folder / "checkpoint.safetensors"
    assert [f.status for f in look(tiny, hashes=True)] == ["ok", "skipped", "skipped"]
    sums = f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
    (folder / "SHA256SUMS").write_text(sums)
    assert sorted(f.status for f in look(tiny, hashes=True)) == ["ok", "ok", "skipped"]
    with file.open("r+b") as bytes_of_it:
        bytes_of_it.seek(-1, 2)
        bytes_of_it.write(b"\xff")
    assert [f.status for f in look(tiny)] == ["ok"]
    damaged = next(f for f in look(tiny, hashes=True) if f.status == "problem")
    assert_matches("is damaged: its SHA-256.*put a whole copy", damaged.message + damaged.hint)
    with file.open("r+b") as bytes_of_it:
        bytes_of_it.truncate(1000)
    assert [f.status for f in look(tiny)] == ["problem"]


def test_a_model_without_its_upscaler_or_that_cannot_be_used(tiny: Settings) -> None:
    checks = doctor.WorkerChecks.of(tiny, None, None, False)
    (tiny.model_dir / "tiny" / "spatial_upsampler.safetensors").unlink()
    (line,) = said(checks.check_model(tiny), "warning")
    assert_matches("has no spatial upscaler, which clips in two stages need", line)
    (tiny.model_dir / "tiny" / "checkpoint.safetensors").write_bytes(b"GGUF")
    assert said(checks.check_memory(tiny), "skipped")  # the model's own check says what is wrong


def test_a_card_too_small_for_the_clip(
    tiny: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checks = doctor.WorkerChecks.of(tiny, None, "2048x2048x121", False)
    cards(monkeypatch, tmp_path, CARD.format(driver="580.95.05", total=81559, used=0))
    assert said(checks.check_memory(tiny), "ok")
    cards(monkeypatch, tmp_path, CARD.format(driver="580.95.05", total=6000, used=0))
    (line,) = said(checks.check_memory(tiny), "problem")
    assert_matches("2048×2048 with 121 frames takes about .* GPU 0 has 6. The largest", line)


def test_without_a_card_nothing_is_computed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Such as from a configuration that lacks what it takes."""
    model_files.model(tmp_path / "mine")
    cards(monkeypatch, tmp_path)
    settings = Settings(model_dir=tmp_path)
    checks = doctor.WorkerChecks.of(settings, "mine", None, False)
    found = examine(settings, (("Model", checks.check_model), ("GPU memory", checks.check_memory)))
    assert [f.status for f in found] == ["ok", "warning", "skipped"]


def test_a_spool_without_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(spool_dir=tmp_path / "spool")
    assert said(doctor.check_spool(settings), "ok")
    monkeypatch.setattr(doctor, "SPOOL_CLIP", 10**15)
    (line,) = said(doctor.check_spool(settings), "warning")
    assert "set LTXQ_SPOOL_DIR to a larger disk" in line


def test_the_command_exits_with_1_where_there_is_a_problem(
    own_redis: RedisServer, s3: S3, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("LTXQ_URL", own_redis.url)
    monkeypatch.setenv("LTXQ_S3_ENDPOINT", s3.endpoint)
    monkeypatch.setenv("LTXQ_S3_BUCKET", s3.bucket)
    assert cli.main(["doctor", "--model", "instant", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"]
    assert {"Redis", "S3 storage", "torch", "Spool"} <= {f["about"] for f in shown["findings"]}
    monkeypatch.setenv("LTXQ_S3_BUCKET", "missing")
    assert cli.main(["doctor", "--model", "instant"]) == 1
    out = capsys.readouterr().out
    assert_matches(r"(?s)PROBLEM  S3 storage .*\n +→ Create the bucket", out)
    assert cli.main(["doctor", "--size", "huge"]) == 2


def test_a_machine_without_the_worker_gets_the_rest(
    own_redis: RedisServer, s3: S3, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("LTXQ_URL", own_redis.url)
    monkeypatch.setenv("LTXQ_S3_ENDPOINT", s3.endpoint)
    monkeypatch.setenv("LTXQ_S3_BUCKET", s3.bucket)
    monkeypatch.setattr("ltxq.cli.machine.find_spec", lambda name: None)
    assert cli.main(["doctor"]) == 0
    assert "SKIPPED  Worker      The worker is not installed here" in capsys.readouterr().out


def assert_matches(words: str, text: str) -> None:
    assert re.search(words, text), text
