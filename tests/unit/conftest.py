"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from model_hub import Hub, serve


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as hub:
        yield hub
