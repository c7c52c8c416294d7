"""The name under which a browser saves a clip: the first words of its prompt, and its seed."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote

STEM_MOST = 60  # characters of the prompt
READ_MOST = 4 * STEM_MOST  # characters of the prompt that are looked at: each read of a job does it
STEM_BYTES_MOST = 150  # of the prompt in UTF-8: file systems allow 255 bytes for a whole name


def download_name(prompt: str, seed: int | None, suffix: str = ".mp4") -> str:
    """As `a-red-fox-trots-42.mp4`. Letters and digits of every script, with hyphens between, so
    nothing in it is a path, a hidden file or a command.
    """
    begin = unicodedata.normalize("NFC", prompt[:READ_MOST])
    # Marks are the vowels of some scripts.
    kept = (c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in begin)
    stem = ""
    for word in "".join(kept).split():
        longer = f"{stem}-{word}" if stem else word[:STEM_MOST]
        if len(longer) > STEM_MOST:
            break
        stem = longer
    stem = stem.encode("utf-8", "ignore")[:STEM_BYTES_MOST].decode("utf-8", "ignore").strip("-")
    parts = [stem or "clip", *([] if seed is None else [str(seed)])]
    return "-".join(parts) + suffix


def content_disposition(name: str) -> str:
    """The header's value, by RFC 6266: `filename` in ASCII, and `filename*` where that differs."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "", plain).lstrip(".-") or "clip"
    if plain == name:
        return f'inline; filename="{name}"'
    return f"inline; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
