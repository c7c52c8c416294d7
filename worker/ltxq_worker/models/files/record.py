"""What is known of a downloaded folder's files: their hashes, and that they are the hub's.

`SHA256SUMS` has the hashes in sha256sum's form. `.verified.json` has the repository's revision and,
for each file, the size and time at which its content was right, so that 43 GB are not read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

from ltxq_worker.models.catalog import Repo

HASHES = "SHA256SUMS"  # in a model's folder: its files' hashes, in sha256sum's form
VERIFIED = ".verified.json"

_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\0]+)")
_PIECE = 8 << 20  # bytes read at once
_LARGEST = 1 << 20  # bytes of either file; they have some kilobytes

Count = Callable[[int], None]  # receives the bytes that were read


@dataclass(kw_only=True)
class Record:
    """The record of one folder."""

    folder: Path
    repo: str = ""  # of the hub
    revision: str = ""  # the commit that the files are from; '' if they were not compared with it
    names: list[str] = field(default_factory=list)  # of all files that belong there
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # etag, size, mtime_ns by name

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record in `folder`; an empty one if there is none or it is damaged."""
        record = cls(folder=folder)
        try:
            content = json.loads(_small(folder / VERIFIED))
            repo, revision = content["repo"], content["revision"]
            names, files = content["names"], content["files"]
            if (
                all(isinstance(text, str) for text in (repo, revision, *names))
                and all(isinstance(about, dict) for about in files.values())
                and not any("/" in name for name in (*names, *files))
            ):
                record.repo, record.revision = repo, revision
                record.names, record.files = list(names), dict(files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        return record

    def holds(self, name: str, etag: str | None = None) -> bool:
        """Whether the file is as it was when its content was right (`etag`: right by this one)."""
        about = self.files.get(name, {})
        return (
            bool(about)
            and about == _about(self.folder / name, about.get("etag", ""))
            and (etag is None or about["etag"] == etag)
        )

    def is_whole(self, repo: Repo) -> bool:
        """Whether every file of `repo` is there, by size and time. Reads no content."""
        return (
            self.repo == repo.id
            and all(any(fnmatchcase(n, pattern) for n in self.names) for pattern in repo.files)
            and all(self.holds(name) for name in self.names)
        )

    def begin(self, repo: str, revision: str, names: list[str]) -> None:
        """Note which files belong there from now on."""
        self.repo, self.revision, self.names = repo, revision, names
        self.write()

    def end(self) -> list[str]:
        """Forget the files that belong there no more, now that all others are there; the names of
        those that are as they were downloaded.
        """
        former = [name for name in self.files if name not in self.names]
        unchanged = [name for name in former if self.holds(name)]
        for name in former:
            del self.files[name]
        self.write()
        if former:
            self._write_hashes({n: s for n, s in hashes_in(self.folder).items() if n in self.names})
        return unchanged

    def add(self, name: str, etag: str, sha256: str) -> None:
        """Note that a file's content is right, in both files."""
        if about := _about(self.folder / name, etag):
            self.files[name] = about
        self.write()
        self._write_hashes(hashes_in(self.folder) | {name: sha256})

    def _write_hashes(self, sums: dict[str, str]) -> None:
        lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
        _replace(self.folder / HASHES, lines)

    def write(self) -> None:
        """Write the record."""
        content = {
            "repo": self.repo,
            "revision": self.revision,
            "names": sorted(self.names),
            "files": dict(sorted(self.files.items())),
        }
        _replace(self.folder / VERIFIED, json.dumps(content, indent=1) + "\n")


def hashes_in(folder: Path) -> dict[str, str]:
    """SHA-256 by file name, from SHA256SUMS; empty if there is none."""
    try:
        lines = _small(folder / HASHES).decode(errors="replace").splitlines()
    except (OSError, ValueError):
        return {}
    found = (_LINE.fullmatch(line) for line in lines)
    return {line[2]: line[1] for line in found if line}


def pieces_of(path: Path) -> Iterator[bytes]:
    """The content of a file, in pieces of some megabytes."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


class Digest:
    """Compares content with the hash by which the hub identifies it: SHA-256 for large files, git's
    for others. Caches of companies and mirrors have SHA-1 without git's prefix.
    """

    def __init__(self, size: int, etag: str) -> None:
        """For a content of `size` bytes and this hash."""
        self._etag, self._size, self.read = etag, size, 0
        self._sha256 = hashlib.sha256()
        starts = (b"blob %d\0" % size, b"") if _SHA1.fullmatch(etag) else ()
        # Not for security: an ETag is what another program made.
        self._sha1 = [hashlib.sha1(start, usedforsecurity=False) for start in starts]

    def update(self, piece: bytes) -> None:
        """Add a piece."""
        self._sha256.update(piece)
        for sha1 in self._sha1:
            sha1.update(piece)
        self.read += len(piece)

    @property
    def sha256(self) -> str:
        """In hex."""
        return self._sha256.hexdigest()

    @property
    def agrees(self) -> bool:
        """Whether the content has its size and hash. A hash of another form tells nothing."""
        if self.read != self._size:
            return False
        if _SHA256.fullmatch(self._etag):
            return self._etag == self.sha256
        return not self._sha1 or self._etag in {sha1.hexdigest() for sha1 in self._sha1}

    @classmethod
    def of(cls, path: Path, size: int, etag: str, count: Count = lambda _: None) -> Self:
        """The digest of a file."""
        digest = cls(size, etag)
        for piece in pieces_of(path):
            digest.update(piece)
            count(digest.read)
        return digest


def _about(path: Path, etag: str) -> dict[str, Any]:
    """What a file must keep to be taken for unchanged; empty if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return {}
    return {"etag": etag, "size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _small(path: Path) -> bytes:
    if path.stat().st_size > _LARGEST:
        raise ValueError("too large")
    return path.read_bytes()


def _replace(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    new = path.with_name(f".{path.name.lstrip('.')}.new")
    new.write_text(text)
    os.replace(new, path)
