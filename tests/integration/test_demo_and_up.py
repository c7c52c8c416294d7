"""`ltxq demo` and `ltxq up` as a newcomer runs them: real servers, a real worker, real files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from fleet import eventually, wait_until_running
from ltxq import Client
from ltxq.errors import ConfigurationError, LtxqError
from ltxq.settings import Settings, StorageSettings
from ltxq_worker.embedded.servers import RedisServer, rclone_binary, redis_binary
from ltxq_worker.embedded.stack import Stack
from servers import start_or_skip
from variants import variants

LTXQ = [sys.executable, "-m", "ltxq"]
SMALL = ("--width", "64", "--height", "64", "--num-frames", "9")


@pytest.fixture(autouse=True)
def _servers_are_installed() -> None:
    start_or_skip(redis_binary)
    start_or_skip(rclone_binary)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "LTXQ_MODEL_DIR": str(tmp_path / "models"),
        # A company's proxies reach nothing on this machine.
        **dict.fromkeys(("HTTP_PROXY", "http_proxy"), "http://127.0.0.1:1"),
        "ALL_PROXY": "socks5://127.0.0.1:1",
    }


@contextmanager
def running_up(
    folder: Path, environment: dict[str, str], *, log: Path = Path(os.devnull)
) -> Iterator[dict[str, Any]]:
    """`ltxq up` on `folder`; what it printed, and the environment for its clients."""
    command = [*LTXQ, "up", "--data", str(folder), "--model", "instant", "--json"]
    ports = (
        ("--redis-port", "0", "--s3-port", "0", "--http-port", "0", "--flower-port", "0")
        if not folder.exists()
        else ()
    )
    with (
        log.open("w") as said,
        subprocess.Popen(
            [*command, *ports], env=environment, stdout=subprocess.PIPE, stderr=said
        ) as process,
    ):
        try:
            assert process.stdout is not None
            about = json.loads(process.stdout.readline())
            sourced = subprocess.run(
                ["sh", "-c", f". '{about['environment_file']}' && env -0"],
                env=environment,
                capture_output=True,
                check=True,
            ).stdout.decode()
            client = dict(line.split("=", 1) for line in sourced.split("\0") if line)
            yield {**about, "client": client, "process": process}
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert process.stdout.read() == b""  # one JSON object and nothing else
        finally:
            process.kill()


def ltxq(*words: str, environment: dict[str, str]) -> Any:
    done = subprocess.run(
        [*LTXQ, *words, "--json"], env=environment, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - our own server's
        return bytes(answer.read())


@pytest.mark.extended
def test_up_keeps_jobs_clips_and_urls_over_a_restart(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "ltxq data"
    with running_up(folder, environment) as up:
        job = ltxq("submit", "a fox", "--wait", *SMALL, environment=up["client"])
        clip = fetched(job["result"]["url"])
        assert hashlib.sha256(clip).hexdigest() == job["result"]["sha256"]
        assert job["result"]["url"].startswith(up["url"])
        assert (folder / "s3" / "clips" / job["result"]["key"]).read_bytes() == clip
        assert json.loads(fetched(f"{up['api']}/jobs/{job['id']}"))["state"] == "succeeded"
        url = up["url"]
        link = json.loads(fetched(f"{up['api']}/jobs/{job['id']}"))["result"]["url"]
        assert link.startswith(f"{url.rstrip('/')}/v1/videos/{job['id']}/content?")
        part = urllib.request.Request(link, headers={"Range": "bytes=4-7"})  # noqa: S310
        with urllib.request.urlopen(part, timeout=30) as answer:  # noqa: S310
            assert (answer.status, answer.read()) == (206, b"ftyp")
    with running_up(folder, environment) as up:
        again = ltxq("status", job["id"], environment=up["client"])
        assert again["state"] == "succeeded"
        assert fetched(again["result"]["url"]) == clip
        assert up["url"] == url
        assert b"<html" in fetched(f"{url}/")
        assert fetched(job["result"]["url"]) == clip  # the port and the keys are the same
        ltxq("submit", "another", "--wait", *SMALL, environment=up["client"])


@pytest.mark.parametrize("number", variants(signal.SIGTERM, extended=(signal.SIGHUP,)))
def test_a_signal_to_every_process_of_up_lets_the_running_job_finish(
    tmp_path: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    """As systemd signals a service: the servers are signalled too."""
    folder, log = tmp_path / "data", tmp_path / "log"
    with running_up(folder, {**environment, "LTXQ_INSTANT_SECONDS": "3"}, log=log) as up:
        with Client(up["client"]["LTXQ_URL"]) as client:
            job = client.submit("a fox", model="instant", width=64, height=64, num_frames=9)
            wait_until_running(client, job)
        whole = psutil.Process(up["process"].pid)
        for process in (*whole.children(recursive=True), whole):
            process.send_signal(number)
        assert up["process"].wait(60) == 0
    assert "is queued again" not in log.read_text()
    with (
        RedisServer.start(folder / "redis", password=password(up)) as redis,
        Client(redis.url) as client,
    ):
        assert client.get(job.id).state == "succeeded"


@pytest.mark.extended
def test_a_killed_up_leaves_no_process(tmp_path: Path, environment: dict[str, str]) -> None:
    environment |= {"LTXQ_INSTANT_SECONDS": "60"}
    ports = [f"--{name}-port=0" for name in ("redis", "s3", "http", "flower")]
    command = [*LTXQ, "up", "--data", str(tmp_path / "data"), "--model", "instant", "--json"]
    with subprocess.Popen([*command, *ports], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        json.loads(process.stdout.readline())
        file = tmp_path / "data" / "env.sh"
        (url,) = re.findall(r"LTXQ_URL='?([^'\n]*)", file.read_text())
        with Client(url) as client:
            job = client.submit("a fox", model="instant", width=64, height=64, num_frames=9)
            wait_until_running(client, job)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 5
        process.kill()
    _, alive = psutil.wait_procs(children, 60)
    assert not alive


def password(up: dict[str, Any]) -> str:
    return str(up["client"]["LTXQ_URL"].partition("@")[0].rpartition(":")[2])


@pytest.mark.extended
def test_a_second_signal_gives_the_running_job_back_before_redis_ends(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    folder, log = tmp_path / "data", tmp_path / "log"
    with running_up(folder, {**environment, "LTXQ_INSTANT_SECONDS": "60"}, log=log) as up:
        with Client(up["client"]["LTXQ_URL"]) as client:
            job = client.submit("a fox", model="instant", width=64, height=64, num_frames=9)
            wait_until_running(client, job)
        up["process"].send_signal(signal.SIGINT)
        eventually(lambda: "draining" in log.read_text())  # running_up then sends SIGTERM
    with running_up(folder, environment) as up:
        again = ltxq("watch", job.id, environment=up["client"])
        assert (again["state"], again["attempts"]) == ("succeeded", 2)


def test_the_keys_of_up_are_for_its_owner_alone(tmp_path: Path) -> None:
    with Stack(tmp_path / "data", model="instant", ports={"redis_port": 0, "s3_port": 0}) as stack:
        file = stack.write_environment()
        assert file.stat().st_mode & 0o777 == 0o600
        assert (stack.folder / "servers.json").stat().st_mode & 0o777 == 0o600
        assert stack.folder.stat().st_mode & 0o777 == 0o700
        with pytest.raises(ConfigurationError, match="Another ltxq"):
            Stack(tmp_path / "data", model="instant")


def test_up_uses_no_other_queue_or_storage_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {f"LTXQ_{name}".upper() for name in StorageSettings.model_fields}
    chosen |= {"LTXQ_URL", "LTXQ_REDIS_REPLICAS", "LTXQ_REDIS_CA", "LTXQ_API_KEY"}
    monkeypatch.setattr(os, "environ", {**os.environ, **dict.fromkeys(chosen, "another")})
    ports = {"redis_port": 0, "s3_port": 0, "http_port": 0}
    with Stack(tmp_path / "data", model="instant", ports=ports, gateway=True) as stack:
        stack.use_here()
        assert "another" not in os.environ.values()
        settings = Settings.read()
    assert (settings.content, settings.s3_prefix) == ("proxy", "ltxq/")
    assert settings.public_url


def test_up_ends_with_a_clear_word_when_its_worker_cannot_start(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    command = [*LTXQ, "up", "--data", str(tmp_path / "data"), "--model", "instant"]
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ports = ("--redis-port", "--s3-port", "--http-port", "--flower-port")
        done = subprocess.run(
            [*command, *(word for option in ports for word in (option, "0"))],
            env={**environment, "LTXQ_METRICS_ADDRESS": f"127.0.0.1:{port}"},
            capture_output=True,
            text=True,
            timeout=90,
        )
    assert done.returncode == 1
    assert "The worker has ended by itself" in done.stderr
    assert "Traceback" not in done.stderr


def test_up_refuses_a_gpu_that_is_not_there_before_it_starts_anything(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    command = [*LTXQ, "up", "--data", str(tmp_path / "data"), "--model", "instant", "--gpus", "99"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: No such GPU here: '99'")
    assert not (tmp_path / "data").exists()


def test_a_part_that_ends_by_itself_is_noticed(tmp_path: Path) -> None:
    with Stack(tmp_path / "data", model="instant", ports={"redis_port": 0, "s3_port": 0}) as stack:
        stack.check()
        stack.redis.process.kill()
        stack.redis.process.wait(10)
        with pytest.raises(LtxqError, match="Redis has ended by itself"):
            stack.check()


@pytest.mark.timeout(240)
def test_demo_makes_a_clip_and_leaves_nothing_running(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "models" / "tiny").mkdir(parents=True)  # broken: made anew
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (tmp_path / "types.py").write_text("raise SystemExit('the working directory was imported')")
    environment = {**environment, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "ltxq", "demo", "a fox in the snow", "--json"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    outcome = json.loads(out)
    assert outcome["job"]["request"]["prompt"] == "a fox in the snow"
    clip = Path(outcome["file"])
    assert clip.parent == tmp_path / "clips"
    assert hashlib.sha256(clip.read_bytes()).hexdigest() == outcome["job"]["result"]["sha256"]
    assert "random weights" in err
    assert "denoising" in err
    assert not list(temporary.glob("ltxq-demo-*"))
    if pgrep := shutil.which("pgrep"):
        assert subprocess.run([pgrep, "-f", str(temporary)], capture_output=True).stdout == b""
