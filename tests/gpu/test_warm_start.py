"""A worker that starts again finds the code that was compiled before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltxq_worker.models.tiny.model import make_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(600),
]

START = """
import json, sys
from torch._dynamo.utils import counters
from ltxq_worker.pipeline.ltx import LtxPipeline
from ltxq_worker.pipeline.fast.options import keep_compiled_code, parse_shapes

keep_compiled_code()
pipeline = LtxPipeline.load(sys.argv[1], device="cuda", optimize="hoist,compile")
pipeline.warm_up([request.settled("m") for request in parse_shapes("256x256x9")])
assert pipeline.optimizations.compile
found = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}
print(json.dumps(found))
"""


def test_the_second_start_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(tmp_path / "model")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    first, second = (start(tmp_path / "model") for _ in range(2))
    assert first["miss"] > 0
    assert second["miss"] == 0
    assert second["hit"] > 0


def start(model: Path) -> dict[str, int]:
    """A process of its own, as a worker's is: what it found in the cache, and what not."""
    ended = subprocess.run(
        [sys.executable, "-c", START, str(model)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=True,
        stdout=subprocess.PIPE,
        timeout=280,
    )
    found: dict[str, int] = json.loads(ended.stdout.splitlines()[-1])
    return found
