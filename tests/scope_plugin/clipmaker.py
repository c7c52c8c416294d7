"""Makes clips with the instant pipeline.

Scope's PyAV is too old for the worker's encoder. So in Scope's Python this module runs itself
as a program in WORKER_PYTHON: each input line is a request's JSON, each output line a base64 MP4.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from ltxq import VideoRequest

WORKER_PYTHON = os.environ.get("WORKER_PYTHON")  # the Python that has the worker's packages


def make_clip(request: VideoRequest) -> bytes:
    """The MP4 of a request whose model and seed are set."""
    if WORKER_PYTHON is None:
        return _make(request)
    process = _worker_process(WORKER_PYTHON)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request.model_dump_json() + "\n")
    process.stdin.flush()
    return base64.b64decode(process.stdout.readline())


def _make(request: VideoRequest) -> bytes:
    from ltxq_worker.encode.clip import encode
    from ltxq_worker.pipeline.instant import InstantPipeline

    with tempfile.TemporaryDirectory() as folder:
        clip = InstantPipeline().generate(request, lambda *_: None)
        return encode(clip, request, Path(folder), lambda *_: None).mp4.read_bytes()


@cache
def _worker_process(python: str) -> subprocess.Popen[str]:
    """Ends when its standard input closes, that is, with this process."""
    environment = {k: v for k, v in os.environ.items() if k not in ("WORKER_PYTHON", "PYTHONPATH")}
    return subprocess.Popen(
        [python, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


if __name__ == "__main__":
    for line in sys.stdin:
        mp4 = _make(VideoRequest.model_validate_json(line))
        print(base64.b64encode(mp4).decode(), flush=True)  # noqa: T201
