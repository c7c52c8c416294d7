"""The worker slots of this machine and the processes in them. No torch.

A process reports to its supervisor over a control channel (a socket), and gets its orders there.
When the channel breaks, the process ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from ltxq.errors import ConfigurationError
from ltxq.printable import one_line
from ltxq.settings import Settings
from ltxq_worker.gpus import read_gpus
from ltxq_worker.pipeline.fast.options import compiled_code_folder

log = logging.getLogger("ltxq.supervisor")

MESSAGE_MOST = 256 * 1024  # bytes of one message on the control channel
ORPHAN_SECONDS = 10.0  # for the workers of a supervisor that died to notice and end


@dataclass(frozen=True, kw_only=True)
class WorkerSlot:
    """Where one worker runs. Its name stays the same: the ledger notes jobs under it."""

    name: str  # "gpu0@host"
    device: Literal["cuda", "cpu"]
    gpu: str | None  # CUDA's index of the only GPU that the worker sees

    @property
    def file_name(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^A-Za-z0-9.-]", "_", self.name)


def find_slots(gpus: str, name: str) -> list[WorkerSlot]:
    """The slots that `--gpus` asks for.

    Args:
        gpus: 'all', CUDA indexes ('0,1'), or 'cpu' ('cpu,cpu' for two).
        name: of this machine.

    Raises:
        ConfigurationError: no such GPU, or none at all; or the name is none of a host.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name):  # it is in file names and in Celery's
        raise ConfigurationError(
            f"{one_line(name[:100])!r} is not a host's name.",
            hint="Choose one with --name: 1 to 100 of A-Z a-z 0-9 . _ -",
        )
    wanted = [part.strip() for part in gpus.split(",") if part.strip()]
    if wanted and all(part == "cpu" for part in wanted):
        return [
            WorkerSlot(name=f"cpu{i}@{name}", device="cpu", gpu=None) for i in range(len(wanted))
        ]
    present = [gpu.index for gpu in read_gpus()]
    if wanted == ["all"]:
        wanted = present
    if not wanted or not set(wanted) <= set(present):
        raise ConfigurationError(
            f"No such GPU here: {gpus!r}; nvidia-smi lists {', '.join(present) or 'none'}.",
            hint="Name GPUs of this list with --gpus, or use --gpus cpu (fast enough only for the "
            "tiny model and the instant test pipeline).",
        )
    return [WorkerSlot(name=f"gpu{gpu}@{name}", device="cuda", gpu=gpu) for gpu in wanted]


def spool_root(settings: Settings) -> Path:
    """The folder in which clips are written before they are uploaded.

    Raises:
        ConfigurationError: there is none.
    """
    if (chosen := settings.spool_folder) is not None:
        return chosen
    try:
        return Path(tempfile.gettempdir()) / f"ltxq-{os.getuid()}"
    except OSError:
        raise ConfigurationError(
            "There is no temporary folder that this user may write to.",
            hint="Set LTXQ_SPOOL_DIR to a folder for clips that wait for uploading.",
        ) from None


def lock_slot(slot: WorkerSlot, folder: Path) -> IO[str]:
    """Lock a slot for this supervisor and its workers, until the last of them has ended.

    Raises:
        ConfigurationError: another supervisor has the lock, or other users can replace the
            folder or a part of its path.
    """
    lock = _open_lock(folder, f"{slot.file_name}.lock")
    end = time.monotonic() + ORPHAN_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                lock.close()
                raise ConfigurationError(
                    f"A worker named {slot.name} runs on this machine already.",
                    hint="Stop it, choose other --gpus, or give this one another --name.",
                ) from None
            time.sleep(0.2)
        except OSError as exc:  # such as NFS mounted without locks
            lock.close()
            raise ConfigurationError(
                f"{folder} is on a disk without file locks: {exc.strerror}.",
                hint="Set LTXQ_SPOOL_DIR to a folder on a local disk.",
            ) from None
        else:
            return lock


def read_instance(lock: IO[str]) -> str:
    """The instance of the supervisor that had this slot before; it has ended, since it held the
    lock.
    """
    lock.seek(0)
    return lock.read(64).strip()


def note_instance(lock: IO[str], instance: str) -> None:
    """Note in the lock file which supervisor instance has this slot now."""
    lock.seek(0)
    lock.truncate()
    lock.write(instance)
    lock.flush()


def _open_lock(folder: Path, name: str) -> IO[str]:
    """Open the lock file in the folder; make the folder if it is missing.

    The folder is opened once and checked as opened, so nobody can replace it between the check and
    its use.
    """
    choose = "Set LTXQ_SPOOL_DIR to a folder of your own."
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_strangers_links(folder, choose)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _refuse_strangers_folder(folder, os.fstat(opened), choose)
            how = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            return os.fdopen(os.open(name, how, 0o600, dir_fd=opened), "r+")
        finally:
            os.close(opened)
    except OSError as exc:
        where = folder / name if exc.errno == errno.ELOOP else folder
        why = "it is a symbolic link" if exc.errno == errno.ELOOP else exc.strerror
        raise ConfigurationError(f"{where} cannot be used: {why}.", hint=choose) from None


def _refuse_strangers_links(folder: Path, hint: str) -> None:
    """In a shared temp folder another user may have put a link where our folder should be."""
    path = folder.absolute()
    for part in (path, *path.parents):
        about = part.lstat()
        if stat.S_ISLNK(about.st_mode) and about.st_uid not in (0, os.getuid()):
            raise ConfigurationError(
                f"{part} is a symbolic link of another user, who can lead it elsewhere.", hint=hint
            )


def _refuse_strangers_folder(folder: Path, about: os.stat_result, hint: str) -> None:
    if about.st_uid not in (0, os.getuid()):  # Kubernetes gives a pod's group root's folder
        raise ConfigurationError(f"{folder} belongs to another user.", hint=hint)
    if about.st_mode & stat.S_IWOTH:
        raise ConfigurationError(
            f"Every user of this machine may write to {folder}.",
            hint=f"Forbid it with: chmod o-w {folder}. Or: {hint}",
        )


@dataclass(kw_only=True)
class WorkerProcess:
    """A running `ltxq_worker.process.main`."""

    slot: WorkerSlot
    process: subprocess.Popen[bytes]
    control_channel: socket.socket
    started: float = field(default_factory=time.monotonic)
    ready: bool = False
    stops: int = 0  # how many times it was asked to stop
    hung: bool = False  # killed for a job past its timeout
    loaded: tuple[object, int] = ("", 0)  # the part being loaded, per cent of the whole model
    failure: str | None = None  # the process's own reason why it cannot start
    failure_is_final: bool = False  # another try would fail too
    on_figures: Callable[[WorkerSlot, dict[str, Any]], None]

    @classmethod
    def start(
        cls,
        slot: WorkerSlot,
        model: str,
        spool: Path,
        lock: IO[str],
        on_figures: Callable[[WorkerSlot, dict[str, Any]], None],
    ) -> WorkerProcess:
        """Start the process in its own session, so that Ctrl-C reaches the supervisor alone.

        Args:
            on_figures: called with what the process measures, in a separate thread.
        """
        # A packet that is sent without waiting is sent whole or not at all.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [
            # -P: modules in the working directory are not ltxq's.
            *(sys.executable, "-P", "-m", "ltxq_worker.process.main"),
            *("--model", model, "--name", slot.name, "--device", slot.device),
            # Absolute: the name of a relative folder may begin with a hyphen.
            *("--spool", str(spool.absolute()), "--control-channel", str(theirs.fileno())),
        ]
        environment = dict(os.environ)
        environment["CUDA_VISIBLE_DEVICES"] = slot.gpu or ""
        if compiled_code_folder() is None:
            environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(spool.parent / "compiled"))
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # nvidia-smi's order, which --gpus means
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), lock.fileno()),  # the process holds the lock too
            start_new_session=True,
        )
        theirs.close()
        worker = cls(slot=slot, process=process, control_channel=ours, on_figures=on_figures)
        threading.Thread(target=worker._listen, name=f"control-{slot.name}", daemon=True).start()
        return worker

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def ask_to_stop(self) -> None:
        """Ask it to stop. The first time running jobs finish, the second time it returns them."""
        self.stops += 1
        order = {"stop": "drain" if self.stops == 1 else "give_back"}
        with suppress(OSError):  # it has just ended
            self.control_channel.send(json.dumps(order).encode(), socket.MSG_DONTWAIT)

    def kill(self) -> None:
        """Kill it at once."""
        self.process.kill()
        self.process.wait()

    def describe_end(self) -> str:
        """'exit 1', 'killed by SIGKILL'."""
        code = self.process.returncode
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"

    def _listen(self) -> None:
        with self.control_channel:
            while message := self.control_channel.recv(MESSAGE_MOST):
                self._receive(json.loads(message))

    def _receive(self, message: dict[str, object]) -> None:
        name = self.slot.name
        if message.get("ready"):
            self.ready = True
            log.info("%s is ready after %.0f s", name, time.monotonic() - self.started)
        elif "loading" in message:
            percent = int(10 * float(str(message["fraction"]))) * 10
            if (message["loading"], percent) != self.loaded:  # a message comes with each tensor
                log.info("%s loads the %s (%d %%)", name, message["loading"], percent)
            self.loaded = message["loading"], percent
        elif isinstance(figures := message.get("figures"), dict):
            self.on_figures(self.slot, figures)
        elif "failed" in message:
            self.failure = str(message["failed"])
            self.failure_is_final = not message["retryable"]
            log.error("%s cannot start: %s", name, self.failure)
