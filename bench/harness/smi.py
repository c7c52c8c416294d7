"""What nvidia-smi says of a GPU meanwhile: a second opinion on how busy it is."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

ASKED = {
    "utilization.gpu": "nvidia-smi: a kernel runs (%)",
    "clocks.sm": "clock (MHz)",
    "power.draw": "power (W)",
}
EVERY = 200  # milliseconds


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """The means, filled in at the end; of nothing where there is no nvidia-smi."""
    query = f"--query-gpu={','.join(ASKED)}"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits", f"-lms={EVERY}", "--id=0"]
    seen: dict[str, float] = {}
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except OSError:
        yield seen
        return
    try:
        yield seen
    finally:
        process.terminate()
        said, _ = process.communicate()
        seen |= _means(said)


def _means(said: str) -> dict[str, float]:
    rows = [line.split(",") for line in said.splitlines()]
    columns = zip(*(row for row in rows if len(row) == len(ASKED)), strict=True)
    means = {}
    for name, column in zip(ASKED.values(), columns, strict=False):
        try:
            means[name] = statistics.fmean(map(float, column))
        except ValueError:  # "[N/A]", on a virtual machine
            continue
    return means
