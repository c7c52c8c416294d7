"""Measures one workload on the arms of a group: warms up, takes turns, then compares latents.

An arm that fails is skipped from then on, and its error recorded; the others go on. When the time
limit is reached all stop, and the figures measured before are kept.
"""

from __future__ import annotations

import gc
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.harness import workloads
from bench.harness.arms import Arm, LibraryArm, Made
from bench.harness.phases import Phases
from ltxq.errors import OutOfMemory
from ltxq_worker.pipeline import DeviceBroken
from ltxq_worker.pipeline.denoise import Latents
from ltxq_worker.pipeline.device import is_broken, is_out_of_memory
from ltxq_worker.pipeline.fast.options import describe_error

CHECKED = 0  # the take whose latents are compared; timed runs use other takes


@dataclass
class Tally:
    """The results of one arm on one workload."""

    runs: list[Made] = field(default_factory=list)
    first: float = 0.0  # seconds of the first clip, which compiles and plans
    allocated: int = 0  # peak bytes allocated, without the other arms' memory
    reserved: int = 0  # peak bytes reserved by the allocator; only for an arm alone in its group
    latents: Latents | None = None  # of the checked take, on the CPU
    again: Latents | None = None  # of a second run of it; only the library's, for its own variation
    differences: dict[str, float] = field(default_factory=dict)  # of its latents, once known
    optimizations: str = ""  # on at the last run, as in LTXQ_OPTIMIZE
    failed: str = ""  # the error that ended its runs
    longest: float = 0.0  # seconds of the longest timed clip so far


@dataclass
class Turns:
    """Measures the arms of a group on one workload."""

    arms: Sequence[Arm]
    workload: str
    tallies: dict[str, Tally]  # by arm; filled by `take`
    tiny: bool
    device: torch.device
    warmups: int
    runs: int
    others: Callable[[Arm], int]  # bytes on the card that belong to the other arms
    phases: Phases
    written: Callable[[], None]  # called after every change to the tallies

    def take(self) -> None:
        """Measure all arms.

        Raises:
            DeviceBroken: the device refuses further work from this process.
        """
        for arm in self.arms:
            warmups = min(1, self.warmups) if isinstance(arm, LibraryArm) else self.warmups
            with self.phases.phase(f"{self.workload}, {arm.name}: warming up"):
                for take in range(1, warmups + 1):
                    self._attempt(arm, self._warm_up, take)
        with self.phases.phase(f"{self.workload}: {self.runs} clips each, in turns"):
            for take in range(self.warmups + 1, self.warmups + self.runs + 1):
                for arm in self.arms:
                    self._attempt(arm, self._run, take)
        for arm in self.arms:
            with self.phases.phase(f"{self.workload}, {arm.name}: latents compared"):
                self._attempt(arm, self._compare, CHECKED)

    def _attempt(self, arm: Arm, work: Callable[[Arm, Tally, int], None], take: int) -> None:
        tally = self.tallies[arm.name]
        if tally.failed or not self.phases.allows(tally.longest):
            return
        broken = False
        try:
            work(arm, tally, take)
        except Exception as exc:  # noqa: BLE001 - any error ends this arm only
            broken = isinstance(exc, DeviceBroken) or is_broken(exc)
            memory = isinstance(exc, OutOfMemory) or is_out_of_memory(exc)
            tally.failed = "out of memory" if memory else describe_error(exc)
            print(f"{self.workload}, {arm.name} failed: {tally.failed}", flush=True)
            if not memory:
                traceback.print_exc()
        self.written()
        if broken:
            raise DeviceBroken(tally.failed)
        if tally.failed:
            free(self.device)

    def _warm_up(self, arm: Arm, tally: Tally, take: int) -> None:
        began = time.perf_counter()
        self._made(arm, take)
        tally.first = tally.first or time.perf_counter() - began

    def _run(self, arm: Arm, tally: Tally, take: int) -> None:
        on_card = self.device.type == "cuda"
        if on_card:
            torch.cuda.reset_peak_memory_stats()
        tally.runs.append(made := self._made(arm, take))
        tally.longest = max(tally.longest, made.seconds)
        if on_card:
            others = self.others(arm)
            peak = torch.cuda.max_memory_allocated() - others
            tally.allocated = max(tally.allocated, peak)
            if len(self.arms) == 1:
                tally.reserved = torch.cuda.max_memory_reserved() - others
        tally.optimizations = arm.optimizations

    def _compare(self, arm: Arm, tally: Tally, take: int) -> None:
        request = workloads.request(self.workload, take, tiny=self.tiny)
        tally.latents = _on_cpu(arm.latents(request))
        if isinstance(arm, LibraryArm):
            tally.again = _on_cpu(arm.latents(request))

    def _made(self, arm: Arm, take: int) -> Made:
        request = workloads.request(self.workload, take, tiny=self.tiny)
        with tempfile.TemporaryDirectory() as folder:
            return arm.make(request, Path(folder))


def _on_cpu(latents: Latents) -> Latents:
    return Latents(latents.video.cpu(), latents.audio.cpu())


def free(device: torch.device) -> None:
    """Return unreferenced memory to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The relative difference in the L2 norm."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
