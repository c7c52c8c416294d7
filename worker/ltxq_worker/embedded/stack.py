"""A whole queue on one machine: embedded Redis and S3 server, and a worker, on one data folder.

Ports and keys are chosen once and kept in the folder, so jobs, clips and their URLs outlive a
restart.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Self

from ltxq.cli.outputs import writable_folder
from ltxq.errors import ConfigurationError, LtxqError
from ltxq.settings import StorageSettings
from ltxq.stopping import StopRequests, stop_signals
from ltxq_worker.embedded.servers import (
    LOOPBACK,
    RedisServer,
    S3Server,
    free_port,
    port_is_free,
    spawn,
    stop,
)

SERVERS = "servers.json"  # ports and keys
SAME_TIME_SECONDS = 0.5  # between a child's end and the signal, if one request reached both
LOOK_SECONDS = 0.1  # between two checks whether the worker has ended
USUAL_PORTS = {"redis_port": 6379, "s3_port": 9000, "http_port": 8080, "flower_port": 5555}
# The columns of Flower's table of tasks.
FLOWER_COLUMNS = "uuid,args,state,result,received,runtime,worker"

# The variables that decide which queue and bucket are used. A stack ignores the environment's.
_OURS = (
    *("LTXQ_URL", "LTXQ_DEFAULT_MODEL", "LTXQ_SPOOL_DIR", "LTXQ_API_KEY", "LTXQ_API_KEYS"),
    *("LTXQ_REDIS_CA", "LTXQ_REDIS_REPLICAS"),
    *(f"LTXQ_{name}".upper() for name in StorageSettings.model_fields),
    *("AWS_CREDENTIAL_EXPIRATION", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"),
)


class Stack:
    """Running servers and, once started, a worker. Leaving the context ends them in order.

    Args:
        folder: made if missing, readable by its owner only.
        model: for requests that name none.
        ports: `redis_port`, `s3_port`, `http_port`, `flower_port`; 0: any free one. A port that is
            not given is that of the last time, the usual one, or any free one.
        gateway: there will be one, so clips come from it.

    Raises:
        ConfigurationError: another stack has the folder, or a server does not start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: str,
        ports: dict[str, int] | None = None,
        gateway: bool = False,
    ) -> None:
        writable_folder(folder, "--data", make=True)
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with ExitStack() as parts:
            parts.enter_context(_lock(self.folder))
            kept = _kept(self.folder, ports or {})
            self.redis = parts.enter_context(
                RedisServer.start(
                    self.folder / "redis",
                    port=kept["redis_port"] or None,
                    password=kept["redis_password"],
                )
            )
            self.s3 = parts.enter_context(
                S3Server.start(
                    self.folder / "s3",
                    port=kept["s3_port"] or None,
                    access_key=kept["access_key"],
                    secret_key=kept["secret_key"],
                )
            )
            kept["redis_port"], kept["s3_port"] = self.redis.port, self.s3.port
            kept["http_port"] = kept["http_port"] or free_port()
            kept["flower_port"] = kept["flower_port"] or free_port()
            _write_private(self.folder / SERVERS, json.dumps(kept, indent=2) + "\n")
            self._parts = parts.pop_all()
        self._kept = kept
        self.requests = StopRequests()
        self._at_once = False  # the worker gives its jobs back
        # By names for people.
        self.processes = {"Redis": self.redis.process, "The S3 server": self.s3.process}
        self.environment = {
            "LTXQ_URL": self.redis.url,
            "LTXQ_S3_ENDPOINT": self.s3.endpoint,
            "LTXQ_S3_BUCKET": self.s3.bucket,
            "LTXQ_DEFAULT_MODEL": model,
            **self.s3.credentials,
        }
        self._url = f"http://{LOOPBACK}:{kept['http_port']}"
        if gateway:
            # Browsers seek by ranges, and rclone's S3 server answers those with a wrong status.
            self.environment |= {"LTXQ_CONTENT": "proxy", "LTXQ_PUBLIC_URL": self._url}

    def use_here(self) -> None:
        """Make this process and its children use this stack, by environment variables."""
        for name in _OURS:
            os.environ.pop(name, None)
        os.environ.update(self.environment)

    def write_environment(self) -> Path:
        """Write `env.sh`, which points a shell at this stack; returns its path."""
        path = self.folder / "env.sh"
        lines = [f"unset {' '.join(_OURS)}"]
        lines += [f"export {name}={shlex.quote(text)}" for name, text in self.environment.items()]
        _write_private(path, "\n".join(lines) + "\n")
        return path

    def start_worker(self, *, model: str, gpus: str, log: Path | None = None) -> None:
        """Start `ltxq worker`. It loads its model while jobs are already accepted.

        Args:
            log: the file for its log; None: standard error.
        """
        # Its own folder and name, since another stack's worker may run on this machine.
        spool = {"LTXQ_SPOOL_DIR": str(self.folder / "spool")}
        command = ["ltxq", "worker", "--model", model, "--gpus", gpus, "--name", "local"]
        worker = self._start("The worker", [*command, "--managed"], log, spool)
        self._parts.callback(self._stop_worker, worker)

    def start_gateway(self, log: Path | None = None) -> str:
        """Start `ltxq gateway`; returns its address once it answers.

        Raises:
            LtxqError: a process of the stack has ended, perhaps the gateway.
        """
        port = self._kept["http_port"]
        command = ["ltxq", "gateway", "--port", str(port)]
        # The worker listens there, with the fleet's figures too.
        environment = {"LTXQ_METRICS_ADDRESS": None}
        self._parts.callback(stop, self._start("The gateway", command, log, environment))
        while port_is_free(port):
            self.check()
            time.sleep(LOOK_SECONDS)
        return self._url

    def start_flower(self, log: Path | None = None) -> str:
        """Start Flower; returns its address, with the user and password that it asks for."""
        port, login = self._kept["flower_port"], f"flower:{self._kept['flower_password']}"
        # Through the environment, so that no process list shows the password.
        options = {
            "FLOWER_ADDRESS": LOOPBACK,
            "FLOWER_PORT": str(port),
            "FLOWER_TASKS_COLUMNS": FLOWER_COLUMNS,
            "FLOWER_BASIC_AUTH": login,
        }
        # At other levels it warns of workers that do not answer while they load.
        command = ["celery", "-A", "ltxq.celery:app", "flower", "--logging=error"]
        self._parts.callback(stop, self._start("Flower", command, log, options))
        return f"http://{login}@{LOOPBACK}:{port}"

    def _start(
        self,
        name: str,
        command: list[str],
        log: Path | None,
        environment: Mapping[str, str | None] = MappingProxyType({}),
    ) -> subprocess.Popen[bytes]:
        self.use_here()
        process = spawn([sys.executable, "-P", "-m", *command], log, environment=environment)
        self.processes[name] = process
        return process

    def check(self) -> None:
        """Raise LtxqError if a process of the stack has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise LtxqError(f"{name} has ended by itself (exit code {process.returncode}).")

    def wait_for_stop(self) -> None:
        """Wait for a signal that asks to stop, which the caller holds. Raises LtxqError if a
        process of the stack ends before.
        """
        signals = stop_signals()
        while (number := signal.sigwait(signals | {signal.SIGCHLD})) == signal.SIGCHLD:
            # Whoever signals all processes may have signalled the child first.
            if early := signal.sigtimedwait(signals, SAME_TIME_SECONDS):
                number = early.si_signo
                break
            self.check()
        self.requests.note(number)

    def close(self) -> None:
        """Stop everything, in reverse order of starting."""
        self._parts.close()

    def _stop_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """Let the worker finish its jobs, and wait. At a further request to stop meanwhile, as a
        second Ctrl-C, it gives them back.
        """
        worker.send_signal(signal.SIGUSR1 if self._at_once else signal.SIGTERM)
        with held_signals():
            while worker.poll() is None:
                self._restart_servers()
                if got := signal.sigtimedwait(stop_signals(), LOOK_SECONDS):
                    self.requests.note(got.si_signo)
                if self.requests.count > 1:
                    worker.send_signal(signal.SIGUSR1)

    def _restart_servers(self) -> None:
        """Start servers again that were signalled together with this process: the worker still
        needs them.
        """
        for server in (self.redis, self.s3):
            if server.process.poll() is not None:
                server.start_again()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._at_once = error is not None
        self.close()


@contextmanager
def held_signals() -> Iterator[None]:
    """Block the signals that ask to stop, and SIGCHLD, to be waited for. Those that nobody waited
    for are dropped at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals() | {signal.SIGCHLD})
    try:
        yield
    finally:
        while signal.sigtimedwait(stop_signals(), 0):
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _lock(folder: Path) -> IO[str]:
    """Hold the folder until the file returned is closed."""
    lock = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigurationError(
            f"Another ltxq runs on {folder}.", hint="Stop that one, or use another folder: --data."
        ) from None
    except OSError as exc:  # such as NFS mounted without locks
        lock.close()
        raise ConfigurationError(
            f"{folder} is on a disk without file locks: {exc.strerror}.",
            hint="Name a folder on a local disk with --data; for `ltxq demo`, with TMPDIR.",
        ) from None
    return lock


def _kept(folder: Path, ports: dict[str, int]) -> dict[str, Any]:
    """The ports and keys of this folder: those of the last time, or new ones."""
    path = folder / SERVERS
    try:
        kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        raise ConfigurationError(
            f"{path} is damaged.", hint="Delete it; new ports and keys are drawn then."
        ) from None
    for name, usual in USUAL_PORTS.items():
        new = usual if port_is_free(usual) else free_port()
        kept[name] = ports[name] if name in ports else kept.get(name, new)
        _refuse_taken_port(name, kept)
    sizes = {"redis_password": 20, "access_key": 10, "secret_key": 20, "flower_password": 10}
    for name, size in sizes.items():
        kept.setdefault(name, secrets.token_hex(size))
    return kept


def _refuse_taken_port(name: str, kept: dict[str, Any]) -> None:
    """Before anything is started, and by the option's name."""
    port, option = kept[name], f"--{name.replace('_', '-')}"
    double = [other for other in USUAL_PORTS if other != name and kept.get(other) == port]
    if not port or (port_is_free(port) and not double):
        return
    who = f"--{double[0].replace('_', '-')}" if double else "another program on this machine"
    raise ConfigurationError(
        f"Port {port}, for {option}, is used by {who}.",
        hint=f"Choose another with {option}; 0 is any free one.",
    )


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)
