"""The pipeline's memory on a card, with a tiny model: what it takes, gives back and runs out of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ltxq.errors import OutOfMemory
from ltxq.job import Stage, VideoRequest
from ltxq_worker.models.tiny.model import make_tiny
from ltxq_worker.pipeline import memory
from ltxq_worker.pipeline.ltx import LtxPipeline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ROOM = 16_000_000  # bytes between two peaks: a workspace is taken when its kernel first runs
REQUEST = VideoRequest(seed=42, prompt="a cat", height=512, width=768, num_frames=33)


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[LtxPipeline]:
    make_tiny(tmp_path / "ltx-2-tiny")
    yield LtxPipeline.load(tmp_path / "ltx-2-tiny", device="cuda")
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_memory_is_given_back_and_the_peak_does_not_grow(pipeline: LtxPipeline) -> None:
    make(pipeline)
    kept, peaks = torch.cuda.memory_allocated(), []
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        make(pipeline)
        peaks.append(torch.cuda.max_memory_allocated())
        assert torch.cuda.memory_allocated() == kept
    assert max(peaks) - min(peaks) <= ROOM
    shape = memory.Shape(REQUEST.height, REQUEST.width, REQUEST.num_frames)
    assert max(peaks) - kept < 2 * memory.bytes_needed(pipeline._config, shape)


def test_a_full_card_is_told_with_what_fits_and_works_again(pipeline: LtxPipeline) -> None:
    make(pipeline)
    torch.cuda.empty_cache()
    kept = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 5e7) / total)
    with pytest.raises(OutOfMemory, match="768×512 with 33 frames"):
        make(pipeline)
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.memory_allocated() <= kept  # what it had taken is free again
    assert make(pipeline) == 33


def make(pipeline: LtxPipeline) -> int:
    clip = pipeline.generate(REQUEST, ignore)
    return sum(len(chunk) for chunk in clip.frames)


def ignore(stage: Stage, step: int, steps: int) -> None:
    """A report nobody reads."""
