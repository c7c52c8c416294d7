"""The stages of a job in which a fault is tried: the last of them in each run of the tests."""

from __future__ import annotations

import pytest

STAGES = [
    pytest.param("denoise", marks=pytest.mark.extended),
    pytest.param("upload", marks=pytest.mark.extended),
    "finish",
]
