"""A world around the plugin whose every part a test can hold: a queue in memory, a server of clips
that can fail, a worker that works when told, and Scope's session.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import http.server
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from scope.server.pipeline_processor import PipelineProcessor

from clipmaker import make_clip
from ltxq import Client, VideoRequest
from ltxq.errors import QueueUnavailable
from ltxq.job import Job
from ltxq.testing import MemoryTransport
from ltxq_worker.pipeline.instant import request_tag
from viewer import Viewer

SMALL = {"width": 64, "height": 64, "num_frames": 9}
FOX, OWL = [{"text": "a fox", "weight": 1.0}], [{"text": "an owl", "weight": 1.0}]


def eventually(check: Callable[[], object], within: float = 60.0) -> None:
    """Until `check()` is true; for what nobody tells of."""
    end = time.monotonic() + within
    while not check():
        assert time.monotonic() < end, f"not within {within:g} s"
        time.sleep(0.01)


@dataclass
class Fault:
    """What is wrong with the server of clips."""

    status: int = 200
    cut: int | None = None  # bytes after which the answer ends
    hangs: bool = False


class ClipServer:
    """Serves clips over HTTP, as a bucket's presigned URLs do."""

    def __init__(self) -> None:
        self.clips: dict[str, bytes] = {}
        self.fault = Fault()
        self.asked: list[str] = []
        self.released = threading.Event()
        clips = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                clips.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        fault, data = self.fault, self.clips.get(request.path, b"")
        if fault.hangs:
            self.released.wait(30)
        request.send_response(fault.status if data else 404)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if fault.status == 200:
            request.wfile.write(data[: fault.cut])

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class World:
    """Queue, worker, clips. `automatic`: the worker makes every job at once."""

    def __init__(self, *, automatic: bool = True) -> None:
        self.queue = MemoryTransport()
        self.clips = ClipServer()
        self.automatic = automatic
        self.silent = False  # the worker makes clips without sound
        self.calls = 0  # of clients
        self.away = threading.Event()  # set: the queue cannot be reached
        self._made: dict[str, bytes] = {}
        self._closed = threading.Event()
        self._worker = threading.Thread(target=self._work)
        self._worker.start()

    def client(self) -> Client:
        return Client(transport=_Line(self))

    def jobs(self, state: Any = None) -> list[Job]:
        """All jobs, the oldest first."""
        return list(self.queue.list(limit=100, order="asc", state=state).jobs)

    def job(self, number: int) -> Job:
        """The job of that number, once it is there."""
        eventually(lambda: len(self.jobs()) > number)
        return self.jobs()[number]

    def finish(self, job: Job, data: bytes | None = None) -> None:
        """The worker's part: make the clip, upload it, settle the job."""
        key = job.request.model_dump_json()
        if data is None:
            request = job.request.model_copy(update={"audio": not self.silent})
            data = self._made.get(key) or self._made.setdefault(key, make_clip(request))
        path = f"/{job.id}/1/clip.mp4"
        self.clips.clips[path] = data
        facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.queue.succeed(job.id, url=self.clips.url + path, **facts)

    def tag(self, prompt: str, seed: int | None = 42) -> int:
        """What the frames of that prompt's clip say of themselves."""
        return request_tag(VideoRequest(prompt=prompt, seed=seed))

    def close(self) -> None:
        self._closed.set()
        self._worker.join()
        self.clips.close()

    def _work(self) -> None:
        while not self._closed.wait(0.005):
            if self.automatic and not self.away.is_set():
                for job in self.jobs("queued"):
                    with contextlib.suppress(ValueError):  # it was cancelled meanwhile
                        self.finish(job)


class _Line:
    """The way to the queue, which can be cut."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        self._world.calls += 1
        if self._world.away.is_set() and name != "close":
            raise QueueUnavailable("The queue cannot be reached.")
        return getattr(self._world.queue, name)


class _Called:
    """The pipeline. `stall`, if set, is done once, when Scope has just got all it can hold."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._gave = False  # at the last call
        self.stall: Callable[[], None] | None = None

    def __call__(self, **parameters: Any) -> Any:
        if self.stall is not None and self._gave:
            self.stall()
            self.stall = None
        output = self._pipeline(**parameters)
        self._gave = bool(output)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


class Session:
    """One stream in Scope: a processor's thread and a viewer."""

    def __init__(self, pipeline: Any, **parameters: Any) -> None:
        sent = {"prompts": FOX, "input_mode": "text", **parameters}
        self._called = _Called(pipeline)
        self.processor = PipelineProcessor(self._called, "ltx2-queue", initial_parameters=sent)
        self.viewer = Viewer(self.processor)

    def send(self, **parameters: Any) -> None:
        """A client changes parameters."""
        if "paused" in parameters:
            self.viewer.pause(parameters["paused"])
        self.processor.update_parameters(parameters)

    def stall(self, seconds: float) -> None:
        """Scope's process stands still for so long: no call, no picture, no sound."""
        over = threading.Event()

        def stall() -> None:
            self.viewer.stall()
            time.sleep(seconds)
            self.viewer.go_on()
            over.set()

        self._called.stall = stall
        assert over.wait(60)

    def __enter__(self) -> Self:
        self.viewer.__enter__()
        self.processor.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.processor.stop()
        self.viewer.__exit__()
        del self._called
        self.processor.pipeline = None
        gc.collect()

    @property
    def tags(self) -> list[int]:
        """The clips shown, by their frames' tags, each as often as it began."""
        began = []
        last = None
        for shown in self.viewer.shown:
            assert shown.mark is not None
            here = shown.mark.tag, shown.mark.index
            if last is None or here[0] != last[0] or here[1] < last[1]:
                began.append(here[0])
            last = here
        return began


def plugin_threads() -> list[threading.Thread]:
    """The plugin's own threads that live."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("ltxq-")]
