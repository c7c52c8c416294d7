"""`bench/clip.py` on the tiny model: what it measures, from a bare checkout; and that an arm that
fails, a device that is lost and a time that is over cost no figure that was measured before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.harness import contest, plan
from bench.harness.arms import LibraryArm, LtxqArm, Made
from bench.harness.contest import Contest
from bench.harness.phases import Phases
from bench.harness.weights import Sizes, build_shared, build_transformer
from ltxq_worker.pipeline import DeviceBroken
from ltxq_worker.pipeline.fast.options import Optimizations

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]
MODELS = ("ltx-2-19b", "ltx-2.3-22b")
STAGES = {"text", "connectors", "denoise", "upsample", "audio", "decode", "copy", "encode"}
FILE = "clip-ltx-2-19b-tiny-cpu.json"
REFUSED = "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul(…)`"
LOST = "CUDA error: an illegal memory access was encountered"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a bare checkout measures, by model: two stages, which have all that one has."""
    folder = tmp_path_factory.mktemp("results")
    options = ("--runs=1", "--warmups=0", "--workloads=c", "--optimize=hoist")
    command = [sys.executable, str(ROOT / "bench" / "clip.py"), "--results", str(folder), *options]
    bare = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "bare")}
    subprocess.run([*command, "--model", *MODELS], check=True, cwd=folder, env=bare, timeout=300)
    return {
        model: json.loads((folder / f"clip-{model}-tiny-cpu.json").read_text()) for model in MODELS
    }


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
        assert arm["decoded in pieces"] == 1
    assert arms["ltxq"]["on"] == "hoist"
    assert results[model]["phases (s)"]["transformer in fp8 built"] > 0


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("part", ["picture", "sound"])
def test_errors_tell_exact_arms_from_others(results: dict[str, Any], model: str, part: str) -> None:
    arms = results[model]["workloads"]["c"]["arms"]
    errors = {name: arm[f"error of the {part}'s latent"] for name, arm in arms.items()}
    assert errors["ltxq"] == 0  # `hoist` is exact: the library's clip, bit for bit
    assert arms["library"]["the library's own difference"] == 0
    assert 0.001 < errors["ltxq-fp8"] < errors["library-fp8"] < 0.1
    blocks = {name: arm["error of the first blocks"][part] for name, arm in arms.items()}
    assert 0 < blocks["library"] < 0.01
    assert blocks["ltxq"] == blocks["library"]
    assert blocks["library"] < blocks["ltxq-fp8"] < blocks["library-fp8"] < 0.1


def measure(
    folder: Path,
    workloads: str = "a",
    arms: tuple[str, ...] = ("library", "ltxq"),
    phases: Phases | None = None,
    runs: int = 3,
) -> dict[str, Any]:
    """What the file says after a run in this process."""
    torch.set_num_threads(1)
    specs = plan.specs(arms, [], "hoist", "cpu")
    options = argparse.Namespace(
        workloads=list(workloads), runs=runs, warmups=1, results=folder, without=[]
    )
    sizes = Sizes.of("ltx-2-19b", tiny_one=True)
    Contest(sizes, torch.device("cpu"), specs, options, phases or Phases()).run()
    return read(folder)


def read(folder: Path) -> dict[str, Any]:
    """By workload, the arms' figures."""
    workloads = json.loads((folder / FILE).read_text())["workloads"]
    return {name: seen["arms"] for name, seen in workloads.items()}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """What ltxq's arm does at each clip: None makes it."""
    make, what = LtxqArm.make, []

    def made(self: LtxqArm, *args: Any) -> Made:
        if what and (error := what.pop(0)) is not None:
            raise error
        return make(self, *args)

    monkeypatch.setattr(LtxqArm, "make", made)
    return what


@pytest.mark.parametrize("error", [RuntimeError(REFUSED), ValueError("whatever")], ids=type)
def test_an_arm_that_fails_keeps_what_it_has_and_the_others_go_on(
    tmp_path: Path, failing: list[Exception | None], error: Exception
) -> None:
    failing[:] = [None, None, error]  # the warm-up and one clip are made
    arms = measure(tmp_path)["a"]
    assert arms["library"]["runs"] == 3
    assert arms["ltxq"]["runs"] == 1
    assert str(error) in arms["ltxq"]["failed"]
    assert arms["ltxq"]["prompt to MP4"]["median"] > 0


def test_an_arm_that_cannot_be_built_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> LtxqArm:
        raise RuntimeError(REFUSED)

    monkeypatch.setattr(contest, "LtxqArm", refuse)
    arms = measure(tmp_path)["a"]
    assert arms["library"]["runs"] == 3
    assert REFUSED in arms["ltxq"]["failed"]


def test_a_lost_device_ends_the_run_and_what_was_measured_stands(
    tmp_path: Path, failing: list[Exception | None]
) -> None:
    failing[:] = [None, None, torch.AcceleratorError(LOST)]
    with pytest.raises(DeviceBroken, match="illegal memory access"):
        measure(tmp_path)
    arms = read(tmp_path)["a"]
    assert (arms["library"]["runs"], arms["ltxq"]["runs"]) == (2, 1)


def test_figures_are_in_the_file_after_every_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, seen = LibraryArm.make, []

    def made(self: LibraryArm, *args: Any) -> Made:
        arms = read(tmp_path).get("a", {}) if (tmp_path / FILE).is_file() else {}
        seen.append({name: arm.get("runs", 0) for name, arm in arms.items()})
        return make(self, *args)

    monkeypatch.setattr(LibraryArm, "make", made)
    measure(tmp_path, runs=2)
    # At the library's first clip, which warms up, at its first run and at its second one.
    assert seen == [{}, {}, {"library": 1, "ltxq": 1}]


def test_what_there_was_no_time_for_leaves_older_figures_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = measure(tmp_path, runs=1)
    again = measure(tmp_path, workloads="ab", arms=("ltxq", "ltxq-fp8"), phases=Phases(0))
    assert again == before
    newer = measure(tmp_path, arms=("ltxq",), runs=2)["a"]
    assert newer["library"] == before["a"]["library"]
    assert newer["ltxq"]["runs"] == 2
    assert "a, ltxq: warming up" in capsys.readouterr().out


def test_when_the_time_is_over_no_other_clip_begins_and_those_that_are_made_stand(
    tmp_path: Path, failing: list[Exception | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, phases = LtxqArm.make, Phases()

    def made(self: LtxqArm, *args: Any) -> Made:
        clip = make(self, *args)
        if len(failing) == 1:  # after its second run
            monkeypatch.setattr(phases, "allows", lambda seconds=0.0: False)
        return clip

    monkeypatch.setattr(LtxqArm, "make", made)
    failing[:] = [None, None, None, None]
    arms = measure(tmp_path, workloads="ab", phases=phases)["a"]
    assert (arms["library"]["runs"], arms["ltxq"]["runs"]) == (2, 2)
    assert "error of the picture's latent" not in arms["ltxq"]
    assert "failed" not in arms["ltxq"]
    assert read(tmp_path).keys() == {"a"}


def test_a_limit_is_kept_by_not_beginning_what_would_take_longer() -> None:
    phases = Phases(100.0)
    assert phases.allows(50)
    assert not phases.allows(101)
    assert Phases(None).allows(1e9)


def test_the_first_blocks_are_looked_at_uncompiled() -> None:
    """A size of its own would take the compiler a minute, for a figure that does not need it."""
    sizes = Sizes.of("ltx-2-19b", tiny_one=True)
    cpu = torch.device("cpu")
    model = build_transformer(sizes, cpu, "bf16")
    on = Optimizations(hoist=True, compile=True, graphs=True)
    plain = LtxqArm.over(_Arm(sizes, build_shared(sizes, cpu), on), model)  # type: ignore[arg-type]
    assert type(plain).__name__ == "FastTransformer"
    assert plain._run_block.__name__ == "run_one_block"  # type: ignore[attr-defined]


class _Arm(LtxqArm):
    """An arm without its own pipeline: a CPU has no CUDA graphs."""

    def __init__(self, sizes: Sizes, shared: Any, on: Optimizations) -> None:
        self._sizes, self._shared, self._optimizations = sizes, shared, on
        self._device, self._decoder = torch.device("cpu"), shared.video_decoder
