"""How long a clip takes, beside the library's own code: `python bench/clip.py`.

Builds LTX-2 and Gemma in full size with random weights on the GPU, without a file, and makes clips
of three sizes in turns: the library's eager code (`library`, `library-fp8`) and ltxq (`ltxq`,
`ltxq-fp8`). Prints a table for each size and writes it all as JSON to bench/results/. Where there
is no GPU it does the same with the tiny model, in seconds: that shows that it works, not how fast.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[1]
    # A checkout is enough. Not this folder: its `queue` would stand in for the standard library's.
    sys.path[:1] = [str(ROOT), str(ROOT / "producer"), str(ROOT / "worker")]
os.environ.setdefault("TQDM_DISABLE", "1")  # the library's progress bars
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import argparse
import time
from typing import Any, get_args

import torch

from bench.rig import blocks, flops, plan, readme, report, workloads
from bench.rig.arms import Arm, LibraryArm, LtxqArm
from bench.rig.measure import Tally, difference, free, measure
from bench.rig.plan import Spec
from bench.rig.weights import Base, Shared, Sizes, build_shared, build_transformer
from ltxq_worker.pipeline.denoise import Latents, LibraryTransformer

NOTES = (
    "Random weights: times and memory are the real ones' (but for the encoder's, which depends on "
    "the picture); errors show rounding, not quality.",
    "All arms read the prompt through ltxq's Gemma; the library's arms on 1,024 padded tokens.",
    "The library's arms keep their models and empty no caches between stages.",
    "Stages: by events on the GPU's timeline; denoise has noise and set-up in it, copy what comes "
    "after the decoder: colours, blending, the way to the host. Encode: from the last frame to the "
    "MP4, by the clock.",
)


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tiny = options.tiny or device.type == "cpu"
    if device.type == "cpu":
        torch.set_num_threads(1)  # the tiny model gains nothing by more
    for base in options.model:
        sizes = Sizes.of(base, tiny_one=tiny)
        specs = plan.specs(options.arms, options.without, options.optimize, device.type)
        measured = Contest(sizes, device, specs, options).run()
        for workload, seen in measured["workloads"].items():
            report.print_workload(f"{workload}  {seen['size']}", seen)
        report.write(measured, options.results)
    if options.readme:
        readme.write()


class Contest:
    """One model on all workloads."""

    def __init__(
        self, sizes: Sizes, device: torch.device, specs: list[Spec], options: argparse.Namespace
    ) -> None:
        self._sizes, self._device, self._specs, self._options = sizes, device, specs, options
        self._errors_of_blocks: dict[str, dict[str, float]] = {}
        self._tallies: dict[str, dict[str, Tally]] = {}

    def run(self) -> dict[str, Any]:
        """Everything measured, for JSON."""
        rates = flops.rates(self._device)
        began = time.perf_counter()
        unrounded = self._blocks_in_float32()  # first, while there is room
        shared = build_shared(self._sizes, self._device)
        by_groups: dict[tuple[tuple[str, ...], ...], list[str]] = {}
        groups: dict[tuple[tuple[str, ...], ...], list[list[Spec]]] = {}
        for workload in self._options.workloads:
            request = workloads.request(workload, 0, tiny=self._sizes.tiny)
            packed = plan.groups(self._specs, self._sizes, request, self._room())
            key = tuple(tuple(spec.name for spec in group) for group in packed)
            by_groups.setdefault(key, []).append(workload)
            groups[key] = packed
        for key, names in by_groups.items():
            for group in groups[key]:
                print(f"{', '.join(names)}: {', '.join(spec.name for spec in group)} in turns")
                self._take_turns(shared, unrounded, group, names)
        return {
            "model": self._sizes.base,
            "tiny": self._sizes.tiny,
            "machine": report.machine(self._device),
            "notes": NOTES,
            "seconds in all": time.perf_counter() - began,
            "warm-ups": self._options.warmups,
            "rates": {kind: rate / 1e12 for kind, rate in rates.items()},
            "errors of the first blocks against float32": self._errors_of_blocks,
            "workloads": {
                name: self._figures(
                    name,
                    rates,
                    [list(g) for key, ns in by_groups.items() if name in ns for g in key],
                )
                for name in self._options.workloads
            },
        }

    def _room(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.get_device_properties(self._device).total_memory
        return plan.memory.available_ram()

    def _blocks_in_float32(self) -> Latents:
        few = self._sizes.with_blocks(min(blocks.BLOCKS, self._sizes.blocks))
        seen = blocks.in_float32(build_transformer(few, self._device, "bf16"), few)
        free(self._device)
        return seen

    def _take_turns(
        self, shared: Shared, unrounded: Latents, group: list[Spec], names: list[str]
    ) -> None:
        models = {
            kind: build_transformer(self._sizes, self._device, kind)
            for kind in dict.fromkeys(spec.weights for spec in group)
        }
        arms: list[Arm] = []
        for spec in group:
            model = models[spec.weights]
            if spec.optimizations is None:
                arms.append(LibraryArm(spec.name, spec.weights, shared, model))
            else:
                arms.append(
                    LtxqArm(spec.name, spec.weights, self._sizes, shared, model, spec.optimizations)
                )
        self._check_blocks(arms, models, unrounded)
        kept = {kind: plan.transformer_bytes(self._sizes, kind) for kind in models}
        decoders = plan.decoder_bytes(self._sizes) * (len(group) - 1)
        for name in names:
            seen = measure(
                arms,
                name,
                tiny=self._sizes.tiny,
                device=self._device,
                warmups=self._options.warmups,
                runs=self._options.runs,
                others=lambda arm: sum(kept.values()) - kept[arm.weights] + decoders,
            )
            self._tallies.setdefault(name, {}).update(seen)
        del arms, models
        free(self._device)

    def _check_blocks(self, arms: list[Arm], models: dict[Any, Any], unrounded: Latents) -> None:
        """Errors of the first blocks, against float32."""
        for arm in arms:
            model = models[arm.weights]
            few = blocks.first_blocks(model)
            runner = LibraryTransformer(few) if isinstance(arm, LibraryArm) else arm.over(few)
            seen = blocks.in_arm(runner, self._sizes, model)
            self._errors_of_blocks[arm.name] = {
                "picture": difference(seen.video, unrounded.video),
                "sound": difference(seen.audio, unrounded.audio),
            }

    def _figures(
        self, workload: str, rates: dict[str, float], groups: list[list[str]]
    ) -> dict[str, Any]:
        request = workloads.request(workload, 0, tiny=self._sizes.tiny)
        arithmetic = flops.denoising(self._sizes, request)
        tallies = self._tallies[workload]
        arms = {name: report.figures(tally) for name, tally in tallies.items()}
        library = arms.get("library", {})
        exact = tallies["library"].latents if "library" in tallies else None
        for spec in self._specs:
            seen, latents = arms[spec.name], tallies[spec.name].latents
            if "failed" in seen:
                continue
            denoise = seen["stages"]["denoise"]["median"]
            floor = flops.floor(arithmetic, rates, fp8=spec.weights == "fp8")
            seen["denoising, TFLOP/s"] = arithmetic.total / denoise / 1e12
            seen["denoising, times its floor"] = denoise / floor
            if "prompt to MP4" in library:
                whole = library["prompt to MP4"]["median"]
                seen["times the library's speed"] = whole / seen["prompt to MP4"]["median"]
            if exact is not None and latents is not None:
                seen["error of the picture's latent"] = difference(latents.video, exact.video)
                seen["error of the sound's latent"] = difference(latents.audio, exact.audio)
        shape = f"{request.width}×{request.height}×{request.num_frames}, {request.stages} stage(s)"
        return {
            "size": shape,
            "denoising, TFLOP": arithmetic.total / 1e12,
            "in turns": groups,
            "arms": {spec.name: arms[spec.name] for spec in self._specs},
        }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=get_args(Base), default=["ltx-2-19b"])
    parser.add_argument("--arms", nargs="+", choices=list(plan.ARMS), default=list(plan.ARMS))
    parser.add_argument("--workloads", nargs="+", choices=list("abc"), default=list("abc"))
    parser.add_argument("--runs", type=int, default=10, help="timed clips of each arm and size")
    parser.add_argument("--warmups", type=int, default=3, help="clips before them")
    parser.add_argument("--optimize", default="auto", help="what is on, as LTXQ_OPTIMIZE says it")
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="NAME",
        help=("more arms, each without one optimization; 'each': all of them, one at a time"),
    )
    parser.add_argument("--tiny", action="store_true", help="the tiny model, also on a GPU")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder to write to")
    parser.add_argument("--readme", action="store_true", help="write README's table anew, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
