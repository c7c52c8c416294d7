"""A worker slot: whose folder it may lock, and what it may not be led to."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ltxq.errors import ConfigurationError
from ltxq_worker.embedded.stack import Stack
from ltxq_worker.supervisor.child import WorkerSlot, find_slots, lock_slot

SLOT = WorkerSlot(name="cpu0@host", device="cpu", gpu=None)
STRANGER = 65_534  # nobody

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make what is another user's")


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A folder that is ours alone."""
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o700)
    return folder


def refused(folder: Path, why: str) -> ConfigurationError:
    """Nothing may be made in it, or through it."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    with pytest.raises(ConfigurationError, match=why) as refusal:
        lock_slot(SLOT, folder)
    assert refusal.value.hint
    assert there == ({path.name for path in folder.iterdir()} if folder.is_dir() else set())
    return refusal.value


@as_root
def test_a_spool_that_another_user_made_is_not_used(spool: Path) -> None:
    os.chown(spool, STRANGER, STRANGER)
    refused(spool, "belongs to another user")


@as_root
@pytest.mark.parametrize("mode", [0o770, 0o2775])
def test_a_spool_of_root_that_a_group_may_write_to_is_used(
    spool: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes' fsGroup makes one for a pod of another user."""
    spool.chmod(mode)
    monkeypatch.setattr(os, "getuid", lambda: STRANGER)
    with lock_slot(SLOT, spool):
        assert (spool / "cpu0_host.lock").is_file()


@as_root
def test_a_spool_of_root_that_everybody_may_write_to_is_not_used(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.chmod(0o1777)
    monkeypatch.setattr(os, "getuid", lambda: STRANGER)
    refused(spool, "may write")


@pytest.mark.parametrize(("lock", "setting"), [
    (lambda folder: lock_slot(SLOT, folder), "LTXQ_SPOOL_DIR"),
    (lambda folder: Stack(folder, model="tiny"), "--data"),
])  # fmt: skip
def test_a_disk_without_file_locks_is_named(
    spool: Path, monkeypatch: pytest.MonkeyPatch, lock: Callable[[Path], object], setting: str
) -> None:
    """As NFS can be mounted."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(ConfigurationError, match=f"{spool} is on a disk without file") as refusal:
        lock(spool)
    assert setting in refusal.value.hint


def test_a_link_of_ours_to_a_folder_of_ours_is_followed(tmp_path: Path, spool: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(spool)
    with lock_slot(SLOT, link / "made" / "here"):
        assert (spool / "made" / "here" / "cpu0_host.lock").is_file()
    with lock_slot(SLOT, link) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is ours
        assert (spool / "cpu0_host.lock").stat().st_mode & 0o077 == 0


@as_root
@pytest.mark.parametrize("inside", ["", "spool"])
def test_a_link_of_another_user_is_not_followed(tmp_path: Path, spool: Path, inside: str) -> None:
    (spool / "spool").mkdir()
    link = tmp_path / "link"
    link.symlink_to(spool)
    os.lchown(link, STRANGER, STRANGER)
    error = refused(link / inside, "is a symbolic link of another user")
    assert str(link) in error.message


@as_root
def test_a_link_of_ours_to_another_users_folder_is_not_followed(
    tmp_path: Path, spool: Path
) -> None:
    os.chown(spool, STRANGER, STRANGER)
    link = tmp_path / "link"
    link.symlink_to(spool)
    refused(link, "belongs to another user")


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
@pytest.mark.parametrize("by_link", [False, True])
def test_a_folder_that_everybody_may_write_to_is_not_used(
    tmp_path: Path, spool: Path, mode: int, by_link: bool
) -> None:
    spool.chmod(mode)
    link = tmp_path / "link"
    link.symlink_to(spool)
    error = refused(link if by_link else spool, "may write")
    assert f"chmod o-w {link if by_link else spool}" in error.hint


def test_a_lock_is_not_opened_through_a_link(tmp_path: Path, spool: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (spool / "cpu0_host.lock").symlink_to(precious)
    refused(spool, r"cpu0_host\.lock")
    assert precious.read_text() == "kept"


def test_what_is_no_folder_is_told(tmp_path: Path, spool: Path) -> None:
    (spool / "file").write_text("")
    (spool / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "dangling"):
        refused(spool / name, f"{name} cannot be used")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a@b", "a\n", "\udcff", "ü", "x" * 101])
def test_a_name_that_is_no_hosts_is_told(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a host's name"):
        find_slots("cpu", name)
    assert find_slots("cpu", "gpu-7.example_1")[0].name == "cpu0@gpu-7.example_1"
