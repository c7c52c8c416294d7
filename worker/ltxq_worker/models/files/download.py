"""Downloads a known model to LTXQ_MODEL_DIR, resumes, and repairs what is not whole.

A new folder grows under a hidden name, and gets the model's name when it is complete. A folder that
is there is repaired in place: each file that is not the hub's is replaced once the right one has
arrived; one that may be somebody's own, such as a fine-tune, is kept beside it. `hub.py` asks the
hub, `places.py` looks at the disk, `fetch.py` gets a file, `record.py` remembers what was compared.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ltxq.errors import ConfigurationError
from ltxq_worker.models.catalog import Repo, parts_of
from ltxq_worker.models.files.fetch import fetch
from ltxq_worker.models.files.hub import HubFile, files_of
from ltxq_worker.models.files.hub_errors import HubUnavailable, advice
from ltxq_worker.models.files.identify import is_a_work
from ltxq_worker.models.files.magic import obstacle
from ltxq_worker.models.files.places import (
    PARTIAL,
    Note,
    NotWritable,
    alone_in,
    check_place,
    check_places,
    check_space,
    gb,
    leftovers,
    put,
    remove,
    size_of,
    tidy,
)
from ltxq_worker.models.files.record import HASHES, Digest, Record, hashes_in

_LONG = 5_000_000_000  # bytes that take some seconds to read

DownloadReport = Callable[[int, int], None]
"""Told (bytes done, bytes in all). May raise, to stop; what has come is kept."""


def download(
    name: str,
    model_dir: Path,
    *,
    report: DownloadReport,
    note: Note = lambda _: None,
    verify: bool = False,
    update: bool = False,
) -> Path:
    """Get or repair the model `name` in `model_dir/name`, and the text encoder beside it; the
    folder.

    Goes on where an earlier call stopped. A file is compared with the hub's by size and hash, once:
    later calls ask nothing while its size and time stay the same. A folder keeps the revision that
    it was downloaded from.

    Args:
        verify: compare every file's content again.
        update: get the hub's newest revision: only files that changed.

    Raises:
        UnknownModel: no such model.
        ConfigurationError: a token or a licence is missing; one step to take, with its page. Or
            something that is not ltxq's to remove is in the way.
        HubUnavailable: no connection; the same call goes on later.
        StorageUnavailable: not enough space, and how much is needed.
        ModelUnusable: a file did not arrive as the hub has it.
    """
    repos = parts_of(name)
    model_dir = model_dir.expanduser().absolute()
    check_places(model_dir, repos)
    again = verify or update
    wanted = {
        folder: repo
        for folder, repo in repos.items()
        if again or not Record.read(model_dir / folder).is_whole(repo)
    }
    if not wanted and not leftovers(model_dir):
        return model_dir / name
    try:
        with alone_in(model_dir, note):
            for path in leftovers(model_dir):
                remove(path, note)
            targets = _plan(model_dir, wanted, note, update=update)
            _complete(targets, report, note, verify=verify)
    except NotWritable:
        # A shared folder is often read-only: what is whole there needs no writing.
        if update or not _as_noted(model_dir, wanted, note):
            raise
    return model_dir / name


@dataclass(frozen=True)
class _Target:
    """A folder to complete: where it grows, and the name that it gets."""

    place: Path
    final: Path
    files: list[HubFile]
    record: Record
    hashes: frozenset[str]  # SHA-256 of what earlier downloads brought

    def is_somebodys(self, file: HubFile) -> bool:
        """Whether the local file with this name may be a file that ltxq did not download."""
        path = file.path
        if path.is_symlink() or self.place != self.final:
            return False  # the link is replaced, its file stays; a hidden folder is ltxq's own
        if self.record.holds(file.name) or not is_a_work(path):
            return False
        return not self.hashes or Digest.of(path, 0, "").sha256 not in self.hashes


def _plan(model_dir: Path, wanted: dict[str, Repo], note: Note, *, update: bool) -> list[_Target]:
    """Ask the hub for the files of every repository before the first long download, so that a
    licence that is not accepted shows now and not an hour later.

    Empty where the hub cannot be asked and an earlier download noted every file.
    """
    try:
        targets = []
        for folder, repo in wanted.items():
            with advice(repo, model_dir):
                targets.append(_target(model_dir, folder, repo, update))
        return targets
    except (ConfigurationError, HubUnavailable) as exc:
        if update or not _as_noted(model_dir, wanted, note):
            raise
        note(f"The hub was not asked. {exc.message} Every file is as {HASHES} has it.")
        return []


def _target(model_dir: Path, folder: str, repo: Repo, update: bool) -> _Target:
    final = model_dir / folder
    hidden = model_dir / f"{PARTIAL}{folder}"
    place = final if final.exists() else hidden
    if place.is_file():
        place.unlink()
    place.mkdir(exist_ok=True)
    record = Record.read(place)
    pinned = record.revision if record.repo == repo.id and not update else ""
    revision, files = files_of(repo, place, pinned or None)
    for file in files:
        check_place(file)
    record.begin(repo.id, revision, [file.name for file in files])
    hashes = hashes_in(final) | hashes_in(hidden)
    return _Target(place, final, files, record, frozenset(hashes.values()))


def _complete(targets: list[_Target], report: DownloadReport, note: Note, *, verify: bool) -> None:
    """Fetch what is missing, after every file that is there was compared."""
    every = [file for target in targets for file in target.files]
    for target in targets:
        tidy(target.place, target.final, target.files, note)
    check_space([file for file in every if size_of(file.path) != file.size])
    progress = _Progress(every, report)
    missing: list[tuple[_Target, HubFile]] = []
    for target in targets:
        for file in target.files:
            if _is_right(file, target.record, progress, note, verify=verify):
                file.part.unlink(missing_ok=True)
            else:
                progress.at(file, file.begun)
                missing.append((target, file))
    check_space([file for _, file in missing])
    for target, file in missing:
        with advice(file.repo, target.place):
            sha256 = fetch(file, progress.of(file))
            put(file, keep=target.is_somebodys(file), note=note)
            target.record.add(file.name, file.etag, sha256)
    for target in targets:
        for name in target.record.end():
            remove(target.place / name, note)
        if target.place != target.final:
            target.place.replace(target.final)


def _is_right(
    file: HubFile, record: Record, progress: _Progress, note: Note, *, verify: bool
) -> bool:
    """Whether the file here is the hub's. Reads its content unless that was done before."""
    if not file.path.is_file():
        return False
    if not verify and record.holds(file.name, file.etag):
        progress.at(file, file.size)
        return True
    if (size := size_of(file.path)) != file.size:
        note(f"{file.path} has {size:,} bytes, the hub's {file.size:,}: it is replaced.")
        return False
    if size > _LONG:
        note(f"Comparing {file.path} with the hub's, {gb(size)}: once, for a minute or more.")
    digest = Digest.of(file.path, file.size, file.etag, progress.of(file))
    if digest.agrees:
        record.add(file.name, file.etag, digest.sha256)
        return True
    note(f"{file.path} has the hub's size and another content: it is replaced.")
    return False


def _as_noted(model_dir: Path, repos: dict[str, Repo], note: Note) -> bool:
    """Whether all files are whole by SHA256SUMS, which an earlier download wrote."""
    for folder, repo in repos.items():
        place, sums = model_dir / folder, hashes_in(model_dir / folder)
        weights = {path.name for path in place.glob("[!.]*.safetensors")}
        if not weights <= sums.keys() or not all(
            any(fnmatchcase(name, pattern) for name in sums) for pattern in repo.files
        ):
            return False
        if any(obstacle(place / name) for name in sums):
            return False
        note(f"Comparing the files in {place} with {HASHES}.")
        try:
            for name, sha256 in sums.items():
                if Digest.of(place / name, 0, "").sha256 != sha256:
                    return False
        except OSError:
            return False
        record = Record(folder=place)
        with suppress(OSError):  # the folder may be read-only
            record.begin(repo.id, "", list(sums))
            for name, sha256 in sums.items():
                record.add(name, "", sha256)
    return True


class _Progress:
    """Counts the bytes done of all files and passes them to `report`."""

    def __init__(self, files: list[HubFile], report: DownloadReport) -> None:
        self._total = sum(file.size for file in files)
        self._done = {file.url: file.begun for file in files}
        self._report = report
        if files:
            self._tell()

    def of(self, file: HubFile) -> Callable[[int], None]:
        """Receives the bytes of `file` that are here."""
        return lambda done: self.at(file, done)

    def at(self, file: HubFile, done: int) -> None:
        """Note that `done` bytes of `file` are here."""
        self._done[file.url] = done
        self._tell()

    def _tell(self) -> None:
        self._report(sum(self._done.values()), self._total)
