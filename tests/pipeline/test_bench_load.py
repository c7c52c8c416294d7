"""`bench/load.py`: the files it writes load as any model's, and what it says of memory is so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ltxq_worker.models.files.folder import ModelFolder

sys.path.append(str(Path(__file__).parents[2]))
from bench import load
from bench.harness import files
from bench.harness.weights import Sizes

pytestmark = pytest.mark.extended

FORMS = ("bf16", "published")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sixteen times narrower than LTX-2, and with fewer blocks; in both forms."""
    torch.set_num_threads(1)
    sizes = files.divided(Sizes.of("ltx-2-19b", tiny_one=False), 16).with_blocks(8)
    sizes.gemma["num_hidden_layers"] = 8
    made = {form: tmp_path_factory.mktemp("models") / form for form in FORMS}
    for form, folder in made.items():
        files.write_model(folder, sizes, published_fp8=form == "published")
    return made


@pytest.mark.parametrize("arm", load.ARMS)
def test_a_model_is_loaded_timed_and_weighed(folders: dict[str, Path], arm: str) -> None:
    form, quantization = load.ARMS[arm]
    folder = folders[form]
    assert bool(ModelFolder.open(folder).fp8_scales) == (form == "published")
    seen = load.measure(str(folder), quantization, "cpu")
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert seen["seconds"] > 0
    assert seen["weights"] > 50_000_000
    assert (seen["weights"] < 0.99 * size) == (arm == "bf16 made FP8")


def test_weights_that_stay_as_they_are_stored_are_mapped_and_not_copied(
    folders: dict[str, Path],
) -> None:
    load.measure(str(folders["bf16"]), "bf16", "cpu")  # what the first load imports and keeps
    seen = load.measure(str(folders["bf16"]), "bf16", "cpu")
    assert seen["most"] < 0.3 * seen["weights"]


def test_reading_alone_reads_everything(folders: dict[str, Path]) -> None:
    path = folders["bf16"] / "checkpoint.safetensors"
    before = _bytes_read()
    load.forget([path])
    load.read(path)
    assert _bytes_read() - before >= path.stat().st_size


def _bytes_read() -> int:
    """By this process, whether from a disk or from memory."""
    text = Path("/proc/self/io").read_text()
    return int(text.splitlines()[0].removeprefix("rchar: "))
