"""Asks the hub which files a repository has, and finds them in the hub's local cache."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from hashlib import sha256
from pathlib import Path

from huggingface_hub import (
    HfApi,
    ModelInfo,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
)
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoSibling

from ltxq.errors import ModelUnusable
from ltxq_worker.models.catalog import Repo
from ltxq_worker.models.files.hub_errors import HubUnavailable

TIMEOUT = 10.0  # seconds for the hub to answer; for each piece of a file, HF_HUB_DOWNLOAD_TIMEOUT

_HEX = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file on the hub and its place here."""

    repo: Repo
    url: str  # of one revision: its content never changes
    etag: str  # by the hub's list: SHA-256 in hex for large files, git's hash for others
    size: int  # bytes
    path: Path
    cached: Path | None  # in the hub's local cache, of the right size; its content is not checked
    linkable: bool  # `cached` can have a hard link at `path`, which needs no space

    @property
    def name(self) -> str:
        """Without a folder."""
        return self.path.name

    @property
    def part(self) -> Path:
        """The partial file. Its name has the content's hash, so no other version continues it."""
        mark = self.etag if _HEX.match(self.etag) else sha256(self.etag.encode()).hexdigest()
        return self.path.with_name(f".{self.path.name}.{mark[:16]}")

    @property
    def begun(self) -> int:
        """Bytes in the partial file; 0 if it cannot be continued."""
        try:
            size = self.part.stat().st_size
        except OSError:
            return 0
        return size if size <= self.size else 0


def files_of(repo: Repo, folder: Path, revision: str | None) -> tuple[str, list[HubFile]]:
    """The newest commit of `repo`, or `revision` if the hub still has it, and its files for
    `folder`.

    Asks the hub for every file with the token, so that missing access shows.

    Raises:
        HubUnavailable: the answer is not the hub's.
        ModelUnusable: a file is gone.
        Errors of huggingface_hub, for `advice`.
    """
    info = HfApi().model_info(
        repo.id, revision=_usable(repo, revision), timeout=TIMEOUT, files_metadata=True
    )
    names = {file.rfilename: file for file in _files(info)}
    files = []
    for pattern in repo.files:
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise ModelUnusable(
                f"{repo.id} has no file {pattern}: it was renamed or removed.",
                hint=f"See {repo.page}/tree/main, and upgrade ltxq.",
            )
        files += [_file(repo, names[name], info.sha, folder) for name in found]
    return info.sha or "", files


def _usable(repo: Repo, revision: str | None) -> str | None:
    """`revision` if the hub still has it, with the files that this ltxq wants; else None."""
    if revision is None:
        return None
    with suppress(RevisionNotFoundError):
        info = HfApi().model_info(repo.id, revision=revision, timeout=TIMEOUT)
        names = [file.rfilename for file in _files(info)]
        if all(any(fnmatchcase(name, pattern) for name in names) for pattern in repo.files):
            return revision
    return None


def _files(info: ModelInfo) -> list[RepoSibling]:
    """The files at the top of a repository; hidden ones are ltxq's own here."""
    names = ((file.rfilename, file) for file in info.siblings or [])
    return [file for name, file in names if "/" not in name and not name.startswith(".")]


def _file(repo: Repo, listed: RepoSibling, revision: str | None, folder: Path) -> HubFile:
    """A file as the list has it. A mirror's list may lack hash and size: the answer for the file
    itself has them too, in ETags of the mirror's own.
    """
    name = listed.rfilename
    url = hf_hub_url(repo.id, name, revision=revision)
    known = get_hf_file_metadata(url, timeout=TIMEOUT)
    etag = (listed.lfs.sha256 if listed.lfs else listed.blob_id) or known.etag
    size = listed.lfs.size if listed.lfs else listed.size
    size = known.size if size is None else size
    if etag is None or size is None:
        raise HubUnavailable(
            f"The answer for {url} lacks a size or an ETag: it is not the hub's.",
            hint="Check HF_ENDPOINT, and proxies on the way.",
        )
    cached = _cached(repo, name, etag, size)
    return HubFile(
        repo=repo,
        url=url,
        etag=etag,
        size=size,
        path=folder / name,
        cached=cached,
        linkable=cached is not None and _linkable(cached, folder),
    )


def _cached(repo: Repo, name: str, etag: str, size: int) -> Path | None:
    """The file in the hub's local cache, if it has `size` bytes. HF_HUB_CACHE and HF_HOME count.

    Of any revision: most commits leave the large files as they are. A content's hash is its name.
    """
    cache = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo.id, repo_type="model"))
    # A snapshot has symbolic links to the cache's files.
    every = [Path(os.path.realpath(path)) for path in cache.glob(f"snapshots/*/{escape(name)}")]
    found = [path for path in every if os.path.isfile(path) and os.path.getsize(path) == size]
    return min(found, key=lambda path: path.name != etag, default=None)


def _linkable(file: Path, folder: Path) -> bool:
    """Whether `folder` can have a hard link to `file`. It tries: two mounts of one disk cannot."""
    probe = folder / ".link"
    probe.unlink(missing_ok=True)
    try:
        os.link(file, probe)
    except OSError:
        return False
    probe.unlink()
    return True
