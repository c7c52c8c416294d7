"""What a download may write where: permissions, room, one download at a time, and remainders.

Everything that could refuse a download is asked before it begins.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from shlex import quote
from typing import IO

from ltxq.errors import ConfigurationError
from ltxq_worker.models.catalog import repo_of
from ltxq_worker.models.files.hub import HubFile
from ltxq_worker.models.files.hub_errors import disk_full
from ltxq_worker.models.files.identify import describe
from ltxq_worker.models.files.magic import obstacle
from ltxq_worker.models.files.record import HASHES, VERIFIED, Record

PARTIAL = ".downloading-"  # prefix of folders that are not complete

_PART = re.compile(r"\..+\.[0-9a-f]{16}")  # name of a partial file
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}

Note = Callable[[str], None]
"""Receives a sentence for a person, about a file that is checked, replaced or removed."""


class NotWritable(ConfigurationError):
    """The folder for models cannot be written."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            hint="Run the download as a user and on a machine that may write there, or set "
            "LTXQ_MODEL_DIR to another folder.",
        )


@contextmanager
def alone_in(model_dir: Path, note: Note) -> Iterator[None]:
    """Make and lock `model_dir`: two processes that write to one file would damage it.

    Raises:
        NotWritable: it cannot be made or written.
        ConfigurationError: another process has the lock.
    """
    try:
        model_dir.mkdir(parents=True, exist_ok=True)
        lock = _opened(model_dir / ".downloading.lock")
    except OSError as exc:
        raise NotWritable(f"{model_dir} cannot be written: {exc.strerror}.") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"Another process is downloading to {model_dir}.", hint="Wait for it to end."
            ) from None
        except OSError as exc:
            if exc.errno not in _NO_LOCKS:
                raise
            note(f"{model_dir} is on a disk without locks: run one download at a time.")
        yield


def _opened(lock: Path) -> IO[str]:
    """The lock file. Another user's can be locked too, in a folder that a group may write."""
    try:
        return lock.open("a")
    except PermissionError:
        if not os.access(lock.parent, os.W_OK | os.X_OK):
            raise
        return lock.open()


def check_places(model_dir: Path, folders: Iterable[str]) -> None:
    """Is anything in the way of the folders? A file, or a link to a disk that is not mounted."""
    for place in (model_dir, *(model_dir / folder for folder in folders)):
        if place.is_dir() or (not place.exists() and not place.is_symlink()):
            continue
        what = describe(place)
        name = quote(str(place))
        move = f"Move it away: mv {name} {name}.old. Then run the same command again."
        if place.is_symlink() and not place.exists():
            move = f"Mount the disk that it leads to, or remove the link: rm {name}."
        raise ConfigurationError(f"{place} is {what}; a folder is wanted.", hint=move)


def check_place(file: HubFile) -> None:
    """May a file of that name be put there?"""
    path, folder = file.path, file.path.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{folder} cannot be written by this user.",
            hint="Change its owner or permissions, or run the download where it can be written.",
        )
    problem, name = obstacle(path), quote(str(path))
    if problem is None or not (path.is_dir() or path.is_file()):
        return  # a dangling link or a pipe is replaced
    if path.is_file():
        raise ConfigurationError(
            f"{path} is {problem}.", hint=f"Let this user read it: chmod u+r {name}, as its owner."
        )
    if path.is_symlink() or any(path.iterdir()):
        raise ConfigurationError(
            f"{path} is a folder; a file of {gb(file.size)} is wanted.",
            hint=f"Move it away: mv {name} {name}.old. Then run the same command again.",
        )


def check_space(files: list[HubFile]) -> None:
    """Is there room for what is missing, on each disk? What is replaced stays until then."""
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for file in files:
        disk = file.path.parent.stat().st_dev
        places[disk] = file.path.parent
        needed[disk] = needed.get(disk, 0) + (0 if file.linkable else file.size - file.begun)
    for disk, place in places.items():
        free = shutil.disk_usage(place).free
        if needed[disk] > free:
            raise disk_full(
                f"{gb(needed[disk])} more are needed in {place.parent}, and {gb(free)} are free.",
                free_up=gb(needed[disk] - free),
            )


def put(file: HubFile, *, keep: bool, note: Note) -> None:
    """Give a whole partial file its name, in place of what has it.

    Args:
        keep: what has the name stays, under another.
    """
    path = file.path
    if keep:
        names = (path.with_name(f"{path.name}.old{n or ''}") for n in count())
        kept = next(name for name in names if not os.path.lexists(name))
        path.rename(kept)
        note(f"{path} is not the hub's, and ltxq did not download it: it is kept as {kept.name}.")
    elif path.is_dir() and not path.is_symlink():
        path.rmdir()  # an empty one, as a container's mount of a missing file leaves
    os.replace(file.part, path)


def tidy(folder: Path, final: Path, files: list[HubFile], note: Note) -> None:
    """Remove partial files in `folder` that no download of `files` continues. A folder of the name
    `final` takes those of its own earlier attempt.
    """
    hidden = final.with_name(f"{PARTIAL}{final.name}")
    if folder != hidden and hidden.is_dir():
        for file in files:
            for name in (file.name, file.part.name):
                if not os.path.lexists(folder / name) and (hidden / name).is_file():
                    with suppress(OSError):  # the folder may be on another disk
                        (hidden / name).replace(folder / name)
        remove(hidden, note)
    parts, names = {file.part.name for file in files}, {file.name for file in files}
    for path in list(folder.iterdir()):
        stale = _PART.fullmatch(path.name) and path.name not in parts
        foreign = folder == hidden and path.name not in parts | names | {HASHES, VERIFIED}
        if stale or foreign:
            remove(path, note)


def leftovers(model_dir: Path) -> list[Path]:
    """Folders of downloads that are whole elsewhere, or of models that this ltxq does not know."""
    found = []
    for path in model_dir.glob(f"{PARTIAL}*"):
        name = path.name.removeprefix(PARTIAL)
        repo = repo_of(name)
        whole = repo is not None and Record.read(model_dir / name).is_whole(repo)
        if path.is_dir() and (repo is None or whole):
            found.append(path)
    return found


def remove(path: Path, note: Note) -> None:
    """Remove a file or folder that a download left, and say so."""
    is_folder = path.is_dir() and not path.is_symlink()
    size = sum(size_of(inner) for inner in path.rglob("*")) if is_folder else size_of(path)
    if is_folder:
        shutil.rmtree(path)
    else:
        path.unlink()
    if size > 0:
        note(f"Removed {path}: {gb(size)} of an earlier download.")


def size_of(path: Path) -> int:
    """Bytes of a file; -1 if there is none."""
    return path.stat().st_size if path.is_file() else -1


def gb(size: int) -> str:
    """A size for a person."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
