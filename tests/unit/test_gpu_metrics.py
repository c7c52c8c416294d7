"""GPU figures from what nvidia-smi prints; a script stands in for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fleet import eventually
from ltxq_worker.supervisor.child import WorkerSlot
from ltxq_worker.supervisor.metrics import GPU_STALE_SECONDS, GpuCollector
from scrape import Scrape

SLOTS = [WorkerSlot(name=f"gpu{n}@host", device="cuda", gpu=str(n)) for n in (0, 1)]


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stand-in prints is this file's text; without it, it fails."""
    script = tmp_path / "nvidia-smi"
    text = tmp_path / "text"
    script.write_text(
        '#!/bin/sh\ncase "$1" in\n*index,name,driver_version,memory.used,memory.total,'
        f"utilization.gpu) exec cat {text};;\nesac\nexit 2\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return text


def told(gpus: GpuCollector) -> Scrape:
    registry = CollectorRegistry()
    registry.register(gpus)
    return Scrape.read(generate_latest(registry).decode())


def test_memory_and_load_are_told_by_worker(says: Path) -> None:
    says.write_text(
        "0, H100, 580.95, 1024, 81559, 37\n1, H100, 580.95, 0, 81559, 100\n"
        "2, H100, 580.95, 5, 81559, 0\n"
    )
    gpus = GpuCollector(SLOTS)
    gpus.start()
    eventually(lambda: told(gpus).value("ltxq_worker_gpu_memory_used_bytes"))
    now = told(gpus)
    assert now.value("ltxq_worker_gpu_memory_used_bytes", worker="gpu0@host") == 2**30
    assert now.value("ltxq_worker_gpu_memory_size_bytes", worker="gpu1@host") == 81559 * 2**20
    assert now.value("ltxq_worker_gpu_utilization_ratio", worker="gpu0@host") == 0.37
    assert now.labels("ltxq_worker_gpu_utilization_ratio", "worker") == {"gpu0@host", "gpu1@host"}


def test_what_a_card_does_not_tell_is_left_out(says: Path) -> None:
    says.write_text("0, H100, 580.95, 1024, 81559, [N/A]\n")
    gpus = GpuCollector(SLOTS)
    gpus.start()
    eventually(lambda: told(gpus).value("ltxq_worker_gpu_memory_used_bytes"))
    assert told(gpus).value("ltxq_worker_gpu_utilization_ratio") is None


def test_an_old_answer_is_not_told(says: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says.write_text("0, H100, 580.95, 1024, 81559, 37\n")
    gpus = GpuCollector(SLOTS)
    gpus.start()
    eventually(lambda: told(gpus).value("ltxq_worker_gpu_memory_used_bytes"))
    later = gpus._found_at + GPU_STALE_SECONDS + 1
    monkeypatch.setattr("ltxq_worker.supervisor.metrics.time.monotonic", lambda: later)
    assert told(gpus).value("ltxq_worker_gpu_memory_used_bytes") is None


def test_a_machine_without_gpus_tells_none_and_asks_nobody(says: Path) -> None:
    gpus = GpuCollector([WorkerSlot(name="cpu0@host", device="cpu", gpu=None)])
    gpus.start()
    assert told(gpus).samples == {}
