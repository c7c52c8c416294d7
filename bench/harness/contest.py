"""Compares one model's arms on all workloads: groups the arms that take turns, collects their
results, and writes the results file after every clip.
"""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ltx_core.model.transformer import X0Model

from bench.harness import blocks, flops, plan, report, workloads
from bench.harness.arms import Arm, LibraryArm, LtxqArm
from bench.harness.measure import Tally, Turns, difference, free
from bench.harness.phases import Phases
from bench.harness.plan import Spec
from bench.harness.weights import Kind, Shared, Sizes, build_shared, build_transformer
from ltxq_worker.pipeline import DeviceBroken
from ltxq_worker.pipeline.denoise import Latents, LibraryTransformer
from ltxq_worker.pipeline.device import is_broken
from ltxq_worker.pipeline.fast.options import describe_error

NOTES = (
    "Weights are random: times and memory equal those of real weights (except the encoder's, which "
    "depend on the picture); errors show rounding, not quality.",
    "All arms encode the prompt with ltxq's Gemma; the library's arms with 1,024 padded tokens.",
    "The library's arms keep their models loaded and do not empty caches between stages.",
    "Stages are timed by events on the GPU; denoise includes noise and set-up, copy includes all "
    "after the decoder: colours, blending, transfer to the host. Encode: from the last frame to "
    "the MP4, by the clock.",
)


class Contest:
    """Measures one model on all workloads, and writes the results after every clip."""

    def __init__(
        self,
        sizes: Sizes,
        device: torch.device,
        specs: list[Spec],
        options: argparse.Namespace,
        phases: Phases,
    ) -> None:
        self._sizes, self._device, self._specs, self._options = sizes, device, specs, options
        self._phases = phases
        self._rates: dict[str, float] = {}
        self._errors_of_blocks: dict[str, dict[str, float]] = {}
        self._groups: dict[str, list[list[str]]] = {}  # by workload: arms that took turns
        self._tallies = {name: {spec.name: Tally() for spec in specs} for name in options.workloads}
        self._arithmetic = {
            name: flops.denoising(sizes, workloads.request(name, 0, tiny=sizes.tiny))
            for name in options.workloads
        }
        self._machine = report.machine(device)
        # Figures without single optimizations go to another file and another table.
        what = "each" if options.without else "clip"
        self._path = report.path_of(
            what, sizes.base, self._machine, options.results, tiny=sizes.tiny
        )
        self._before = json.loads(self._path.read_text()) if self._path.is_file() else {}

    def run(self) -> None:
        """Measure everything.

        Raises:
            DeviceBroken: nothing can be measured any more in this process.
        """
        unrounded = None
        with self._phases.phase("rates of the device"), _errors_printed():
            self._rates = flops.rates(self._device)
        with self._phases.phase("first blocks in float32"), _errors_printed():  # memory is free now
            unrounded = self._blocks_in_float32()
        with self._phases.phase("text encoder and decoders built"):
            shared = build_shared(self._sizes, self._device)
        for group, names in self._in_groups():
            arms = ", ".join(spec.name for spec in group)
            print(f"{', '.join(names)}: {arms} in turns", flush=True)
            self._take_turns(shared, unrounded, group, names)

    def show(self) -> None:
        """Print the tables."""
        self._write()
        for name in self._options.workloads:
            seen = self._figures(name)
            report.print_workload(f"{self._sizes.base}, {name}  {seen['size']}", seen)
        print(f"written to {self._path}")

    def _in_groups(self) -> list[tuple[list[Spec], list[str]]]:
        """Arms that take turns, and on which workloads."""
        by_key: dict[tuple[str, ...], tuple[list[Spec], list[str]]] = {}
        for workload in self._options.workloads:
            request = workloads.request(workload, 0, tiny=self._sizes.tiny)
            packed = plan.groups(self._specs, self._sizes, request, self._room())
            self._groups[workload] = [[spec.name for spec in group] for group in packed]
            for group in packed:
                key = tuple(spec.name for spec in group)
                by_key.setdefault(key, (group, []))[1].append(workload)
        return list(by_key.values())

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
        self, shared: Shared, unrounded: Latents | None, group: list[Spec], names: list[str]
    ) -> None:
        models: dict[Kind, X0Model] = {}
        arms: list[Arm] = []
        for spec in group:
            if not self._phases.allows():
                return
            try:
                if spec.weights not in models:
                    with self._phases.phase(f"transformer in {spec.weights} built"):
                        model = build_transformer(self._sizes, self._device, spec.weights)
                        models[spec.weights] = model
                arms.append(arm := self._arm(spec, shared, models[spec.weights]))
            except Exception as exc:  # noqa: BLE001 - the other arms may work
                self._fail(spec, names, exc)
                continue
            if unrounded is not None:
                with _errors_printed():
                    self._check_blocks(arm, models[spec.weights], unrounded)
        kept = {kind: plan.transformer_bytes(self._sizes, kind) for kind in models}
        decoders = plan.decoder_bytes(self._sizes) * (len(arms) - 1)
        for name in names:
            Turns(
                arms=arms,
                workload=name,
                tallies=self._tallies[name],
                tiny=self._sizes.tiny,
                device=self._device,
                warmups=self._options.warmups,
                runs=self._options.runs,
                others=lambda arm: sum(kept.values()) - kept[arm.weights] + decoders,
                phases=self._phases,
                written=self._write,
            ).take()
        del arms, models
        free(self._device)

    def _arm(self, spec: Spec, shared: Shared, model: X0Model) -> Arm:
        if spec.optimizations is None:
            return LibraryArm(spec.name, spec.weights, shared, model)
        return LtxqArm(spec.name, spec.weights, self._sizes, shared, model, spec.optimizations)

    def _fail(self, spec: Spec, names: list[str], exc: Exception) -> None:
        """Record that an arm could not be built."""
        traceback.print_exc()
        for name in names:
            self._tallies[name][spec.name].failed = describe_error(exc)
        self._write()
        if is_broken(exc):
            raise DeviceBroken(describe_error(exc)) from exc

    def _check_blocks(self, arm: Arm, model: X0Model, unrounded: Latents) -> None:
        """Record the errors of the arm's first blocks, uncompiled, against float32."""
        few = blocks.first_blocks(model)
        runner = LibraryTransformer(few) if isinstance(arm, LibraryArm) else arm.over(few)
        seen = blocks.in_arm(runner, self._sizes, model)
        self._errors_of_blocks[arm.name] = {
            "picture": difference(seen.video, unrounded.video),
            "sound": difference(seen.audio, unrounded.audio),
        }

    def _write(self) -> None:
        """Write the results so far. Figures of other arms and workloads stay in the file."""
        measured = {
            "model": self._sizes.base,
            "tiny": self._sizes.tiny,
            "notes": NOTES,
            "machine": self._machine,
            "workloads": {name: self._figures(name) for name in self._options.workloads},
            "phases (s)": self._phases.seconds,
        }
        report.write(self._path, report.merged(self._before, measured))

    def _figures(self, workload: str) -> dict[str, Any]:
        """The figures of one workload, for JSON."""
        request = workloads.request(workload, 0, tiny=self._sizes.tiny)
        tallies, arithmetic = self._tallies[workload], self._arithmetic[workload]
        arms = {spec.name: report.figures(tallies[spec.name]) for spec in self._specs}
        for spec in self._specs:
            if not (seen := arms[spec.name]):
                continue
            if "prompt to MP4" in seen and self._rates:
                denoise = seen["stages"]["denoise"]["median"]
                floor = flops.floor(arithmetic, self._rates, fp8=spec.weights == "fp8")
                seen["denoising, TFLOP/s"] = arithmetic.total / denoise / 1e12
                seen["denoising, times its floor"] = denoise / floor
            if spec.name in self._errors_of_blocks:
                seen["error of the first blocks"] = self._errors_of_blocks[spec.name]
            self._compare(seen, arms.get("library", {}), tallies[spec.name], tallies.get("library"))
        shape = f"{request.width}×{request.height}×{request.num_frames}, {request.stages} stage(s)"
        return {
            "size": shape,
            "machine": self._machine,
            "rates (TFLOP/s)": {kind: rate / 1e12 for kind, rate in self._rates.items()},
            "warm-ups": self._options.warmups,
            "denoising, TFLOP": arithmetic.total / 1e12,
            "in turns": self._groups.get(workload, []),
            "arms": arms,
        }

    def _compare(
        self,
        seen: dict[str, Any],
        library: dict[str, Any],
        tally: Tally,
        exact: Tally | None,
    ) -> None:
        """Add the comparison with the library's bf16 arm in the same run to `seen`."""
        if "prompt to MP4" in library and "prompt to MP4" in seen:
            whole = library["prompt to MP4"]["median"]
            seen["times the library's speed"] = whole / seen["prompt to MP4"]["median"]
        if exact and not tally.differences:
            tally.differences = _differences(tally, exact)
        seen |= tally.differences


@contextmanager
def _errors_printed() -> Iterator[None]:
    """Prints errors instead of raising them, unless the device is broken."""
    try:
        yield
    except Exception as exc:
        traceback.print_exc()
        if is_broken(exc):
            raise DeviceBroken(describe_error(exc)) from exc


def _differences(tally: Tally, exact: Tally) -> dict[str, float]:
    """The relative L2 errors of the last latents; empty until both are known."""
    ours, theirs = tally.latents, exact.latents
    if ours is None or theirs is None:
        return {}
    own = {}
    if tally.again is not None:  # the library's arm ran twice
        own["the library's own difference"] = difference(tally.again.video, ours.video)
    return own | {
        "error of the picture's latent": difference(ours.video, theirs.video),
        "error of the sound's latent": difference(ours.audio, theirs.audio),
    }
