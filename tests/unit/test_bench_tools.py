"""What carries a bench to a bare machine, and what it tells of it; how tests/gpu starts there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bench import show, wheels

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]


def test_wheels_are_those_of_the_lock_file_with_hashes() -> None:
    blocks = wheels.locked(wheels.PIPELINE + wheels.QUEUE).split("\n--", 1)[0]
    heads = re.findall(r"^([a-z0-9-]+)==(\S+) \\$", blocks, re.MULTILINE)
    assert [name for name, _ in heads] == wheels.PIPELINE + wheels.QUEUE
    assert all(
        re.search(rf"^{name}==.*\n +--hash=sha256:", blocks, re.MULTILINE) for name, _ in heads
    )
    lock = (ROOT / "requirements" / "dev.txt").read_text()
    versions = re.findall(r"^av==(\S+)", lock, re.MULTILINE)
    assert len(versions) == 2  # one for Python 3.11, one for newer ones
    assert dict(heads)["av"] == max(versions, key=lambda v: [int(n) for n in v.split(".")])


def test_everything_the_worker_needs_is_carried_or_there() -> None:
    """What `pip install '.[worker]'` brings is on such a machine, or among the wheels."""
    there = {"torch", "torchaudio", "transformers", "huggingface-hub", "safetensors", "numpy"}
    unused = {
        "typer",
        "rich",
        "prometheus-client",
        "standardwebhooks",
    }  # the CLI's, the supervisor's
    project = (ROOT / "pyproject.toml").read_text()
    needed = re.findall(
        r'^  "([a-z0-9-]+)[\[>=]', project.partition("gateway = [")[0], re.MULTILINE
    )
    needed = {name for name in needed if name != "ltxq"}
    assert needed - there - unused <= set(wheels.PIPELINE + wheels.QUEUE)


def test_of_botocore_only_s3_is_carried(tmp_path: Path) -> None:
    wheel = tmp_path / "botocore-1-py3-none-any.whl"
    names = {
        "botocore/client.py": True,
        "botocore/data/endpoints.json": True,
        "botocore/data/s3/2006/service-2.json": True,
        "botocore/data/ec2/2016/service-2.json": False,
        "botocore-1.dist-info/RECORD": True,
    }
    with zipfile.ZipFile(wheel, "w") as file:
        for name in names:
            file.writestr(name, name)
    wheels.keep_s3_alone(wheel)
    with zipfile.ZipFile(wheel) as file:
        assert file.namelist() == [name for name, kept in names.items() if kept]
    assert list(tmp_path.iterdir()) == [wheel]


def test_figures_are_shown_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = {"device": "NVIDIA H200"}
    made = {
        "stages": {"denoise": {"median": 0.5}}, "prompt to MP4": {"median": 1.2}, "runs": 5,
        "times the library's speed": 2.5, "allocated GB": 57.3,
        "error of the picture's latent": 0.01,
    }  # fmt: skip
    arms = {
        "ltxq-fp8": made,
        "ltxq": {"failed": "out of memory"},
        "library": made | {"failed": "lost"},
    }
    files: dict[str, Any] = {
        "clip-m-nvidia-h200": {"machine": machine, "workloads": {"a": {"arms": arms}}},
        "busy-m-nvidia-h200": {
            "machine": machine,
            "through the queue": {
                "workloads": {
                    "a": {
                        "share busy": 0.981,
                        "seconds": 22,
                        "jobs": 20,
                        "claim to URL p50 (s)": 1.3,
                    }
                },
                "starts": [{"ready (s)": 61.0}],
            },
        },
        "profile-m-nvidia-h200": {
            "machine": machine,
            "workloads": {
                "b": {
                    "2 steps": {
                        "seconds": 0.4,
                        "kernels (ms)": 390.0,
                        "kernels launched": 900,
                        "longest": [{"kernel": "gemm", "count": 96, "ms": 195.0}] * 7,
                    }
                }
            },
        },
        "attention-nvidia-h200": {
            "torch": "2.11",
            "cudnn": 91900,
            "a": {"cuDNN": {"ms": 0.4}, "flash": {"refused": "no"}},
        },
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "tests-gpu.xml").write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">'
        '<testcase name="test_good"/><testcase name="test_bad"><failure/></testcase>'
        '<testcase name="test_left"><skipped/></testcase></testsuite></testsuites>'
    )
    monkeypatch.setattr(sys, "argv", ["show.py", str(tmp_path)])
    show.main()
    said = capsys.readouterr().out
    assert "tests/gpu: 1 passed, 1 failed, 1 skipped\n  failed: test_bad\n" in said
    assert re.search(r"a, ltxq-fp8 +0\.500 +1\.200 +2\.50 +57\.3 +0\.01 +5\n", said)
    assert re.search(r"a, ltxq +out of memory\n", said)
    assert re.search(r"a, library +0\.500 .* 5  lost\n", said)
    assert "through the queue, a: busy 98.1% of 22.0 s, 20 clips, claim to URL 1.30 s" in said
    assert "start 1: ready (s) 61" in said
    assert said.count(" 50.0%     96 × gemm") == 5
    assert "a (ms): cuDNN 0.4, flash refused" in said
    monkeypatch.setattr(sys, "argv", ["show.py", str(tmp_path), "attention"])
    show.main()
    assert capsys.readouterr().out.startswith("attention-nvidia-h200, torch 2.11")


# torch warns when its hunt for waits is switched on: C++ code does, which runs without a GPU too.
WARNS = """
import torch


def test_waits() -> None:
    torch._C._cuda_set_sync_debug_mode(2)
    torch._C._cuda_set_sync_debug_mode(0)
"""


@pytest.mark.parametrize("of_gpu", [True, False])
def test_what_torch_warns_of_on_a_gpu_fails_no_test_there(tmp_path: Path, of_gpu: bool) -> None:
    (tmp_path / "test_waits.py").write_text(WARNS)
    if of_gpu:
        shutil.copy(ROOT / "tests" / "gpu" / "conftest.py", tmp_path)
    pytest_with = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml")]
    ended = subprocess.run(
        [*pytest_with, "--rootdir", str(tmp_path), "-p", "no:xdist", str(tmp_path)],
        capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert ("1 passed, 1 warning" in ended.stdout) == of_gpu, ended.stdout
    assert "prototype feature" in ended.stdout
