"""Lists the arms, and groups arms that fit on one card together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache

import torch

from bench.harness.weights import Kind, Shared, Sizes, build_shared, build_transformer
from ltxq.job import VideoRequest
from ltxq_worker.pipeline import memory
from ltxq_worker.pipeline.fast.graphs import TOKENS_GRAPHED
from ltxq_worker.pipeline.fast.options import Optimizations

META = torch.device("meta")
KEPT_FREE = 3_000_000_000  # bytes reserved for CUDA and the allocator's fragmentation
GRAPHED_TEXT = 1_200_000_000  # bytes of the text's keys and values that recorded steps keep
ARMS: dict[str, Kind] = {
    "library": "bf16",
    "library-fp8": "fp8_cast",
    "ltxq": "bf16",
    "ltxq-fp8": "fp8",
}


@dataclass(frozen=True)
class Spec:
    """An arm before its weights are built."""

    name: str
    weights: Kind
    optimizations: Optimizations | None  # None: the library's own pipeline


def specs(names: Iterable[str], without: Iterable[str], optimize: str, device: str) -> list[Spec]:
    """The arms `names`; and for each of `without`, each of ltxq's arms without that optimization.

    `optimize`: the value of LTXQ_OPTIMIZE for ltxq's arms.

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
    """`on` without `name` and the optimizations that depend on it."""
    off = {name}
    if name == "hoist":
        off |= {"attention", "compile", "graphs"}
    return replace(on, **dict.fromkeys(off, False))


def groups(
    arms: Sequence[Spec], sizes: Sizes, request: VideoRequest, room: int
) -> list[list[Spec]]:
    """The arms in as few groups as `room` bytes of memory allow; the arms of a group take turns.

    A group has at least one arm, even if that arm alone is too large. A clip's memory is counted as
    if its arm were alone, so that no arm decodes in tiles because of the others.
    """
    order: list[Kind] = ["bf16", "fp8_cast", "fp8"]
    packed: list[list[Spec]] = []
    left = 0
    for kind in order:
        held = False  # whether this kind's weights are in the last group
        for arm in (arm for arm in arms if arm.weights == kind):
            weights = transformer_bytes(sizes, kind)
            needed = own_bytes(arm, sizes, request) + (0 if held else weights)
            if not packed or needed > left:
                packed.append([])
                fixed = KEPT_FREE + shared_bytes(sizes)
                left = room - fixed - activation_bytes(sizes, request, room - fixed - weights)
                needed = own_bytes(arm, sizes, request) + weights
            packed[-1].append(arm)
            held = True
            left -= needed
    return [[arm for arm in arms if arm in group] for group in packed]


def activation_bytes(sizes: Sizes, request: VideoRequest, alone: int) -> int:
    """The bytes a clip needs beside the weights, if its arm alone has `alone` bytes for it."""
    whole = memory.bytes_needed(sizes.config, _shape(request), in_one_piece=True)
    return whole if whole <= alone else memory.bytes_needed(sizes.config, _shape(request))


def own_bytes(arm: Spec, sizes: Sizes, request: VideoRequest) -> int:
    """The bytes an arm keeps beside its transformer: a decoder, and its recorded steps."""
    if arm.optimizations is None:
        return 0
    graphs = 0
    if arm.optimizations.graphs:
        step = memory.BYTES_PER_TOKEN * min(_shape(request).tokens, TOKENS_GRAPHED)
        graphs = GRAPHED_TEXT + step
    return decoder_bytes(sizes) + (0 if sizes.tiny else graphs)


def _shape(request: VideoRequest) -> memory.Shape:
    return memory.Shape(request.height, request.width, request.num_frames, request.stages)


def transformer_bytes(sizes: Sizes, kind: Kind) -> int:
    """The bytes of a transformer's weights."""
    return _transformer_bytes(sizes.base, sizes.tiny, kind)


def shared_bytes(sizes: Sizes) -> int:
    """The bytes of the modules that all arms share."""
    return sum(map(_bytes, _shared(sizes.base, sizes.tiny).modules()))


def decoder_bytes(sizes: Sizes) -> int:
    """The bytes of a video decoder."""
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
