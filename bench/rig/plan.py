"""Which arms there are, and which of them a card can hold beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache

import torch

from bench.rig.weights import Kind, Shared, Sizes, build_shared, build_transformer
from ltxq.job import VideoRequest
from ltxq_worker.pipeline import memory
from ltxq_worker.pipeline.optimize import Optimizations

META = torch.device("meta")
KEPT_FREE = 3_000_000_000  # bytes for CUDA itself, graphs and the allocator's gaps
ARMS: dict[str, Kind] = {
    "library": "bf16",
    "library-fp8": "fp8_cast",
    "ltxq": "bf16",
    "ltxq-fp8": "fp8",
}


@dataclass(frozen=True)
class Spec:
    """An arm before its weights are there."""

    name: str
    weights: Kind
    optimizations: Optimizations | None  # None: the library's own pipeline


def specs(names: Iterable[str], without: Iterable[str], optimize: str, device: str) -> list[Spec]:
    """The arms `names`; and for each of `without`, each of ltxq's arms without that optimization.

    `optimize`: what is on in ltxq's arms, as LTXQ_OPTIMIZE says it.

    Raises:
        ValueError: there is no such arm or optimization.
    """
    on = Optimizations.parse(optimize, device)
    off = list(without)
    if off == ["each"]:
        off = [field.name for field in fields(on) if getattr(on, field.name)]
    known = {field.name for field in fields(on)}
    if unknown := [*(set(names) - set(ARMS)), *(set(off) - known)]:
        raise ValueError(f"there is no {unknown[0]!r}: {', '.join([*ARMS, *sorted(known)])}")
    arms = [Spec(name, ARMS[name], on if name.startswith("ltxq") else None) for name in names]
    for arm in list(arms):
        if arm.optimizations is not None:
            arms += [Spec(f"{arm.name} −{name}", arm.weights, _without(on, name)) for name in off]
    return arms


def _without(on: Optimizations, name: str) -> Optimizations:
    """`on` without `name`, and without those that stand on it."""
    off = {name}
    if name == "lean":
        off |= {"attention", "compile", "graphs"}
    return replace(on, **dict.fromkeys(off, False))


def groups(
    arms: Sequence[Spec], sizes: Sizes, request: VideoRequest, room: int
) -> list[list[Spec]]:
    """The arms in as few groups as `room` bytes of memory allow, so that those of a group can take
    turns. Each has at least one arm, also where that alone is too large.
    """
    order: list[Kind] = ["bf16", "fp8_cast", "fp8"]
    by_kind = {kind: [arm for arm in arms if arm.weights == kind] for kind in order}
    packed: list[list[Spec]] = []
    left = 0
    for kind, of_kind in by_kind.items():
        if not of_kind:
            continue
        needed = transformer_bytes(sizes, kind)
        # ltxq's arms have a decoder each.
        needed += decoder_bytes(sizes) * sum(arm.optimizations is not None for arm in of_kind)
        if not packed or needed > left:
            packed.append([])
            left = room - KEPT_FREE - shared_bytes(sizes) - activation_bytes(sizes, request)
        packed[-1] += of_kind
        left -= needed
    return [[arm for arm in arms if arm in group] for group in packed]


def activation_bytes(sizes: Sizes, request: VideoRequest) -> int:
    """What a clip takes beside the weights."""
    shape = memory.Shape(request.height, request.width, request.num_frames, request.stages)
    return memory.bytes_needed(sizes.config, shape)


def transformer_bytes(sizes: Sizes, kind: Kind) -> int:
    """Of a transformer's weights."""
    return _transformer_bytes(sizes.base, sizes.tiny, kind)


def shared_bytes(sizes: Sizes) -> int:
    """Of what all arms use."""
    return sum(map(_bytes, _shared(sizes.base, sizes.tiny).modules()))


def decoder_bytes(sizes: Sizes) -> int:
    """Of a video decoder."""
    return _bytes(_shared(sizes.base, sizes.tiny).video_decoder)


@cache
def _transformer_bytes(base: str, tiny: bool, kind: Kind) -> int:
    model = build_transformer(Sizes.of(base, tiny_one=tiny), META, kind)  # type: ignore[arg-type]
    return _bytes(model)


@cache
def _shared(base: str, tiny: bool) -> Shared:
    return build_shared(Sizes.of(base, tiny_one=tiny), META)  # type: ignore[arg-type]


def _bytes(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())
