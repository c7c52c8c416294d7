"""Measures each attention kernel at the sizes of the clips: `python bench/attention.py`.

Measures the picture's self-attention, which grows with the square of the clip, and its attention to
the text: by torch's default kernel, cuDNN, flash attention 2, and flash attention 3 in bf16 and FP8
if the package fa3-fwd is installed. Reports the time and the error against float32. Needs a GPU and
torch, and nothing else.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules could hide installed ones

import argparse
import json
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

RESULTS = Path(__file__).parent / "results"
HEADS, WIDTH = 32, 128  # attention heads of the picture, in every published checkpoint
TEXT = 1024  # tokens
TOKENS = {"a": 1920, "b": 6144, "c, second stage": 24_576}  # of the picture
TINY = {"a": 64}
CHECKED_ROWS = 512  # queries whose output is compared with float32
RUNS = 20
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    measured: dict[str, Any] = {
        "device": name,
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
    }
    for clip, tokens in (TOKENS if on_gpu else TINY).items():
        for what, keys in (("to itself", tokens), ("to the text", TEXT if on_gpu else 32)):
            title = f"{clip}, {what}: {tokens} × {keys} tokens"
            measured[title] = seen = compare(tokens, keys, device)
            print(title)
            for kernel, figures in seen.items():
                print(f"  {kernel:<28}" + "  ".join(f"{k} {v}" for k, v in figures.items()))
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"attention-{slug}.json"
    path.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {path}")


def compare(tokens: int, keys: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Each kernel's milliseconds, TFLOP/s and error."""
    torch.manual_seed(0)
    shapes = ((1, HEADS, n, WIDTH) for n in (tokens, keys, keys))
    q, k, v = (torch.randn(shape, device=device).bfloat16() for shape in shapes)
    rows = q[:, :, :CHECKED_ROWS].float()
    with sdpa_kernel(SDPBackend.MATH):
        exact = scaled_dot_product_attention(rows, k.float(), v.float())
    seen: dict[str, dict[str, Any]] = {}
    for kernel, attend in _kernels(device).items():
        try:
            seconds = _time(lambda attend=attend: attend(q, k, v), device)
            ours = attend(q, k, v)[:, :, :CHECKED_ROWS].float()
        except Exception as exc:  # noqa: BLE001 - go on without a kernel that does not work here
            seen[kernel] = {"refused": f"{type(exc).__name__}: {' '.join(str(exc).split())[:160]}"}
            continue
        error = float((ours - exact).norm() / exact.norm())
        flops = 4 * HEADS * WIDTH * tokens * keys
        seen[kernel] = {
            "ms": round(1000 * seconds, 4),
            "TFLOP/s": round(flops / seconds / 1e12, 2),
            "error": float(f"{error:.3g}"),
        }
    return seen


def _kernels(device: torch.device) -> dict[str, Attend]:
    kernels: dict[str, Attend] = {"torch's choice": scaled_dot_product_attention}
    if device.type == "cuda":
        kernels["cuDNN"] = _by(SDPBackend.CUDNN_ATTENTION)
        kernels["flash attention 2"] = _by(SDPBackend.FLASH_ATTENTION)
    try:
        from fa3_fwd_interface import flash_attn_func
    except ImportError:
        return kernels

    def in_bf16(*qkv: torch.Tensor) -> torch.Tensor:
        return _first(flash_attn_func(*(x.transpose(1, 2) for x in qkv))).transpose(1, 2)

    def in_fp8(*qkv: torch.Tensor) -> torch.Tensor:
        parts, scales = zip(*(_to_fp8(x.transpose(1, 2)) for x in qkv), strict=True)
        descale = dict(zip(("q_descale", "k_descale", "v_descale"), scales, strict=True))
        return _first(flash_attn_func(*parts, **descale)).transpose(1, 2)

    return kernels | {"flash attention 3": in_bf16, "flash attention 3 in FP8": in_fp8}


def _by(backend: SDPBackend) -> Attend:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v)

    return attend


def _to_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T, heads, width] in e4m3, and a scale [B, heads]."""
    most = torch.finfo(torch.float8_e4m3fn).max
    scale = x.abs().amax(dim=(1, 3), keepdim=True).float() / most
    return (x.float() / scale).to(torch.float8_e4m3fn), scale.view(x.shape[0], x.shape[2])


def _first(outcome: Any) -> torch.Tensor:
    return outcome[0] if isinstance(outcome, tuple) else outcome


def _time(attend: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: the median of `RUNS`, after three warm-up calls."""
    for _ in range(3):
        attend()
    with torch.inference_mode() if device.type == "cuda" else nullcontext():
        times = sorted(_one(attend, device) for _ in range(RUNS))
    return times[RUNS // 2]


def _one(attend: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        attend()
        return time.perf_counter() - began
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    attend()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended) / 1000


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
