"""Output files of a command: checked before its work begins; afterwards complete or absent."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ltxq.errors import ConfigurationError

ROOM = 1_000_000  # free bytes required for a file of unknown size
UNFINISHED = ".ltxq-"  # prefix of a folder with unfinished files


def writable_file(file: Path, option: str, *, size: int = ROOM) -> Path:
    """The absolute path of a file that a command will create or overwrite. A link stays, and what
    it names is written: /dev/stdout is a link too.

    Args:
        option: the option with this path, such as '-o'; for the error.
        size: bytes that must be free.

    Raises:
        ConfigurationError: the file cannot be written: its folder is missing, full or read-only, or
            its name belongs to a folder or a device.
    """
    kind = None
    try:
        path = Path(os.path.realpath(file))
        with suppress(FileNotFoundError):
            kind = file.stat().st_mode
    except OSError as exc:
        raise _refused(file, option, exc) from None
    if kind is not None and stat.S_ISDIR(kind):
        raise ConfigurationError(
            f"{file} is a folder.", hint=f"Name a file in it: {option} {file / 'NAME'}"
        )
    if kind is not None and not stat.S_ISREG(kind):
        raise ConfigurationError(
            f"{file} is a device or a pipe, not a file.", hint=f"Name a file with {option}."
        )
    writable_folder(path.parent, option, size=size)
    return path


def writable_folder(folder: Path, option: str, *, size: int = ROOM, make: bool = False) -> None:
    """Check that a command may write files of `size` bytes to a folder.

    Args:
        option: the option with this path, for the error; '' for the working directory.
        make: the folder may be missing, because the command creates it and its parents later.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    try:
        path = there = folder.absolute()
        while make and not os.path.lexists(there):
            there = there.parent
        if not there.is_dir():
            raise (
                NotADirectoryError(errno.ENOTDIR, "it is not a folder")
                if os.path.lexists(there)
                else FileNotFoundError(errno.ENOENT, "it is missing")
            )
        with tempfile.TemporaryFile(dir=there, prefix=UNFINISHED) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
        free = shutil.disk_usage(there).free
    except OSError as exc:
        raise _refused(folder, option, exc) from None
    if free < size:
        raise ConfigurationError(
            f"The disk that holds {path} has {free / 1e6:,.1f} MB free; {size / 1e6:,.1f} MB are "
            "needed.",
            hint=f"Free space there, {_choose(option)}.",
        )


def _refused(path: Path, option: str, exc: OSError) -> ConfigurationError:
    reason = (exc.strerror or str(exc)).rstrip(".")
    if exc.errno == errno.ENOENT and not path.is_absolute():
        with suppress(OSError):
            path = path.absolute()
        if not path.is_absolute():
            return ConfigurationError(
                "The working directory no longer exists.", hint="Change to another folder (cd)."
            )
    hints = {
        errno.ENOENT: f"Make the folder, {_choose(option)}.",
        errno.ENOSPC: f"Free space there, {_choose(option)}.",
        errno.ENAMETOOLONG: "Choose a shorter name.",
    }
    missing = exc.errno == errno.ENOENT and path.exists()  # /proc, where no file can be created
    hint = hints.get(0 if missing else exc.errno or 0, f"{_choose(option).removeprefix('or ')}.")
    return ConfigurationError(
        f"{path} cannot be written: {reason}.", hint=hint[:1].upper() + hint[1:]
    )


def _choose(option: str) -> str:
    return f"or choose another path with {option}" if option else "or change to another folder"


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder` for unfinished files, removed at the end. Folders that a
    killed process left behind are removed too.
    """
    for left in folder.glob(f"{UNFINISHED}*"):
        if left.is_dir() and not left.is_symlink():
            _remove_unless_locked(left)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as made,
        (Path(made) / ".lock").open("w") as lock,
    ):
        with suppress(OSError):  # a disk without locks: a later call does not remove it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Path(made)


def _remove_unless_locked(folder: Path) -> None:
    with suppress(OSError), (folder / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
