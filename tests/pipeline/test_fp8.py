"""An FP8 layer against the bf16 one it replaces, and what CUDA asks of it, on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files

import pytest
import torch
from ltx_core.model.transformer import LTXModelConfigurator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ltxq.errors import ConfigurationError
from ltxq_worker.models.weights import fp8, resident
from ltxq_worker.models.weights.fp8 import Fp8Linear

BOUND = 0.05  # of a layer, relative in L2; E4M3's three bits cost 0.026 on each side
Magnitudes = Callable[[int], torch.Tensor]


def even(count: int) -> torch.Tensor:
    return torch.ones(count, 1)


def uneven(count: int) -> torch.Tensor:
    """From a ten thousandth to ten thousand."""
    return torch.logspace(-4, 4, count)[:, None]


def linear(inputs: int, outputs: int, magnitudes: Magnitudes = even) -> torch.nn.Linear:
    layer = torch.nn.Linear(inputs, outputs)
    layer.weight.data = torch.randn(outputs, inputs) * magnitudes(outputs) / inputs**0.5
    return layer.bfloat16().requires_grad_(False)


def in_fp8(layer: torch.nn.Linear) -> Fp8Linear:
    """The same layer as a loader makes it."""
    made = Fp8Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    state = dict(fp8.state("x.weight", layer.weight, None))
    made.weight.data, made.weight_scale.data = state["x.weight"], state["x.weight_scale"]
    if layer.bias is not None:
        made.bias.data = layer.bias
    return made


def tokens(*shape: int, magnitudes: Magnitudes = even) -> torch.Tensor:
    rows = torch.randn(*shape)
    return (rows.flatten(0, -2) * magnitudes(rows[..., 0].numel())).view(shape).bfloat16()


def errors(ours: torch.Tensor, theirs: torch.Tensor, dim: int) -> torch.Tensor:
    """Relative in L2, of each slice along `dim`."""
    difference = (ours.float() - theirs.float()).norm(dim=dim)
    return difference / theirs.float().norm(dim=dim)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("of_weights", [even, uneven])
@pytest.mark.parametrize("of_tokens", [even, uneven])
@pytest.mark.parametrize(("inputs", "outputs"), [(512, 512), (512, 2048), (2048, 512)])
def test_every_token_and_every_output_is_near_the_bf16_layers(
    inputs: int, outputs: int, of_tokens: Magnitudes, of_weights: Magnitudes
) -> None:
    layer = linear(inputs, outputs, of_weights)
    layer.bias.zero_()
    x = tokens(256, inputs, magnitudes=of_tokens)
    ours = in_fp8(layer)(x)
    assert ours.dtype == torch.bfloat16
    # With one scale for all, small tokens and small outputs would vanish beside the large ones.
    sizes = of_tokens(256) * of_weights(outputs).T
    ours, theirs = ours / sizes, layer(x) / sizes
    for dim in (0, 1):
        assert errors(ours, theirs, dim).max() < BOUND
        assert errors(ours, theirs, dim).min() > 0.02  # it is in FP8


@pytest.mark.parametrize("shape", [(16,), (1, 16), (2, 7, 16), (1, 0, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_takes_and_gives_the_shapes_a_linear_layer_does(
    shape: tuple[int, ...], bias: bool
) -> None:
    layer = torch.nn.Linear(16, 32, bias=bias).bfloat16()
    assert in_fp8(layer)(torch.randn(shape).bfloat16()).shape == (*shape[:-1], 32)


def test_a_token_of_zeros_gives_the_bias() -> None:
    layer = linear(64, 32)
    assert torch.equal(in_fp8(layer)(torch.zeros(3, 64).bfloat16()), layer.bias.expand(3, 32))


def test_a_weight_of_zeros_gives_the_bias() -> None:
    layer = linear(64, 32)
    layer.weight.zero_()
    assert torch.equal(in_fp8(layer)(tokens(3, 64)), layer.bias.expand(3, 32))


def test_a_token_does_not_depend_on_the_others() -> None:
    layer, x = in_fp8(linear(64, 32)), tokens(5, 64)
    loud = torch.cat((x, 1e4 * x))
    assert torch.equal(layer(loud)[:5], layer(x))


def test_numbers_that_e4m3_has_come_back_as_they_were() -> None:
    exact = torch.tensor([[448.0, -1.5, 0.0, 0.25], [-7.0, 3.5, 0.875, 0.0]])
    quantized, scale = fp8.quantize_rows(exact.bfloat16())
    assert torch.equal(quantized.float() * scale, exact)
    assert quantized.float().abs().amax(1).tolist() == [448, 448]


def test_the_compiler_takes_it_in_one_piece() -> None:
    layer, x = in_fp8(linear(64, 32)), tokens(2, 7, 64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("shape", [(1, 34, 4096), (1, 1920, 4096), (1, 4096)])
def test_on_cuda_it_is_one_scaled_product_that_waits_for_nothing(shape: tuple[int, ...]) -> None:
    """torch checks layouts, sizes and scales of `_scaled_mm` without a GPU too."""
    with FakeTensorMode(), torch.device("cuda"):
        layer = Fp8Linear(4096, 2048)
        x = torch.empty(shape, dtype=torch.bfloat16)
        y = layer(x)
        assert (y.shape, y.dtype, y.device.type) == ((*shape[:-1], 2048), torch.bfloat16, "cuda")
        graph = make_fx(layer)(x.mT.contiguous().mT).graph  # column-major
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert called.count("aten._scaled_mm.default") == 1
    assert not {name for name in called if "mm" in name or "scalar_dense" in name} - {
        "aten._scaled_mm.default"
    }


@pytest.mark.parametrize("base", ["ltx-2-19b", "ltx-2.3-22b"])
def test_of_the_real_models_the_large_layers_of_blocks_1_to_42_are_chosen(base: str) -> None:
    config = json.loads((files("ltxq_worker.models") / f"{base}.json").read_text())
    with torch.device("meta"):
        model = LTXModelConfigurator.from_config(config)
        names = fp8.large_layers(model)
        fp8.use_fp8(model, names)
    in_blocks = {int(name.split(".")[1]) for name in names}
    assert in_blocks == set(range(1, 43))
    assert {name.partition(".")[0] for name in names} == {"transformer_blocks"}
    assert len(names) == 42 * 28
    assert not any("gate" in name for name in names)
    made = [name for name, layer in model.named_modules() if isinstance(layer, Fp8Linear)]
    assert set(made) == set(names)
    one_byte = torch.float8_e4m3fn  # all else is bf16 once it is loaded
    size = sum(w.numel() * (1 if w.dtype == one_byte else 2) for w in model.parameters())
    assert size / 1e9 == pytest.approx(21.7, abs=0.2)  # docs/gpu.md; 38.0 in bf16


def test_a_layer_whose_sides_are_no_multiples_of_16_stays_as_it_is() -> None:
    model = torch.nn.ModuleDict({"odd": torch.nn.Linear(24, 16), "even": torch.nn.Linear(32, 16)})
    fp8.use_fp8(model, ["odd", "even", "elsewhere"])
    assert isinstance(model["odd"], torch.nn.Linear)
    assert isinstance(model["even"], Fp8Linear)


@pytest.mark.parametrize(("capability", "has"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_a_card_without_fp8_is_told_what_to_do(
    capability: tuple[int, int], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    if has:
        resident._require_fp8(torch.device("cuda"))
        return
    with pytest.raises(ConfigurationError, match="no FP8") as caught:
        resident._require_fp8(torch.device("cuda"))
    assert "LTXQ_QUANTIZATION=bf16" in caught.value.hint
