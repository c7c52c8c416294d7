"""Reads the header of a .safetensors file, and single numbers, without torch or safetensors."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ltxq.errors import ModelUnusable

_MAX_HEADER = 100_000_000  # bytes: the limit of the safetensors format


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
        if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
            raise ValueError("not sizes")
        if not isinstance(dtype, str) or end < start:
            raise ValueError("not a tensor")
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
            ModelUnusable: the file is cut short, or is not a safetensors file.
        """
        foreign = ModelUnusable(f"{path} is not a safetensors file.", hint=again)
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or not 2 <= length <= _MAX_HEADER:
                    raise foreign
                header = file.read(length)
        except OSError as exc:
            raise ModelUnusable(f"{path} cannot be read: {exc.strerror}.", hint=again) from exc
        if header[:1] != b"{":
            raise foreign
        try:
            if len(header) < length:
                raise _cut_short(path, size, 8 + length, again)
            entries = json.loads(header)
            metadata = entries.pop("__metadata__", {})
            if not all(isinstance(text, str) for text in metadata.values()):
                raise foreign
            tensors = {
                name: StoredTensor.parse(entry, 8 + length) for name, entry in entries.items()
            }
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
            raise foreign from None
        end = max((tensor.end for tensor in tensors.values()), default=8 + length)
        if size < end:
            raise _cut_short(path, size, end, again)
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


def _cut_short(path: Path, size: int, whole: int, again: str) -> ModelUnusable:
    return ModelUnusable(
        f"{path} is cut short: it has {size:,} of {whole:,} bytes.", hint=f"Delete it. {again}"
    )
