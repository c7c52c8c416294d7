"""A real gateway for the tests: `ltxq gateway` as a process, with plain HTTP requests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, Self

import httpx2

from fleet import PATIENCE

Answer = httpx2.Response


def has_ipv6() -> bool:
    """Whether this machine can listen on ::1."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


class Gateway:
    """A running `ltxq gateway` on a free port, at `url`."""

    def __init__(self, environment: Mapping[str, str], *options: str, port: int = 0) -> None:
        self.log = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ltxq", "gateway", "--port", str(port), "--json", *options],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._http = httpx2.Client(timeout=PATIENCE, trust_env=False)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        said = json.loads(line or "{}")
        if "url" not in said:
            self.__exit__()
            raise AssertionError(f"the gateway did not start: {said}\n{self.log}")
        self.url: str = said["url"]
        self.api = f"{self.url}/v1"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        if any(exc):
            print(self.log)  # noqa: T201  what pytest shows of a failure

    def ask(self, method: str, path: str, *, key: str | None = None, **what: Any) -> Answer:
        """Send a request; redirects are not followed."""
        headers = dict(what.pop("headers", {}))
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        return self._http.request(method, f"{self.url}{path}", headers=headers, **what)

    def stop(self) -> int:
        """Send SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
