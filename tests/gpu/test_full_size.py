"""LTX-2 in full size with random weights, everything resident, FP8: the memory it may take; and how
near FP8 is to bf16, beside the library's own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.harness import workloads
from bench.harness.arms import Arm, LibraryArm, LtxqArm
from bench.harness.measure import difference
from bench.harness.weights import Kind, Sizes, build_shared, build_transformer, draw
from ltxq_worker.models.weights import fp8
from ltxq_worker.pipeline.fast.options import Optimizations

BENCH = Path(__file__).parents[2] / "bench" / "clip.py"
CUDA = torch.device("cuda")
GIGABYTES = (
    torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else 0
)
MOST = {"a": 60, "b": 60, "c": 76}  # GB of 10⁹ bytes, as torch's allocator counts them

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(600),
]


@pytest.mark.full_size
@pytest.mark.skipif(GIGABYTES < 79, reason="needs a card of 80 GB")
@pytest.mark.parametrize("base", ["ltx-2-19b", "ltx-2.3-22b"])
def test_clips_take_no_more_memory_than_promised(base: str, tmp_path: Path) -> None:
    """In a process of its own, which leaves nothing on the card when a figure is too high."""
    command = [sys.executable, str(BENCH), "--model", base, "--arms", "ltxq-fp8"]
    options = ["--runs", "1", "--warmups", "1", "--results", str(tmp_path)]
    subprocess.run([*command, *options], check=True, timeout=560)
    (path,) = tmp_path.glob(f"clip-{base}-*.json")
    workloads = json.loads(path.read_text())["workloads"]
    peaks = {name: seen["arms"]["ltxq-fp8"]["allocated GB"] for name, seen in workloads.items()}
    assert peaks.keys() == MOST.keys()
    assert {name: peak for name, peak in peaks.items() if peak > MOST[name]} == {}


@pytest.mark.parametrize(("outputs", "inputs"), [(4096, 4096), (16_384, 4096), (4096, 16_384)])
def test_a_layer_in_fp8_is_near_to_bf16(outputs: int, inputs: int) -> None:
    weight = draw("transformer.layer.weight", torch.empty(outputs, inputs, device=CUDA))
    x = torch.randn(1, 1920, inputs, device=CUDA).bfloat16()
    model = torch.nn.ModuleDict({"layer": fp8.Fp8Linear(inputs, outputs, bias=False)})
    model.load_state_dict(dict(fp8.state("layer.weight", weight, None)), assign=True)
    with torch.inference_mode():
        assert difference(model["layer"](x), x @ weight.t()) < 0.05


@pytest.mark.parametrize("base", ["ltx-2-19b", "ltx-2.3-22b"])
def test_fp8s_last_latent_is_as_near_as_the_librarys(base: str) -> None:
    """At most 1.5 times the error of `fp8_cast`, with all 48 blocks, on the tiny model's widths."""
    sizes = Sizes.of(base, tiny_one=True).with_blocks(48)  # type: ignore[arg-type]
    shared = build_shared(sizes, CUDA)
    request = workloads.request("a", 0, tiny=True)

    def latents(kind: Kind, *, library: bool) -> torch.Tensor:
        model = build_transformer(sizes, CUDA, kind)
        arm: Arm = (
            LibraryArm("library", kind, shared, model)
            if library
            else LtxqArm("ltxq", kind, sizes, shared, model, Optimizations())
        )
        return arm.latents(request).video

    exact = latents("bf16", library=True)
    theirs = difference(latents("fp8_cast", library=True), exact)
    assert 0 < difference(latents("fp8", library=False), exact) <= 1.5 * theirs
