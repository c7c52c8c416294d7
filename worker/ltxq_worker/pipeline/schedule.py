"""The noise levels (sigmas) the distilled checkpoints were trained for, from ltx-pipelines 1.0.0.

Imports no torch, since the instant pipeline uses the step counts too.
"""

from __future__ import annotations

FIRST_STAGE = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
SECOND_STAGE = (0.909375, 0.725, 0.421875, 0.0)


def steps(stages: int) -> int:
    """Denoising steps of a clip in one stage (8) or two (8 + 3)."""
    return sum(len(sigmas) - 1 for sigmas in (FIRST_STAGE, SECOND_STAGE)[:stages])
