"""Fixtures. Scope is the stand-in, or the checkout of the real one that SCOPE_CHECKOUT names.

SCOPE_CHECKOUT=/path/to/scope python3.12 -m pytest tests/scope_plugin
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = os.environ.get("SCOPE_CHECKOUT")
SCOPE = Path(CHECKOUT, "src") if CHECKOUT else Path(__file__).parent / "stand_in"
sys.path.insert(0, str(SCOPE))

from ltxq.scope_plugin import connection  # noqa: E402
from scope_world import World, eventually, plugin_threads  # noqa: E402


@pytest.fixture
def world() -> Iterator[World]:
    """A queue in memory whose worker finishes every job at once."""
    made = World()
    yield made
    made.close()


@pytest.fixture
def slow_world() -> Iterator[World]:
    """A queue in memory whose jobs wait for `finish`."""
    made = World(automatic=False)
    yield made
    made.close()


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Load the pipeline as Scope does: `load(world, num_frames=9)`."""
    from ltxq.scope_plugin.pipeline import Ltx2QueuePipeline

    def load(world: World, **parameters: Any) -> Ltx2QueuePipeline:
        monkeypatch.setattr(connection, "connect", world.client)
        small = {"width": 64, "height": 64, "num_frames": 9}
        return Ltx2QueuePipeline(**{**small, **parameters})

    yield load
    eventually(lambda: not plugin_threads())
