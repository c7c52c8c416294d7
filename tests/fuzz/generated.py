"""What the fuzz tests throw: texts, JSON and bytes as strangers send them, and how many of them.

`FUZZ` says how many inputs all tests make together; each door has its share. Without it they are
2,000 and the same every time; with it they differ from run to run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

TOTAL = int(os.environ.get("FUZZ") or 2000)

made = 0
"""Inputs made so far in this process."""


def fuzzed(share: float, batch: int = 1, **inputs: st.SearchStrategy[Any]) -> Callable[..., Any]:
    """`given`, with this door's share of all inputs. `batch`: inputs in each example."""
    return lambda test: settings(
        max_examples=max(1, round(TOTAL * share / batch)),
        deadline=None,
        database=None,
        derandomize="FUZZ" not in os.environ,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if batch == 1 else [Phase.generate],
        print_blob=True,
    )(given(**inputs)(test))


def count(inputs: int = 1) -> None:
    """Note that a test has made some."""
    global made  # noqa: PLW0603
    made += inputs


NASTY = (
    "", " ", "\0", "\x1b[2J\x07", "a\r\nINFO forged", "\u202eright to left\u202c", "שלום עולם",
    "مرحبا", "👩‍👩‍👧‍👦🦊", "\ufeff", "\ufffe", "a\u2028b", "%s%n{0}{x}",
    "../../etc/passwd", "$(id)", "é" * 255, "x" * 5000, "🦊" * 5000, "NaN", "null", "1e999",
)  # fmt: skip

texts = st.one_of(st.sampled_from(NASTY), st.text(max_size=40))
surrogates = st.text(st.characters(categories=("Cs", "Cc", "L")), min_size=1, max_size=8)
numbers = st.one_of(
    st.integers(-9, 3000),
    st.sampled_from([0, -1, 2**31, 2**53, 2**63, 2**64, 10**18, 10**400 + 1, -(10**400)]),
    st.floats(),
    st.integers(),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts, surrogates)


def json_values(leaves: st.SearchStrategy[Any] = scalars) -> st.SearchStrategy[Any]:
    """Anything JSON spells, and the NaN and lone surrogates that Python's spells too."""
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=8,
    )


def nested(depth: int) -> Any:
    """A list in a list in a list …"""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def mutated(original: bytes) -> st.SearchStrategy[bytes]:
    """`original`, cut, with bytes changed, or with others put in."""

    def change(cut: int, at: int, put: bytes, over: int) -> bytes:
        return (original[:at] + put + original[at + over :])[:cut]

    length = len(original)
    return st.builds(
        change,
        cut=st.one_of(st.just(length + 64), st.integers(0, length)),
        at=st.integers(0, length),
        put=st.binary(max_size=12),
        over=st.integers(0, 12),
    )
