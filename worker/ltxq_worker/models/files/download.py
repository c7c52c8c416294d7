"""Downloads a known model's files from the hub to LTXQ_MODEL_DIR, resumes, and checks them.

A download grows in a hidden folder, which gets the model's name when it is complete. A file that
the hub's local cache holds is used from there. `hub_errors.py` has the errors.

Why not `hf_hub_download(local_dir=…)`: in huggingface_hub 2.4.0 it deletes its partial file when
it stops, so an interrupted checkpoint of 43 GB would start again from zero.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Self

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from ltxq.errors import ConfigurationError, ModelUnusable
from ltxq_worker.models.catalog import Repo, parts_of
from ltxq_worker.models.files.hub_errors import HubUnavailable, advice, disk_full

TIMEOUT = 10.0  # seconds for the hub to answer; for each piece of a file, HF_HUB_DOWNLOAD_TIMEOUT

HASHES = "SHA256SUMS"  # in a model's folder: its files' hashes, in sha256sum's form

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PIECE = 8 << 20  # bytes read at once

DownloadReport = Callable[[int, int], None]
"""Told (bytes done, bytes in all). May raise, to stop; what has come is kept."""


def download(name: str, model_dir: Path, *, report: DownloadReport) -> Path:
    """Get the model `name` into `model_dir/name`, and the text encoder beside it; the folder.

    Goes on where an earlier call stopped. What is there already is not asked for again.

    Raises:
        UnknownModel: no such model.
        ConfigurationError: a token or a licence is missing; one step to take, with its page.
        HubUnavailable: no connection; the same call goes on later.
        StorageUnavailable: not enough space, and how much is needed.
        ModelUnusable: a file did not arrive as the hub has it.
    """
    parts = parts_of(name)
    model_dir = model_dir.expanduser()
    model_dir.mkdir(parents=True, exist_ok=True)
    with _alone_in(model_dir):
        missing = {
            folder: repo for folder, repo in parts.items() if not (model_dir / folder).exists()
        }
        # Every repository is asked before the first long download, so that a licence that is not
        # accepted shows now and not an hour later.
        files = [
            file
            for folder, repo in missing.items()
            for file in _files_of(repo, model_dir / f".downloading-{folder}", model_dir)
        ]
        _check_space(files, model_dir)
        progress = _Progress(files, report)
        for file in files:
            _fetch(file, progress)
        for folder in missing:
            (model_dir / f".downloading-{folder}").replace(model_dir / folder)
    return model_dir / name


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file on the hub and its place here."""

    repo: Repo
    url: str
    etag: str  # SHA-256 in hex for the large ones
    size: int  # bytes
    path: Path
    cached: Path | None  # in the hub's local cache, of the right size; its content is not checked
    linkable: bool  # `cached` can have a hard link at `path`, which needs no space

    @property
    def part(self) -> Path:
        """The partial file. Its name has the content's hash, so no other version continues it."""
        return self.path.with_name(f".{self.path.name}.{self.etag[:16]}")

    @property
    def done(self) -> int:
        """Bytes on disk."""
        if self.path.exists() and self.path.stat().st_size == self.size:
            return self.size
        return min(self.part.stat().st_size, self.size) if self.part.exists() else 0


def _files_of(repo: Repo, folder: Path, model_dir: Path) -> list[_File]:
    """The files to get from `repo` into `folder`, which is in `model_dir`.

    Asks the hub for every file with the token, so that missing access shows.
    """
    with advice(repo, folder):
        info = HfApi().model_info(repo.id, timeout=TIMEOUT)
        names = [sibling.rfilename for sibling in info.siblings or []]
        files = []
        for pattern in repo.files:
            found = [name for name in names if "/" not in name and fnmatch(name, pattern)]
            if not found:
                raise ModelUnusable(
                    f"{repo.id} has no file {pattern}: it was renamed or removed.",
                    hint=f"See {repo.page}/tree/main, and upgrade ltxq.",
                )
            for name in found:
                url = hf_hub_url(repo.id, name, revision=info.sha)
                known = get_hf_file_metadata(url, timeout=TIMEOUT)
                if known.etag is None or known.size is None:
                    raise HubUnavailable(
                        f"The answer for {url} lacks a size or an ETag: it is not the hub's.",
                        hint="Check HF_ENDPOINT, and proxies on the way.",
                    )
                cached = _cached(repo, name, info.sha, known.size)
                files.append(
                    _File(
                        repo=repo,
                        url=url,
                        etag=known.etag,
                        size=known.size,
                        path=folder / name,
                        cached=cached,
                        linkable=cached is not None and _linkable(cached, model_dir),
                    )
                )
    return files


def _cached(repo: Repo, name: str, revision: str | None, size: int) -> Path | None:
    """The file in the hub's local cache, if it has `size` bytes. HF_HUB_CACHE and HF_HOME count."""
    found = try_to_load_from_cache(repo.id, name, revision=revision)
    if not isinstance(found, str):
        return None
    path = Path(found).resolve()  # a snapshot has symbolic links to the cache's files
    return path if path.stat().st_size == size else None


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


def _check_space(files: list[_File], model_dir: Path) -> None:
    needed = sum(file.size - file.done for file in files if not file.linkable)
    free = shutil.disk_usage(model_dir).free
    if needed > free:
        raise disk_full(
            f"{_gb(needed)} more are needed in {model_dir}, and {_gb(free)} are free.",
            free_up=_gb(needed - free),
        )


def _fetch(file: _File, progress: _Progress) -> None:
    """Get the missing part of `file`, check it, and give it its name."""
    if file.path.exists() and file.done == file.size:
        return
    with advice(file.repo, file.path.parent):
        file.path.parent.mkdir(exist_ok=True)
        sha256 = _from_cache(file, progress) or _from_hub(file, progress)
        with (file.path.parent / HASHES).open("a") as sums:
            sums.write(f"{sha256}  {file.path.name}\n")


def _from_cache(file: _File, progress: _Progress) -> str | None:
    """Link or copy the file from the hub's local cache; returns its SHA-256, or None if it is
    missing or damaged.
    """
    if file.cached is None:
        return None
    sha256, size = hashlib.sha256(), 0
    copy = Path(os.devnull) if file.linkable else file.part
    with copy.open("wb") as target, progress.bar_of(file)() as bar:
        for piece in _pieces_of(file.cached):
            target.write(piece)
            sha256.update(piece)
            size += len(piece)
            bar.update(len(piece))
    if size != file.size or not _has_etag(file, sha256.hexdigest()):
        if not file.linkable:
            file.part.unlink()
        return None
    if file.linkable:
        # The link shares its content with the cache: writing into one would change the other.
        # Neither ltxq nor huggingface_hub writes into a finished file; both replace it.
        file.path.unlink(missing_ok=True)
        os.link(file.cached, file.path)
        file.part.unlink(missing_ok=True)
    else:
        file.part.replace(file.path)
    return sha256.hexdigest()


def _pieces_of(path: Path) -> Iterator[bytes]:
    """The content of a file, as far as it can be read."""
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece
    except OSError:
        return


def _from_hub(file: _File, progress: _Progress) -> str:
    """Download the missing part of `file`; returns its SHA-256."""
    with file.part.open("ab") as part:
        http_get(
            file.url,
            part,
            resume_size=file.done,
            headers=build_hf_headers(),
            expected_size=file.size,
            tqdm_class=progress.bar_of(file),
        )
    with file.part.open("rb") as part:
        sha256 = hashlib.file_digest(part, "sha256").hexdigest()
    if not _has_etag(file, sha256):
        file.part.unlink()
        raise ModelUnusable(
            f"{file.path.name} arrived damaged: its SHA-256 is {sha256}, not {file.etag}.",
            hint="It was deleted. Run the same command again; if this happens again, look at "
            "the disk and at proxies on the way.",
        )
    file.part.replace(file.path)
    return sha256


def _has_etag(file: _File, sha256: str) -> bool:
    """Whether the hub's ETag agrees with this SHA-256. A small file's ETag is no SHA-256."""
    return sha256 == file.etag or not _SHA256.fullmatch(file.etag)


class _Progress:
    """Counts the bytes done of all files and passes them to `report`."""

    def __init__(self, files: list[_File], report: DownloadReport) -> None:
        self._total = sum(file.size for file in files)
        self._done = {file.url: file.done for file in files}
        self._report = report
        if files:
            self._tell()

    def bar_of(self, file: _File) -> Any:
        """A class of progress bars for huggingface_hub, for this one file."""
        progress = self

        class Bar:
            def __init__(self, *, initial: int = 0, **_: object) -> None:
                progress._done[file.url] = initial

            def update(self, count: int) -> None:
                progress._done[file.url] += count
                progress._tell()

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                """Nothing to close."""

        return Bar

    def _tell(self) -> None:
        self._report(sum(self._done.values()), self._total)


@contextmanager
def _alone_in(model_dir: Path) -> Iterator[None]:
    """Lock `model_dir`: two processes that write to one file would damage it."""
    with (model_dir / ".downloading.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"Another process is downloading to {model_dir}.", hint="Wait for it to end."
            ) from None
        yield


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
