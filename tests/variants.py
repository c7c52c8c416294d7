"""Parameters of a test, of which only `make test-all` runs the later ones."""

from __future__ import annotations

from typing import Any

import pytest


def variants(*usual: Any, extended: tuple[Any, ...]) -> list[Any]:
    """For `parametrize`; a tuple is several arguments."""
    marks = pytest.mark.extended
    rest = (one if isinstance(one, tuple) else (one,) for one in extended)
    return [*usual, *(pytest.param(*values, marks=marks) for values in rest)]
