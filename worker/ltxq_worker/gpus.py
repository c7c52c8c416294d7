"""The GPUs of this machine, as NVIDIA's driver reports them. No torch, and no CUDA context.

nvidia-smi is used instead of NVML (nvidia-ml-py), because a call into a broken driver may never
return, and only a separate process can be abandoned.
"""

from __future__ import annotations

import logging
import math
import subprocess
from dataclasses import dataclass

log = logging.getLogger("ltxq.supervisor")

TIMEOUT = 30.0  # seconds
_FIELDS = "index,name,driver_version,memory.used,memory.total,utilization.gpu"


@dataclass(frozen=True)
class Gpu:
    """One GPU. A figure that the card does not report is NaN."""

    index: str  # CUDA's, in the order of the PCI bus
    name: str
    driver: str
    memory_used: float  # bytes
    memory_size: float  # bytes
    utilization: float  # share of the last second or so in which a kernel ran


def read_gpus() -> list[Gpu]:
    """The GPUs; empty without a driver, or if it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError) as exc:
        log.debug("nvidia-smi: %s", exc)
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [_gpu(*row) for row in rows if len(row) == len(_FIELDS.split(","))]


def _gpu(index: str, name: str, driver: str, used: str, size: str, utilization: str) -> Gpu:
    return Gpu(
        index=index,
        name=name,
        driver=driver,
        memory_used=_number(used) * 2**20,
        memory_size=_number(size) * 2**20,
        utilization=_number(utilization) / 100,
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # '[N/A]'
        return math.nan
