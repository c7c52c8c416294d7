"""Measures how fast a model loads, and how fast its files can be read: `python bench/load.py`.

Writes a model's folder with random weights, of full size (`--divide 1`) or narrower, into a folder
of your choice (`--folder /dev/shm` is a RAM disk). Loads it, each time in a new process: bf16,
bf16 converted to FP8, and published FP8; each from the disk and from the page cache. Prints a table
and writes it as JSON to bench/results/load.json.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[1]
    # Import from the checkout, and replace this folder, whose modules could hide installed ones.
    sys.path[:1] = [str(ROOT), str(ROOT / "producer"), str(ROOT / "worker")]

import argparse
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

RESULTS = Path(__file__).parent / "results" / "load.json"
BLOCK = 16_000_000  # bytes of a sequential read
# The format of the files, and the quantization they are loaded with.
ARMS = {
    "bf16": ("bf16", "bf16"),
    "bf16 made FP8": ("bf16", "fp8"),
    "published FP8": ("published", "fp8"),
}
Figures = dict[str, float]


def main() -> None:
    options = _options()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    import torch

    from bench.harness import files, report
    from bench.harness.weights import Sizes

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = files.divided(Sizes.of(options.model, tiny_one=False), options.divide)
    rows: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="ltxq-load-", dir=options.folder) as folder:
        for form in dict.fromkeys(form for form, _ in ARMS.values()):
            path = Path(folder, form)
            files.write_model(path, sizes, published_fp8=form == "published")
            for name, (of_form, quantization) in ARMS.items():
                if of_form == form:
                    for state in ("disk", "page cache"):
                        rows[f"{name}, from the {state}"] = median(
                            [
                                one(path, quantization, device.type, state)
                                for _ in range(options.runs)
                            ]
                        )
            for file in path.rglob("*.safetensors"):  # frees space for the next model
                file.unlink()
    _print(rows)
    about = report.machine(device)
    about |= {"model": options.model, "divided by": options.divide, "folder": options.folder}
    options.results.write_text(json.dumps({"machine": about, **rows}, indent=2) + "\n")
    print(f"written to {options.results}")


def one(folder: Path, quantization: str, device: str, state: str) -> Figures:
    """Read the files sequentially, then load the model; both from `state`: disk or page cache."""
    paths = [*folder.rglob("*.safetensors")]
    size = sum(path.stat().st_size for path in paths)
    if state == "disk":
        forget(paths)
    began = time.perf_counter()
    for path in paths:
        read(path)
    sequential = size / (time.perf_counter() - began)
    if state == "disk":
        forget(paths)
    command = [sys.executable, __file__, "--measure", str(folder), quantization, device]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=3600)
    seen: Figures = json.loads(ran.stdout.splitlines()[-1])
    return {
        "GB": size / 1e9,
        "seconds": seen["seconds"],
        "GB/s": size / seen["seconds"] / 1e9,
        "GB/s of reading alone": sequential / 1e9,
        "GB of weights": seen["weights"] / 1e9,
        "GB of the process's own memory, most": seen["most"] / 1e9,
        "GB of GPU memory, most": seen["on GPU"] / 1e9,
    }


def measure(folder: str, quantization: str, device: str) -> Figures:
    """Load the model in this process: seconds, bytes of weights, and peak memory."""
    import torch

    from ltxq_worker.models.files.folder import ModelFolder
    from ltxq_worker.models.weights import resident

    if device == "cuda":
        torch.zeros((), device=device)  # starts CUDA, which is not measured
    before = own_memory()
    with watched() as most:
        began = time.perf_counter()
        model = resident.load(
            ModelFolder.open(Path(folder)), torch.device(device), quantization, lambda *_: None
        )
        weights = list(_weights(model))
        if device == "cuda":
            torch.cuda.synchronize()
        else:  # weights are memory-mapped: use a byte of each page, so that all are read
            for weight in weights:
                weight.detach().flatten().view(torch.uint8)[::4096].max()
        seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "weights": sum(weight.nbytes for weight in weights),
        "most": max(most) - before,
        "on GPU": torch.cuda.max_memory_allocated() if device == "cuda" else 0,
    }


def _weights(model: Any) -> Iterator[Any]:
    parts = (model.text.gemma, model.text.embeddings, model.transformer, model.video_decoder)
    for part in (*parts, model.audio_decoder, model.vocoder, model.upsampler):
        yield from (tensor for tensor in part.state_dict().values() if tensor.numel())


def read(path: Path) -> None:
    """Read a file from start to end, in blocks of `BLOCK` bytes."""
    piece = memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


def forget(paths: list[Path]) -> None:
    """Drop the files from the page cache. No effect on a RAM disk, where both states are equal."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def own_memory() -> int:
    """Bytes of this process's anonymous memory: counts copies, but not memory-mapped files."""
    status = Path("/proc/self/status").read_text()
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")
    )


@contextmanager
def watched() -> Iterator[list[int]]:
    """Samples `own_memory` every 5 ms into the returned list."""
    seen, done = [own_memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(own_memory())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def median(runs: list[Figures]) -> Figures:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _print(rows: dict[str, Figures]) -> None:
    names = [*next(iter(rows.values()))]
    print(f"{'':<32}" + "".join(f"{name:>40}" for name in names))
    for row, figures in rows.items():
        print(f"{row:<32}" + "".join(f"{figures[name]:>40.2f}" for name in names))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="folder for the files")
    parser.add_argument("--model", choices=["ltx-2-19b", "ltx-2.3-22b"], default="ltx-2-19b")
    parser.add_argument("--divide", type=int, choices=[1, 2, 4, 8, 16], default=8, help="of widths")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
