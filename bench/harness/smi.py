"""Samples a GPU with nvidia-smi, as an independent measure of how busy it is."""

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
    """Yields a dict that holds the means after the `with`; it stays empty without nvidia-smi."""
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
        output, _ = process.communicate()
        seen |= _means(output)


def _means(output: str) -> dict[str, float]:
    rows = [line.split(",") for line in output.splitlines()]
    columns = zip(*(row for row in rows if len(row) == len(ASKED)), strict=True)
    means = {}
    for name, column in zip(ASKED.values(), columns, strict=False):
        try:
            means[name] = statistics.fmean(map(float, column))
        except ValueError:  # "[N/A]", on a virtual machine
            continue
    return means
