"""Says what a path holds that is no safetensors file: a folder, a pointer, a page, another format.

It reads the first bytes only, of regular files only: opening a named pipe would wait for ever.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_FIRST = 512  # bytes that are enough to recognize every format below

_POINTERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, a text that stands for a file"),
    (b"# xet version", "a Xet pointer, a text that stands for a file"),
)
_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "a GGUF file, the format of llama.cpp"),
    (b"\x80\x02", "a Python pickle (.pt, .ckpt), which ltxq never loads"),
    (b"\x80\x03", "a Python pickle (.pt, .ckpt), which ltxq never loads"),
    (b"\x80\x04", "a Python pickle (.pt, .ckpt), which ltxq never loads"),
    (b"\x80\x05", "a Python pickle (.pt, .ckpt), which ltxq never loads"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
)


def obstacle(path: Path) -> str | None:
    """Why `path` cannot be read as a file: what is there instead; None for a readable file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            return f"a symbolic link to {os.readlink(path)}, which does not exist"
        return "not there"
    except (OSError, ValueError) as exc:
        return f"not readable ({getattr(exc, 'strerror', None) or exc})"
    if stat.S_ISDIR(mode):
        return "a folder"
    if not stat.S_ISREG(mode):
        return "not a regular file"
    try:
        path.open("rb").close()
    except OSError as exc:
        return f"not readable ({exc.strerror})"
    return None


def format_of(path: Path) -> str:
    """What a readable file is by its first bytes. Names no safetensors file."""
    first = _first(path)
    if not first:
        return "an empty file"
    if not first.strip(b"\0"):
        return "full of zeros, as a file whose content never arrived"
    if first.startswith(b"PK\x03\x04") and b"data.pkl" in first:
        return "a PyTorch pickle (.pt, .ckpt), which ltxq never loads"
    for magic, name in (*_POINTERS, *_FORMATS):
        if first.startswith(magic):
            return name
    text = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, such as a login page"
    if text.startswith(b"<?xml"):
        return "an XML text, such as a storage server's error"
    if text.startswith((b"{", b"[")):
        return "a JSON text" + ("" if path.suffix == ".json" else ", such as a server's error")
    if first.isascii() and first.decode().isprintable():
        return "a text"
    return "a file of an unknown format"


def is_another_programs(path: Path) -> bool:
    """Whether a readable file is of a format of other programs, and not the remains of a
    download.
    """
    return _first(path).startswith(tuple(magic for magic, _ in _FORMATS))


def _first(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_FIRST)


def other_spelling(folder: Path, name: str) -> str | None:
    """The name in `folder` that differs from `name` in upper and lower case only."""
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    return next((n for n in names if n != name and n.casefold() == name.casefold()), None)
