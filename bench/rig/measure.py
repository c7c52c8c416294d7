"""One workload on the arms of a group: warmed up, then taking turns; memory and errors apart."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.rig import workloads
from bench.rig.arms import Arm, Made
from ltxq.errors import OutOfMemory
from ltxq_worker.pipeline.denoise import Latents

CHECKED = 0  # the take whose latents are compared; runs have others


@dataclass
class Tally:
    """What was seen of one arm on one workload."""

    runs: list[Made] = field(default_factory=list)
    allocated: int = 0  # bytes at most, without what other arms keep on the card
    reserved: int = 0  # likewise, with what the allocator holds beside it
    latents: Latents | None = None  # of the checked take, on the CPU
    failed: str = ""  # why there are no more runs


def measure(
    arms: Sequence[Arm],
    workload: str,
    *,
    tiny: bool,
    device: torch.device,
    warmups: int,
    runs: int,
    others: Callable[[Arm], int],
) -> dict[str, Tally]:
    """`runs` takes of `workload` by each arm in turns, after `warmups` of each.

    `others`: bytes on the card that are not this arm's.
    """
    tallies = {arm.name: Tally() for arm in arms}

    def attempt(arm: Arm, work: Callable[[Tally], None]) -> None:
        tally = tallies[arm.name]
        if tally.failed:
            return
        try:
            work(tally)
            return
        except (torch.OutOfMemoryError, OutOfMemory):
            tally.failed = "out of memory"
        free(device)

    def made(arm: Arm, take: int) -> Made:
        request = workloads.request(workload, take, tiny=tiny)
        with tempfile.TemporaryDirectory() as folder:
            return arm.make(request, Path(folder))

    for arm in arms:
        for take in range(1, warmups + 1):
            attempt(arm, lambda _, arm=arm, take=take: made(arm, take) and None)
    for take in range(warmups + 1, warmups + runs + 1):
        for arm in arms:
            attempt(arm, lambda tally, arm=arm, take=take: tally.runs.append(made(arm, take)))
    for arm in arms:
        request = workloads.request(workload, CHECKED, tiny=tiny)

        def check(tally: Tally, arm: Arm = arm, request: object = request) -> None:
            latents = arm.latents(request)  # type: ignore[arg-type]
            tally.latents = Latents(latents.video.cpu(), latents.audio.cpu())

        attempt(arm, check)
        if device.type == "cuda":
            attempt(arm, lambda tally, arm=arm: _peaks(tally, lambda: made(arm, 0), others(arm)))
    return tallies


def _peaks(tally: Tally, make: Callable[[], Made], others: int) -> None:
    """Fill in the memory of one clip more."""
    free(torch.device("cuda"))
    torch.cuda.reset_peak_memory_stats()
    make()
    tally.allocated = torch.cuda.max_memory_allocated() - others
    tally.reserved = torch.cuda.max_memory_reserved() - others


def free(device: torch.device) -> None:
    """Give back what nobody uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative, in L2."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
