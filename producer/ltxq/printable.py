"""Text from strangers, made fit for a terminal, a log line or an error message."""

from __future__ import annotations


def one_line(text: str) -> str:
    """`text` on one line, with an escape for each character that is not printable: `\\n`, `\\x1b`.

    Those are control characters (C0, C1), line separators, marks that turn the direction of text,
    lone surrogates and spaces other than U+0020.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
