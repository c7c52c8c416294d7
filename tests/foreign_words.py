"""Values of every wrong kind, and the phrases of libraries that no door of ltxq may repeat."""

from __future__ import annotations

import re
from typing import Any

WRONG: tuple[Any, ...] = (
    None, True, "", " ", "x", "nan", "inf", "1e999", "\0", "\ud800", "x" * 6000, "true", "1.5",
    -1, 0, 1.5, 3, 10**6, 2**53, 2**53 + 1, 2**64, 10**4000, -(10**400), 1e300, float("nan"),
    float("-inf"), [], [1], ["a"], {}, {"a": 1}, {"a": "b", "": "c"}, {1: 2}, {"a" * 70: "b"},
    {str(n): "" for n in range(20)}, "2026-12-24T18:00:00", "2026-12-24", "99999-01-01T00:00:00Z",
    "http://[", "redis://", "1,2", "a=b", "a=1,b=x", "[1", '{"a": 1}',
)  # fmt: skip

FOREIGN = re.compile(
    "|".join(
        (
            "Input should|[Ee]xtra inputs|Field required|String should|should (be|have|match)",
            "[Uu]nable to (parse|interpret)|[Vv]alue error|pydantic|SettingsError|Error parsing",
            "valid (integer|string|number|boolean|dictionary|list|tuple|datetime|path)",
            "Invalid value|No such (option|command)|Missing (arg|opt|par|com)|Got unexpected",
            "requires an argument|does not take a value|is not one of|could not convert|Traceback",
            r"Expecting |Extra data|Invalid control|Unterminated|Invalid \\",
        )
    )
)


def foreign(text: str) -> str:
    """The phrase of a library in a text; '' if there is none."""
    found = FOREIGN.search(text)
    return found[0] if found else ""
