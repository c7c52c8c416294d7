"""Load test of the gateway on one machine: `python bench/gateway.py`.

For one minute, a thousand clients poll a clip once a second, each on its own connection, and change
to a newer clip when it is finished. Twenty clips are submitted per second. Redis (append-only file
on), S3 server, gateway, a worker with the instant test pipeline and this load generator share two
cores. Prints a table, and writes it as JSON to bench/results/gateway.json.

Latency counts from when a request was due, not from when it was sent, so a stall counts for every
request that it delays.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules could hide installed ones

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from ltxq.gateway.access.keys import NewKey, new_key
from ltxq_worker.embedded.stack import Stack

PROMPT = ("a red fox walks through fresh snow at dawn, its breath in the cold air, " * 3)[:200]
SMALL = {"size": "64x64", "num_frames": 9, "model": "instant"}
KEYS = 20  # owners
FIRST = 5  # finished clips of each owner at the start
REQUEST_TIMEOUT = 10.0  # seconds
FINAL = {"completed", "failed", "cancelled"}
RESULTS = Path(__file__).parent / "results" / "gateway.json"


Request = tuple[str, str, dict[str, Any] | None]
_SUBMIT: Request = ("POST", "/v1/videos", {"prompt": PROMPT, **SMALL})


def main() -> None:
    options = _options()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])  # children too
    keys = [new_key(f"owner-{number}") for number in range(KEYS)]
    os.environ["LTXQ_API_KEYS"] = ",".join(key.entry for key in keys)
    ports = {"redis_port": 0, "s3_port": 0, "http_port": 0}
    with (
        tempfile.TemporaryDirectory() as name,
        Stack(Path(name, "a"), model="instant", ports=ports) as stack,
    ):
        url = stack.start_gateway(Path(name, "gateway.log"))
        stack.start_worker(model="instant", gpus="cpu", log=Path(name, "worker.log"))
        processes = {what: psutil.Process(one.pid) for what, one in stack.processes.items()}
        processes["the load itself"] = psutil.Process()
        load = Load(urlsplit(url).port or 80, keys, options.clients, options.submissions)
        asyncio.run(load.run(options.seconds, processes))
    report(load, options)


@dataclass
class Times:
    """Requests of one kind: their latencies in seconds, and the errors of failed ones."""

    taken: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def figures(self, what: str, seconds: float) -> dict[str, float]:
        cuts = statistics.quantiles(self.taken, n=100, method="inclusive")
        return {
            f"{what} per second": len(self.taken) / seconds,
            f"{what} p50 (ms)": 1000 * cuts[49],
            f"{what} p99 (ms)": 1000 * cuts[98],
            f"{what} max (ms)": 1000 * max(self.taken),
            f"{what} errors": len(self.errors),
        }


class Connection:
    """One kept-alive HTTP/1.1 connection. A client library with a thousand connections would use up
    the core that the gateway needs.
    """

    def __init__(self, port: int, key: NewKey) -> None:
        self._port = port
        self._head = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {key.key}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of a 2xx answer.

        Raises:
            OSError, ValueError, EOFError: any other outcome.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        content = b"" if body is None else json.dumps(body).encode()
        more = (
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if body else ""
        )
        writer.write(f"{method} {path} HTTP/1.1\r\n{self._head}{more}\r\n".encode() + content)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            )
            answer = await reader.readexactly(length)
        except BaseException:
            self.close()
            raise
        if not 200 <= status < 300:
            raise ValueError(f"{status} {answer[:200]!r}")
        return json.loads(answer)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Load:
    """The polling clients, and one submitter for each key, in turns."""

    def __init__(self, port: int, keys: list[NewKey], clients: int, submissions: float) -> None:
        self.polls, self.submissions = Times(), Times()
        self.cpu: dict[str, float] = {}  # cores, by process
        self.seconds = 0.0
        self._port, self._keys, self._clients, self._rate = port, keys, clients, submissions
        self._first: list[list[str]] = [[] for _ in keys]  # ids of clips, by owner
        self._fresh: list[deque[str]] = [deque(maxlen=clients) for _ in keys]

    async def run(self, seconds: float, processes: dict[str, psutil.Process]) -> None:
        await self._until_ready()
        await asyncio.gather(*(self._begin(owner) for owner in range(len(self._keys))))
        before, began = _cpu(processes), time.monotonic()
        start = time.monotonic() + 1
        async with asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(self._poll(number, start, start + seconds))
            for owner in range(len(self._keys)):
                group.create_task(self._submit(owner, start, start + seconds))
        self.seconds = seconds
        after, took = _cpu(processes), time.monotonic() - began
        self.cpu = {name: (spent - before[name]) / took for name, spent in after.items()}
        self.cpu["everything else"] = self.cpu.pop("the machine") - sum(self.cpu.values())

    async def _begin(self, owner: int) -> None:
        """Make a few finished clips of the owner, which clients poll until there are newer ones."""
        connection = Connection(self._port, self._keys[owner])
        for _ in range(FIRST):
            job_id = (await connection.ask(*_SUBMIT))["id"]
            while (await connection.ask("GET", f"/v1/videos/{job_id}", None))[
                "status"
            ] not in FINAL:
                await asyncio.sleep(0.5)
            self._first[owner].append(job_id)
        connection.close()

    async def _until_ready(self) -> None:
        probe = Connection(self._port, self._keys[0])
        while True:
            try:
                await probe.ask("GET", "/readyz")
                return
            except (OSError, EOFError, ValueError):
                await asyncio.sleep(0.2)

    async def _poll(self, number: int, start: float, end: float) -> None:
        """One client: polls a clip once a second, and changes to a newer one when it is final."""
        owner = number % len(self._keys)
        connection = Connection(self._port, self._keys[owner])
        job_id = self._first[owner][number // len(self._keys) % FIRST]
        due = start + random.random()
        while due < end:
            video = await self._timed(
                self.polls, due, connection, ("GET", f"/v1/videos/{job_id}", None)
            )
            if video and video["status"] in FINAL and self._fresh[owner]:
                job_id = self._fresh[owner].popleft()
            due += 1
        connection.close()

    async def _submit(self, owner: int, start: float, end: float) -> None:
        connection = Connection(self._port, self._keys[owner])
        pause = len(self._keys) / self._rate
        due = start + pause * owner / len(self._keys)
        while due < end:
            video = await self._timed(self.submissions, due, connection, _SUBMIT)
            if video:
                self._fresh[owner].append(video["id"])
            due += pause
        connection.close()

    async def _timed(
        self, times: Times, due: float, connection: Connection, request: Request
    ) -> dict[str, Any] | None:
        """The answer; records its latency or its error."""
        await asyncio.sleep(max(0, due - time.monotonic()))
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                answer: dict[str, Any] = await connection.ask(*request)
        except (OSError, EOFError, ValueError) as exc:  # TimeoutError is an OSError
            times.errors.append(f"{type(exc).__name__} {exc}")
            return None
        times.taken.append(time.monotonic() - due)
        return answer


def _cpu(processes: dict[str, psutil.Process]) -> dict[str, float]:
    """CPU seconds used by each process with its children, and by the machine."""
    spent = {}
    for name, process in processes.items():
        family = [process, *process.children(recursive=True)]
        if name == "the load itself":
            family = [process]
        spent[name] = sum(sum(one.cpu_times()[:2]) for one in family)
    whole = psutil.cpu_times()
    return {**spent, "the machine": sum(whole) - whole.idle - getattr(whole, "iowait", 0)}


def report(load: Load, options: argparse.Namespace) -> None:
    figures = {
        **load.polls.figures("polls", load.seconds),
        **load.submissions.figures("submissions", load.seconds),
        **{f"CPU of {name} (cores)": cores for name, cores in load.cpu.items()},
    }
    for name, value in figures.items():
        print(f"  {name:<40} {value:>12,.2f}")
    for error, count in Counter(load.polls.errors + load.submissions.errors).most_common(5):
        print(f"  {count} × {error}")
    machine = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": options.cores,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    asked = {"clients": options.clients, "seconds": options.seconds, "keys": KEYS}
    if options.out:
        whole = {"machine": machine, "asked for": asked, "measured": figures}
        options.out.write_text(json.dumps(whole, indent=2) + "\n")
        print(f"written to {options.out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--submissions", type=float, default=20.0, help="a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
