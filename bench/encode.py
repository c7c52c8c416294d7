"""Measures whether the encoder keeps up with a GPU: `python bench/encode.py`.

Encodes clips of moving waves with grain from memory with the worker's encoder: MP4 with sound,
poster and spritesheet. Once from RGB frames, as a CPU makes them, and once from YUV, as they leave
a GPU; and with x264's neighbouring presets. Prints a table, and writes it as JSON to
bench/results/encode.json. Seconds of CPU are summed over all threads; unlike elapsed time they stay
comparable on a machine that is busy with other work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
from numpy.typing import NDArray

from ltxq.job import VideoRequest
from ltxq_worker.encode import mp4 as encode_mp4
from ltxq_worker.encode.clip import encode
from ltxq_worker.pipeline import ClipStream, Sound

RESULTS = Path(__file__).parent / "results" / "encode.json"
SIZES = {
    "768x512x33": (768, 512, 33),
    "768x512x121": (768, 512, 121),
    "1536x1024x121": (1536, 1024, 121),
}
PRESETS, COMPARED = ["veryfast", "faster", "fast"], "768x512x121"
SOUND = Sound(samples=np.zeros((2, 24_000 * 8), np.float32), sample_rate=24_000)

Figures = dict[str, float]


def main() -> None:
    options = _options()
    figures: dict[str, Figures] = {}
    for name, (width, height, count) in SIZES.items():
        rgb = scene(width, height, count)
        yuv = np.stack([in_yuv(picture) for picture in rgb])
        request = VideoRequest(prompt="a", width=width, height=height, num_frames=count, seed=0)

        def measured(
            pixels: str,
            preset: str,
            request: VideoRequest = request,
            rgb: Any = rgb,
            yuv: Any = yuv,
        ) -> Figures:
            with mock.patch.dict(encode_mp4.X264, preset=preset):
                return median_of(options.runs, lambda: made(request, pixels, rgb, yuv))

        usual = encode_mp4.X264["preset"]
        figures[f"{name} from RGB, {usual}"] = measured("rgb24", usual)
        for preset in PRESETS if name == COMPARED else [usual]:
            figures[f"{name} from YUV, {preset}"] = measured("yuv420p", preset)
    report(figures, options.runs)


def made(
    request: VideoRequest, pixels: Any, rgb: NDArray[np.uint8], yuv: NDArray[np.uint8]
) -> Figures:
    """Encode one clip."""
    chunks = np.array_split(yuv if pixels == "yuv420p" else rgb, request.num_frames // 8)
    with tempfile.TemporaryDirectory() as folder:
        clock, cpu = time.perf_counter(), time.process_time()
        encoded = encode(
            ClipStream(frames=iter(chunks), sound=SOUND, pixels=pixels),
            request,
            Path(folder),
            ignore,
        )
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return {
        "frames per second": request.num_frames / clock,
        "seconds": clock,
        "seconds of CPU": cpu,
        "times as fast as it plays": request.num_frames / 24 / clock,
        "bytes": encoded.size,
    }


def median_of(runs: int, run: Callable[[], Figures]) -> Figures:
    seen = [run() for _ in range(runs)]
    return {name: statistics.median(figures[name] for figures in seen) for name in seen[0]}


def scene(width: int, height: int, count: int) -> NDArray[np.uint8]:
    """uint8 [count, H, W, 3]: drifting waves, with grain that changes with every frame."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin(x / period) * np.cos(y / 31 + period) for period in (40, 49, 58)]
    drifting = (128 + 90 * np.stack(waves, -1)).astype(np.int16)
    grain = (random.standard_normal((8, height, width, 1), np.float32) * 4).astype(np.int16)
    frames = np.empty((count, height, width, 3), np.uint8)
    for index in range(count):
        picture = np.roll(drifting, (index, -3 * index), axis=(0, 1)) + grain[index % len(grain)]
        frames[index] = picture.clip(0, 255)
    return frames


def in_yuv(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    return encode_mp4.as_yuv420(frame).to_ndarray()


def report(figures: dict[str, Figures], runs: int) -> None:
    columns = list(next(iter(figures.values())))
    print(f"{'':36}" + "".join(f"{column:>28}" for column in columns))
    for name, row in figures.items():
        print(f"{name:36}" + "".join(f"{row[column]:28,.2f}" for column in columns))
    document = {
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "load average when it began": LOAD,
            "python": platform.python_version(),
            "av": version("av"),
            "date": time.strftime("%Y-%m-%d"),
        },
        "runs": runs,
        "figures": {
            name: {column: round(value, 3) for column, value in row.items()}
            for name, row in figures.items()
        },
    }
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))


def ignore(stage: object, step: int, steps: int) -> None:
    """A Report that does nothing."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="clips of each kind; the median counts")
    return parser.parse_args()


LOAD = round(os.getloadavg()[0], 1)

if __name__ == "__main__":
    main()
