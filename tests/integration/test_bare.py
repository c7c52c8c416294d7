"""`bench/bare.sh` where ltxq is not installed, nor what its tests need: a rehearsal of a run on a
GPU, with the tiny model. And `bench/busy.py`'s own thread, and the stand-in for S3.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch

from bench import busy
from bench.harness import s3_stub, smi, workloads
from fleet import eventually
from ltxq.job import VideoRequest
from ltxq.settings import Settings
from ltxq.storage import Storage
from ltxq_worker.embedded.servers import spawn
from ltxq_worker.pipeline import ClipStream, Report
from ltxq_worker.pipeline.instant import InstantPipeline
from ltxq_worker.pipeline.thread import GpuThread
from servers import exists

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]
PATIENCE = 500  # seconds; a step takes one minute where nothing else runs
QUEUE = "celery,kombu,redis,boto3,botocore,tenacity,pydantic_settings"


def bare(folder: Path, *words: str, **environment: str) -> str:
    """What `bench/bare.sh` says; it must end with 0."""
    ended = subprocess.run(
        [ROOT / "bench" / "bare.sh", *words],
        env=os.environ
        | {
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT / "tests" / "bare"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "RESULTS": str(folder),
            "SCALE": "small",
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.mark.timeout(PATIENCE + 10)
def test_check_runs_the_gpus_tests_and_a_clip_and_ends_with_a_table(tmp_path: Path) -> None:
    said = bare(tmp_path, "check")
    table = said.rpartition("\n\n")[2].splitlines()
    assert table[0].startswith("tests/gpu: ")
    assert " 0 failed" in table[0]
    assert [row.split()[:2] for row in table[3:]] == [
        ["a,", arm] for arm in ("library", "ltxq-fp8", "ltxq")
    ]
    kept = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert kept == {"check.log", "tests-gpu.xml", "clip-ltx-2-19b-tiny-cpu.json"}
    assert (tmp_path / "check.log").read_text() in said
    measured = json.loads((tmp_path / "clip-ltx-2-19b-tiny-cpu.json").read_text())
    assert measured["machine"]["device"] == "cpu"


@pytest.mark.timeout(PATIENCE + 10)
def test_busy_measures_in_the_process_and_through_a_real_queue(tmp_path: Path) -> None:
    said = bare(tmp_path, "busy", BARE_HAS=QUEUE)
    seen = json.loads((tmp_path / "busy-ltx-2-19b-tiny-cpu.json").read_text())
    for how in ("in the process", "through the queue"):
        assert seen[how]["workloads"].keys() == {"a", "b"}
        for figures in seen[how]["workloads"].values():
            assert figures["jobs"] == 2
            assert 0 < figures["share busy"] < 1
    for figures in seen["through the queue"]["workloads"].values():
        assert figures["MP4 p50 (bytes)"] > 1000
        assert 0 < figures["upload p50 (s)"] < figures["claim to URL p50 (s)"]
    first, second = seen["through the queue"]["starts"]
    assert first["ready (s)"] > first["imports (s)"] > 0
    assert second["ready (s)"] > 0
    assert "through the queue, b: busy" in said.rpartition("\n\n")[2]


def test_a_step_that_fails_says_so_and_shows_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"attention failed: see .*attention\.log"):
        bare(tmp_path, "attention", LIMIT="0")


def test_without_a_step_it_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"bench/bare\.sh table MODEL"):
        bare(tmp_path, "measure")
    assert not list(tmp_path.iterdir())


class Noting:
    """The test pipeline, which notes its thread at each call and each frame."""

    def __init__(self) -> None:
        inner = InstantPipeline()
        self.model, self.versions, self._inner = inner.model, inner.versions, inner
        self.threads: list[str] = []

    def generate(self, request: VideoRequest, report: Report) -> ClipStream:
        self.threads.append(threading.current_thread().name)
        clip = self._inner.generate(request, report)
        return ClipStream(frames=self._noted(clip.frames), sound=clip.sound)

    def _noted(self, frames: Iterator[Any]) -> Iterator[Any]:
        for chunk in frames:
            self.threads.append(threading.current_thread().name)
            yield chunk


def test_a_backlog_is_made_on_the_thread_that_warmed_up() -> None:
    pipeline, gpu = Noting(), GpuThread()
    backlog = busy.Backlog(pipeline, torch.device("cpu"), gpu, pause=0.01)
    requests = [workloads.request("a", take, tiny=True) for take in range(5)]
    backlog.run(requests[:2])
    figures = backlog.run(requests[2:])
    assert figures["jobs"] == 3  # and not those that warmed up
    assert 0 < figures["share busy"] < 1
    assert len(pipeline.threads) == 5 * (1 + 2)
    assert set(pipeline.threads) == {"gpu_0"}


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """ltxq's own way to storage, by boto3, to the stand-in."""
    from bench.harness.queued import _port

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "bench")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "bench")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    log = tmp_path / "s3.log"
    process = spawn([sys.executable, s3_stub.__file__], log)
    try:
        endpoint = f"http://127.0.0.1:{_port(process, log)}"
        yield Storage.from_settings(Settings(s3_endpoint=endpoint, s3_bucket="clips"))
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("size", [0, 1000, 40_000_000], ids=["empty", "small", "in parts"])
def test_what_boto3_puts_into_the_stand_in_comes_back(
    storage: Storage, tmp_path: Path, size: int
) -> None:
    content = os.urandom(size)
    (tmp_path / "clip").write_bytes(content)
    storage.check()
    storage.put("ltxq/job/1/clip.mp4", tmp_path / "clip", "video/mp4")
    url, _ = storage.url("ltxq/job/1/clip.mp4", 60)
    with urlopen(url, timeout=30) as answer:  # noqa: S310 - loopback
        assert answer.headers["Content-Type"] == "video/mp4"
        assert answer.read() == content
    assert [entry.size for entry in storage.entries()] == [size]


def test_the_stand_in_lists_by_prefix_and_page_and_deletes(storage: Storage) -> None:
    keys = [f"ltxq/a/{number:04} & more" for number in range(1005)]
    one, two = "ltxq/b/one", "ltxq/b/two"
    for key in [*keys, one, two, "c/three"]:
        storage.mark(key)
    assert list(storage.list("a/")) == keys
    assert list(storage.list("b/")) == [one, two]
    assert exists(storage, one)
    storage.delete([*keys, one, "ltxq/b/gone already"])
    assert list(storage.list()) == [two]
    assert not exists(storage, one)
    assert list(storage.list("d/")) == []


def test_a_part_of_an_object_can_be_asked_for(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "clip").write_bytes(bytes(range(100)))
    storage.put("clip", tmp_path / "clip", "video/mp4")
    answer = storage._calls.client.get_object(Bucket="clips", Key="clip", Range="bytes=10-19")
    assert answer["Body"].read() == bytes(range(10, 20))
    assert answer["ContentRange"] == "bytes 10-19/100"


def test_what_nvidia_smi_says_is_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, told = tmp_path / "nvidia-smi", tmp_path / "told"
    rows = ("90, 1980, [N/A]", "100, 1900, [N/A]", "99, 19")  # the last one was cut off
    lines = (f"echo '{row}'" for row in rows)
    asked.write_text("\n".join(["#!/bin/sh", *lines, f": > {told}", "exec sleep 60"]))
    asked.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with smi.watched() as seen:
        eventually(told.exists)
    assert seen == {"nvidia-smi: a kernel runs (%)": 95, "clock (MHz)": 1940}
    monkeypatch.setenv("PATH", "/nowhere")
    with smi.watched() as nothing:
        pass
    assert nothing == {}
