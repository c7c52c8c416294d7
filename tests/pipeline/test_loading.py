"""What loading reads and holds, for both kinds of checkpoint."""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltxq.errors import ModelUnusable
from ltxq.job import VideoRequest
from ltxq_worker.models.files.folder import ModelFolder
from ltxq_worker.models.tiny.model import CHECKPOINT, make_tiny
from ltxq_worker.models.weights import checkpoint
from ltxq_worker.models.weights.fp8 import Fp8Linear
from ltxq_worker.models.weights.resident import LoadReport, Quantization, Resident, load
from ltxq_worker.pipeline.ltx import LtxPipeline

LAYER = "model.diffusion_model.transformer_blocks.1.attn1.to_q"
CONVERSIONS = [("bf16", "fp8"), ("published", "bf16")]
Weights = dict[str, torch.Tensor]
Change = Callable[[Weights], object]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny model in both forms."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    make_tiny(folder / "bf16", "ltx-2.3-22b", blocks=8)
    make_tiny(folder / "published", "ltx-2.3-22b", blocks=8, published_fp8=True)
    return folder


def loaded(
    folder: Path, quantization: Quantization, report: LoadReport = lambda *_: None
) -> Resident:
    return load(ModelFolder.open(folder), torch.device("cpu"), quantization, report)


def held() -> dict[int, int]:
    """The bytes of every tensor that is alive, by where they lie; views of one count once.

    A compiler that ran in this process leaves tensors of classes of its own, which hold nothing.
    """
    gc.collect()
    sizes: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) not in {torch.Tensor, torch.nn.Parameter}:
            continue
        if thing.device.type == "cpu" and thing.numel():
            sizes[thing.data_ptr()] = max(thing.nbytes, sizes.get(thing.data_ptr(), 0))
    return sizes


def state(model: Resident) -> dict[int, int]:
    """The bytes of a model's weights and buffers, by where they lie."""
    text = model.text
    modules = (
        *(text.gemma, text.embeddings, model.transformer, model.video_decoder),
        *(model.audio_decoder, model.vocoder, model.upsampler),
    )
    return {
        tensor.data_ptr(): tensor.nbytes
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }


@pytest.mark.parametrize(("form", "quantization"), CONVERSIONS)
def test_nothing_but_the_weights_is_held_once_they_are_loaded(
    models: Path, form: str, quantization: Quantization
) -> None:
    before = held()
    model = loaded(models / form, quantization)
    own = state(model)
    besides = {place: size for place, size in held().items() if place not in before | own}
    assert sum(own.values()) > 10_000_000
    assert sum(besides.values()) < 10_000


@pytest.mark.parametrize(("form", "quantization"), CONVERSIONS)
def test_on_the_way_no_weight_is_held_in_two_forms(
    models: Path, form: str, quantization: Quantization
) -> None:
    told, before, most = 0, held(), 0

    def watch(what: str, share: float) -> None:
        nonlocal told, before, most
        if what != "transformer":
            return
        if told == 0:
            before = held()
        elif told % 150 == 0:
            now = held()
            most = max(most, sum(size for place, size in now.items() if place not in before))
        told += 1

    model = loaded(models / form, quantization, watch)
    assert told > 500
    final = sum(weight.nbytes for weight in model.transformer.parameters())
    assert 0.6 * final < most <= final


def test_no_weight_asks_for_an_autograd_graph(models: Path) -> None:
    """And none is kept by a clip in FP8."""
    pipeline = LtxPipeline.load(
        models / "published", device="cpu", quantization="fp8", optimize="none"
    )
    transformer = pipeline._parts.transformer
    assert not any(weight.requires_grad for weight in transformer.parameters())
    seen: list[torch.Tensor] = []
    layers = [layer for layer in transformer.modules() if isinstance(layer, Fp8Linear)]
    hooks = [layer.register_forward_hook(lambda *call: seen.append(call[-1])) for layer in layers]
    request = VideoRequest(seed=42, prompt="a cat", height=64, width=64, num_frames=9)
    frames = list(pipeline.generate(request, lambda *_: None).frames)
    assert sum(len(chunk) for chunk in frames) == 9
    assert len(seen) == 8 * len(layers)
    assert all(output.grad_fn is None and output.is_inference() for output in seen)
    for hook in hooks:
        hook.remove()


def test_weights_are_read_in_the_order_of_the_file_each_once(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    class Watched:
        def __init__(self, *args: Any, **options: Any) -> None:
            self._file = safe_open(*args, **options)

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self._file.get_tensor(name)

    monkeypatch.setattr(checkpoint, "safe_open", lambda *a, **o: nullcontext(Watched(*a, **o)))
    told: list[tuple[str, float]] = []
    loaded(models / "published", "fp8", lambda *now: told.append(now))
    assert len(set(read)) == len(read)
    mine = [name for name in read if name.startswith("model.diffusion_model.transformer_blocks")]
    with safe_open(models / "published" / CHECKPOINT, "pt") as file:
        order = [name for name in file.offset_keys() if name in set(mine)]
    assert mine == order
    for part in ("text encoder", "transformer"):
        assert len([share for what, share in told if what == part]) > 50


def changed(models: Path, tmp_path: Path, change: Change) -> Path:
    """The published one with other tensors in it."""
    copy = Path(shutil.copytree(models / "published", tmp_path / "changed"))
    weights = load_file(copy / CHECKPOINT)
    with safe_open(copy / CHECKPOINT, "pt") as opened:
        metadata = opened.metadata()
    change(weights)
    save_file(weights, copy / CHECKPOINT, metadata)
    return copy


def load_changed(models: Path, tmp_path: Path, change: Change) -> Resident:
    return loaded(changed(models, tmp_path, change), "fp8")


def in_fp8(weight: torch.Tensor) -> torch.Tensor:
    return (weight.float() * 448).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop(f"{LAYER}.weight_scale"), "no scale for the FP8 weights"),
        (lambda w: w.pop(f"{LAYER}.weight"), "scales without FP8 weights"),
        (
            lambda w: w.update({f"{LAYER}.weight_scale": torch.tensor(math.nan)}),
            "not positive numbers",
        ),
        (lambda w: w.update({f"{LAYER}.weight_scale": torch.ones(128)}), "not one F32"),
        (lambda w: w.update({f"{LAYER}.weight": w[f"{LAYER}.weight"][:64]}), "misshapen"),
        (lambda w: w.pop(f"{LAYER}.bias"), "lacks weights of the transformer"),
        (
            lambda w: w.update({"model.diffusion_model.extra.input_scale": torch.ones(())}),
            "unknown weights of the transformer: extra.input_scale",
        ),
        (
            lambda w: w.update(
                {
                    "model.diffusion_model.extra.weight": torch.ones(16, 16).to(
                        torch.float8_e4m3fn
                    ),
                    "model.diffusion_model.extra.weight_scale": torch.ones(()),
                }
            ),
            "unknown weights of the transformer: extra.weight",
        ),
    ],
)
def test_a_damaged_fp8_checkpoint_is_refused(
    models: Path, tmp_path: Path, change: Change, says: str
) -> None:
    with pytest.raises(ModelUnusable, match=says) as caught:
        load_changed(models, tmp_path, change)
    assert caught.value.hint


@pytest.mark.parametrize("lacking", ["vocoder.vocoder.conv_pre.weight", f"{LAYER}.bias"])
def test_a_damaged_checkpoint_is_refused_before_gigabytes_are_read(
    models: Path, tmp_path: Path, lacking: str
) -> None:
    copy = changed(models, tmp_path, lambda weights: weights.pop(lacking))
    told: list[str] = []
    with pytest.raises(ModelUnusable, match="lacks weights of the"):
        loaded(copy, "fp8", lambda what, _share: told.append(what))
    assert told == []


def test_the_file_says_which_layers_multiply_in_fp8(models: Path, tmp_path: Path) -> None:
    """One of the first block, too, which ltxq itself would keep in bf16."""
    layer = LAYER.replace("blocks.1", "blocks.0")

    def change(weights: Weights) -> None:
        weights[f"{layer}.weight"] = in_fp8(weights[f"{layer}.weight"])
        weights[f"{layer}.weight_scale"] = torch.tensor(1 / 448)

    model = load_changed(models, tmp_path, change)
    first = model.transformer.velocity_model.transformer_blocks[0].attn1
    assert isinstance(first.to_q, Fp8Linear)
    assert not isinstance(first.to_k, Fp8Linear)


def test_the_scale_of_inputs_may_be_missing(models: Path, tmp_path: Path) -> None:
    """It is not needed: tokens are measured as they come."""
    load_changed(models, tmp_path, lambda weights: weights.pop(f"{LAYER}.input_scale"))


def test_what_is_stored_in_fp8_and_cannot_multiply_in_it_is_widened(
    models: Path, tmp_path: Path
) -> None:
    """Gates of four heads; a layer outside of the transformer."""
    gate = f"{LAYER.removesuffix('to_q')}to_gate_logits"
    connector = (
        "model.diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q"
    )
    stored: Weights = {}

    def change(weights: Weights) -> None:
        for layer in (gate, connector):
            weights[f"{layer}.weight"] = stored[layer] = in_fp8(weights[f"{layer}.weight"])
            weights[f"{layer}.weight_scale"] = torch.tensor(1 / 448)

    model = load_changed(models, tmp_path, change)
    for layer, made in (
        (gate, model.transformer.velocity_model.transformer_blocks[1].attn1.to_gate_logits),
        (
            connector,
            model.text.embeddings.video_connector.transformer_1d_blocks[0].attn1.to_q,
        ),
    ):
        assert isinstance(made, torch.nn.Linear)
        assert torch.equal(made.weight, (stored[layer].float() * (1 / 448)).bfloat16())
