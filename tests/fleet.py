"""A real worker for the tests: `ltxq worker` in processes of its own, watched by its log."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
import urllib3

from ltxq import Client
from ltxq.job import Job
from ltxq_worker.embedded.servers import S3Server

PATIENCE = 120.0  # seconds any one thing may take on a busy machine
SLOW = {"LTXQ_INSTANT_SECONDS": "60", "LTXQ_LEASE": "5"}
SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_frames": 9}


class Fleet:
    """A running `ltxq worker`: supervisor and worker processes."""

    def __init__(
        self, environment: Mapping[str, str], *, model: str = "instant", gpus: str = "cpu",
        name: str = "host", inside: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`inside`: a command that runs the supervisor, as `unshare …` does."""
        self.log = ""
        self._news = threading.Condition()
        self.supervisor = subprocess.Popen(
            [*inside, sys.executable, "-m", "ltxq", "worker", "--model", model, "--gpus", gpus,
             "--name", name],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        workers = self.workers()
        for worker in workers:  # a test that failed may have stopped one
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.resume()
        if self.supervisor.poll() is None:
            self.supervisor.send_signal(signal.SIGCONT)
            for seconds in (1, PATIENCE):  # the second SIGTERM gives running jobs back
                self.supervisor.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.supervisor.wait(seconds)
                    break
            else:
                self.supervisor.kill()
        _, alive = psutil.wait_procs(workers, PATIENCE)
        for process in alive:
            process.kill()
        self._reader.join(PATIENCE)
        if self.supervisor.stdout:
            self.supervisor.stdout.close()
        self.supervisor.wait(PATIENCE)
        if any(exc):
            print(self.log)  # noqa: T201  what pytest shows of a failure

    def workers(self) -> list[psutil.Process]:
        """The worker processes that live now."""
        try:
            children = psutil.Process(self.supervisor.pid).children()
        except psutil.NoSuchProcess:
            return []
        return [p for p in children if p.status() != psutil.STATUS_ZOMBIE]

    def worker(self, name: str) -> psutil.Process:
        """The process of the worker of that name, as the ledger knows it."""
        return next(worker for worker in self.workers() if name_of(worker) == name)

    def wait_for(self, pattern: str, *, times: int = 1) -> re.Match[str]:
        """Until the log has `pattern` that often; the last match."""

        def found() -> bool:
            return len(list(re.finditer(pattern, self.log))) >= times

        with self._news:
            if not self._news.wait_for(found, PATIENCE):
                raise AssertionError(f"no {pattern!r} in the log:\n{self.log}")
        return list(re.finditer(pattern, self.log))[-1]

    def wait_until_ready(self, *, times: int = 1) -> Self:
        """Until a worker process has been ready that often."""
        self.wait_for(r"is ready", times=times)
        return self

    def stop(self) -> int:
        """SIGTERM and the exit code."""
        self.supervisor.terminate()
        return self.supervisor.wait(PATIENCE)

    def _read(self) -> None:
        assert self.supervisor.stdout is not None
        for line in self.supervisor.stdout:
            with self._news:
                self.log += line
                self._news.notify_all()


def has_ended(process: psutil.Process) -> bool:
    """Whether an orphaned process has ended; its new parent may not have noticed yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def name_of(worker: psutil.Process) -> str:
    """A worker's name in the ledger, from its command line; '' when it has just gone."""
    try:
        words = worker.cmdline()
    except psutil.NoSuchProcess:
        return ""
    return words[words.index("--name") + 1] if "--name" in words else ""


def eventually(check: Callable[[], object], *, within: float = PATIENCE) -> None:
    """Until `check()` is true; for what nobody tells of."""
    end = time.monotonic() + within
    while not check():
        if time.monotonic() > end:
            raise AssertionError(f"not within {within:g} s")
        threading.Event().wait(0.02)


def worker_environment(url: str, s3: S3Server, spool: Path) -> dict[str, str]:
    """Settings of a worker on these servers, with a spool of its own."""
    return {
        "LTXQ_URL": url,
        "LTXQ_SPOOL_DIR": str(spool),
        "LTXQ_DEFAULT_MODEL": "instant",
        "LTXQ_S3_ENDPOINT": s3.endpoint,
        "LTXQ_S3_BUCKET": s3.bucket,
        **s3.credentials,
    }


def fetch(url: str) -> bytes:
    """What is at a URL."""
    answer = urllib3.request("GET", url, timeout=PATIENCE)
    assert answer.status == 200, answer.data
    return answer.data


def wait_until_running(client: Client, job: Job) -> Job:
    """Until the job denoises."""
    for now in client.watch(job.id, timeout=PATIENCE):
        if now.progress is not None and now.progress.stage == "denoise":
            return now
        assert not now.finished
    raise AssertionError
