"""The transformer's large layers in FP8: half the bytes of bf16, and on Hopper twice the FLOP/s by
the data sheet.

A weight has one scale for each row (output); an activation has one for each row (token), computed
when the layer runs. Published FP8 checkpoints have one scale for a whole weight, which is the same
format with equal scales. `checkpoint.py` reads the files.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from ltx_core.model.transformer import LTXModel

FIRST_KEPT, LAST_KEPT = 1, 5  # blocks at both ends that stay in bf16, as in the published files
WEIGHT, SCALE, INPUT_SCALE = ".weight", ".weight_scale", ".input_scale"  # suffixes of keys

LARGEST = 448.0  # of E4M3
SMALLEST = 1e-30  # lower limit of a row's largest value, so that a row of zeros has a finite scale
GRAIN = 16  # torch._scaled_mm requires both sides of a weight to be multiples of 16

_GATES = "to_gate_logits"  # one output per head: too small to gain, and an error scales whole heads
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.")


class Fp8Linear(torch.nn.Module):
    """A linear layer with its weight in E4M3, in place of `torch.nn.Linear`.

    On CUDA, `torch._scaled_mm` multiplies in FP8 with fast accumulation. On a CPU, where torch has
    no row-wise scales, the product is computed in float32 from the same FP8 numbers. The layer
    never waits for the device or branches on a value, so it can be compiled whole and captured in a
    CUDA graph. Layers that share an input each quantize it; when compiled they do so once.
    """

    weight: torch.Tensor  # E4M3 [out, in]
    weight_scale: torch.Tensor  # float32 [1, out]: dequantization scale of each row
    bias: torch.Tensor | None  # bf16 [out]

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        """Uninitialised; the weights are loaded later."""
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = _kept(torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn))
        self.weight_scale = _kept(torch.empty(1, out_features, dtype=torch.float32))
        self.bias = _kept(torch.empty(out_features, dtype=torch.bfloat16)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…, in] to […, out], in the dtype of `x`: bf16 on CUDA."""
        rows, scale = quantize_rows(x.reshape(-1, self.in_features))
        if x.is_cuda:
            # The second matrix must be column-major, as the transposed view is.
            y = torch._scaled_mm(
                rows,
                self.weight.t(),
                scale_a=scale,
                scale_b=self.weight_scale,
                bias=self.bias,
                out_dtype=x.dtype,
                use_fast_accum=True,
            )
        else:
            exact = (rows.float() @ self.weight.float().t()) * scale * self.weight_scale
            y = (exact if self.bias is None else exact + self.bias.float()).to(x.dtype)
        return y.view(*x.shape[:-1], self.out_features)


def quantize_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a matrix [n, m] to E4M3 [n, m], row-major, with the dequantization scale of each
    row, float32 [n, 1]: each row's largest magnitude becomes 448.
    """
    largest = torch.linalg.vector_norm(
        values, float("inf"), dim=-1, keepdim=True, dtype=torch.float32
    ).clamp(min=SMALLEST)
    scaled = values * (LARGEST / largest)
    return (
        scaled.to(torch.float8_e4m3fn, memory_format=torch.contiguous_format),
        largest / LARGEST,
    )


def state(
    key: str, weight: torch.Tensor, scale: float | None
) -> tuple[tuple[str, torch.Tensor], tuple[str, torch.Tensor]]:
    """An `Fp8Linear`'s weight and scales with their keys, from a stored weight [out, in]: in bf16
    (`scale` None), or in E4M3 with one scale for the whole weight.
    """
    if scale is None:
        weight, scales = quantize_rows(weight)
    else:
        scales = torch.full((len(weight), 1), scale, device=weight.device)
    return (key, weight), (key.removesuffix(WEIGHT) + SCALE, scales.view(1, -1))


def in_bf16(weight: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Convert a stored weight to bf16; `scale` as in `state`."""
    return (weight if scale is None else weight.float() * scale).to(torch.bfloat16)


def large_layers(model: LTXModel) -> list[str]:
    """The names of the linear layers that gain from FP8 and tolerate it: those of all blocks but
    the first and the last five, without the gates.
    """
    last = len(model.transformer_blocks) - LAST_KEPT
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and (block := _BLOCK.match(name))
        and FIRST_KEPT <= int(block[1]) < last
        and not name.endswith(_GATES)
    ]


def use_fp8(model: torch.nn.Module, names: Collection[str]) -> None:
    """Replace each linear layer of these names by an `Fp8Linear`, if its size allows FP8."""
    layers = dict(model.named_modules())
    for name in names:
        layer = layers.get(name)
        if not isinstance(layer, torch.nn.Linear):
            continue  # `Checkpoint` reports a weight in the file that the model does not have
        sides = layer.in_features, layer.out_features
        if any(side % GRAIN for side in sides):
            continue
        parent, _, own = name.rpartition(".")
        setattr(layers[parent], own, Fp8Linear(*sides, bias=layer.bias is not None))


def _kept(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad=False)
