"""`bench/clip.py` and `bench/busy.py` on the tiny model: the code that measures a GPU, from a bare
checkout.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# What a machine for measuring need not have; nor is ltxq installed there.
FOREIGN = (
    *("celery", "kombu", "redis", "boto3", "botocore", "tenacity", "pydantic_settings"),
    *("fastapi", "uvicorn", "prometheus_client", "standardwebhooks", "flower"),
)
BARE = f"""
import importlib.machinery, runpy, sys

class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {FOREIGN!r}:
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Bare
sys.path[1:] = [folder for folder in sys.path[1:] if not folder.endswith(("/producer", "/worker"))]
runpy.run_path({str(ROOT / "bench")!r} + "/" + sys.argv.pop(1), run_name="__main__")
"""
MODELS = ("ltx-2-19b", "ltx-2.3-22b")
STAGES = {"text", "connectors", "denoise", "upsample", "audio", "decode", "copy", "encode"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a bare checkout measures, by model: two stages, which have all that one has."""
    folder = tmp_path_factory.mktemp("results")
    options = ("--runs=1", "--warmups=0", "--workloads=c", "--optimize=lean")
    run("clip.py", *options, "--model", *MODELS, results=folder)
    return {
        model: json.loads((folder / f"clip-{model}-tiny-cpu.json").read_text()) for model in MODELS
    }


def run(script: str, *options: str, results: Path) -> None:
    """Run one of bench/ where nothing but its own packages is installed."""
    command = [sys.executable, "-c", BARE, script, "--results", str(results), *options]
    subprocess.run(command, check=True, cwd=results, timeout=300)


@pytest.mark.timeout(330)  # seconds; it takes twenty where nothing else runs
@pytest.mark.parametrize("model", MODELS)
def test_every_arm_is_measured_stage_by_stage(results: dict[str, Any], model: str) -> None:
    arms = results[model]["workloads"]["c"]["arms"]
    assert list(arms) == ["library", "library-fp8", "ltxq", "ltxq-fp8"]
    for arm in arms.values():
        assert len(arm["steps"]) == 11
        assert set(arm["stages"]) == STAGES
        took = sum(stage["median"] for stage in arm["stages"].values())
        assert 0.8 < took / arm["prompt to MP4"]["median"] < 1.2  # no stage is left out
        assert arm["MP4 bytes"] > 1000


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("part", ["picture", "sound"])
def test_errors_tell_exact_arms_from_others(results: dict[str, Any], model: str, part: str) -> None:
    arms = results[model]["workloads"]["c"]["arms"]
    errors = {name: arm[f"error of the {part}'s latent"] for name, arm in arms.items()}
    assert errors["ltxq"] == 0  # `lean` is exact: the library's clip, bit for bit
    assert 0.001 < errors["ltxq-fp8"] < errors["library-fp8"] < 0.1
    blocks = results[model]["errors of the first blocks against float32"]
    assert 0 < blocks["library"][part] < 0.01
    assert blocks["ltxq"][part] == blocks["library"][part]
    assert blocks["library"][part] < blocks["ltxq-fp8"][part] < blocks["library-fp8"][part] < 0.1


@pytest.mark.timeout(330)
def test_a_bare_checkout_measures_how_busy_a_backlog_keeps_the_gpu(tmp_path: Path) -> None:
    run("busy.py", "--jobs=3", "--workloads=a", "--pause=0.5", results=tmp_path)
    seen = json.loads((tmp_path / "busy-ltx-2-19b-tiny.json").read_text())["workloads"]["a"]
    assert seen["jobs"] == 3
    idle = seen["seconds"] * (1 - seen["share busy"])
    assert 1.4 < idle < seen["seconds"]  # the three pauses at least are seen as idle
