"""Reads the header of a .safetensors file, and single numbers, without torch or safetensors.

A header that passes here also passes in safetensors itself, which would refuse it minutes later.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ltxq.errors import ModelUnusable
from ltxq_worker.models.files.magic import format_of, obstacle

# Bytes. The format allows 100 MB; those of checkpoints with 7,000 tensors have about 1 MB, and a
# hostile one takes twenty times its length in memory.
_MAX_HEADER = 16_000_000

_LARGEST, _MOST_SIDES = 1 << 63, 64  # of a size and of a shape: torch has no larger ones

# Bits of a number, by the format's names.
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    dtype: str  # the format's name: "BF16", "F8_E4M3", …
    shape: tuple[int, ...]
    start: int  # offset of its first byte in the file
    end: int  # offset after its last byte

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """In bytes."""
        return self.end - self.start

    @classmethod
    def parse(cls, entry: dict[str, Any], origin: int) -> Self:
        """Parse a header's entry; `origin` is the offset in the file where its tensors begin.

        Raises:
            ValueError, KeyError, TypeError: the entry is malformed.
        """
        start, end = entry["data_offsets"]
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        sizes = (start, end, *shape)
        if not all(type(size) is int and 0 <= size < _LARGEST for size in sizes):
            raise ValueError("not sizes")
        if len(shape) > _MOST_SIDES:
            raise ValueError("too many sides")
        if 8 * (end - start) != _BITS[dtype] * math.prod(shape):
            raise ValueError("its bytes do not match its shape")
        return cls(dtype, shape, origin + start, origin + end)


@dataclass(frozen=True, kw_only=True)
class SafetensorsHeader:
    """A file's header, checked against the file's length."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]  # by name

    @classmethod
    def read(cls, path: Path, again: str) -> SafetensorsHeader:
        """Read the header of `path`; `again` is the hint how to get the file again.

        Raises:
            ModelUnusable: the file is cut short, too long, or no safetensors file: then it says
                what the file is.
        """
        if problem := obstacle(path):
            raise ModelUnusable(f"{path} is {problem}; {_WANTED}.", hint=again)
        _require_no_download(path, again)
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                possible = size >= 8 and 2 <= length <= _MAX_HEADER
                header = file.read(length) if possible else b""
            if not possible or header[:1] not in (b"{", b""):
                raise ModelUnusable(f"{path} is {format_of(path)}; {_WANTED}.", hint=again)
        except OSError as exc:
            raise ModelUnusable(f"{path} cannot be read: {exc.strerror}.", hint=again) from exc
        if len(header) < length:
            raise _wrong_length(path, size, 8 + length, again)
        try:
            entries = json.loads(header)
            metadata = entries.pop("__metadata__", {})
            if not all(isinstance(text, str) for text in metadata.values()):
                raise ValueError("metadata that are no texts")
            tensors = {
                name: StoredTensor.parse(entry, 8 + length) for name, entry in entries.items()
            }
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as exc:
            raise _damaged(path, again) from exc
        end = 8 + length
        for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end)):
            if tensor.start != end:
                raise _damaged(path, again)
            end = tensor.end
        if size != end:
            raise _wrong_length(path, size, end, again)
        return cls(path=path, metadata=metadata, tensors=tensors)

    def floats(self, names: list[str], again: str) -> list[float]:
        """The values of the named tensors, which hold one F32 each.

        Raises:
            ModelUnusable: the file cannot be read.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                values: list[float] = []
                for name in names:
                    file.seek(self.tensors[name].start)
                    values += struct.unpack("<f", file.read(4))
                return values
        except (OSError, struct.error) as exc:
            raise ModelUnusable(f"{self.path} cannot be read: {exc}.", hint=again) from exc


def _require_no_download(path: Path, again: str) -> None:
    """aria2 and axel give a file its size and name at once, and fill it in pieces. The file in
    which they note the pieces goes when all of them are there.
    """
    for program, suffix in (("aria2", ".aria2"), ("axel", ".st")):
        notes = path.with_name(path.name + suffix)
        if notes.exists():
            raise ModelUnusable(
                f"{path} is not complete: {program} downloads it, as {notes.name} beside it says.",
                hint=f"Let {program} finish it. Or: Move {notes.name} out of {path.parent}. "
                f"{again}",
            )


_WANTED = "a safetensors file is wanted"


def _damaged(path: Path, again: str) -> ModelUnusable:
    return ModelUnusable(f"{path} is a safetensors file with a damaged header.", hint=again)


def _wrong_length(path: Path, size: int, whole: int, again: str) -> ModelUnusable:
    problem = "is cut short" if size < whole else "is too long"
    return ModelUnusable(f"{path} {problem}: it has {size:,} of {whole:,} bytes.", hint=again)
