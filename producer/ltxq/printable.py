"""Text from strangers, made safe for a terminal, a log line, an error message or Flower.

Not printable are control characters (C0, C1), line separators, marks that turn the direction of
text, lone surrogates, and spaces other than U+0020.
"""

from __future__ import annotations


def one_line(text: str) -> str:
    """`text` on one line; what is not printable becomes an escape, as `\\n` or `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def blanked(text: str) -> str:
    """`text` with a space in place of each character that is not printable."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
