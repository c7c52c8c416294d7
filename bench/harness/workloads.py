"""The clips to measure: a, b and c, and small clips of the same kinds for the tiny model."""

from __future__ import annotations

from ltxq.job import VideoRequest

# As long as a carefully written prompt: about 130 tokens of the tiny model's tokenizer.
PROMPT = (
    "a red fox walks through fresh snow at dawn while the camera follows slowly, its breath in the "
    "cold air, soft light, shallow depth of field, film grain; the wind moves the branches of the "
    "trees, a bird flies up, and far away the bells of a small church ring; the fox stops, turns "
    "and looks into the camera, then runs over the frozen river and into the forest"
)

FULL = {
    "a": {"height": 512, "width": 768, "num_frames": 33},
    "b": {"height": 512, "width": 768, "num_frames": 121},
    "c": {"height": 1024, "width": 1536, "num_frames": 121, "stages": 2},
}
TINY = {
    "a": {"height": 64, "width": 96, "num_frames": 9},
    "b": {"height": 64, "width": 96, "num_frames": 17},
    "c": {"height": 128, "width": 128, "num_frames": 17, "stages": 2},
}


def request(workload: str, take: int, *, tiny: bool) -> VideoRequest:
    """The request of one clip. Each take has its own prompt and seed, so that no cache helps."""
    size = (TINY if tiny else FULL)[workload]
    return VideoRequest.parse(
        {"prompt": f"{PROMPT}, {workload}, take {take:03}", "seed": take, **size}
    )
