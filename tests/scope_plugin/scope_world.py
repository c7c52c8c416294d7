"""Everything around the plugin, under a test's control: a queue in memory with a worker, a clip
server that can fail, and a session of Scope's.
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
    """Poll until `check()` is true, for conditions that no event reports."""
    deadline = time.monotonic() + within
    while not check():
        assert time.monotonic() < deadline, f"not true within {within:g} s"
        time.sleep(0.01)


@dataclass
class Fault:
    """How the clip server fails."""

    status: int = 200
    cut: int | None = None  # send only so many bytes
    hangs: bool = False


class ClipServer:
    """Serves clips over HTTP, as a bucket's presigned URLs do."""

    def __init__(self) -> None:
        self.clips: dict[str, bytes] = {}
        self.fault = Fault()
        self.requested: list[str] = []  # paths
        self.released = threading.Event()  # ends `hangs`
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        self.requested.append(request.path)
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
    """Queue, worker and clip server. `automatic`: the worker finishes every job at once."""

    def __init__(self, *, automatic: bool = True) -> None:
        self.queue = MemoryTransport()
        self.clips = ClipServer()
        self.automatic = automatic
        self.silent = False  # the worker makes clips without sound
        self.calls = 0  # of the queue
        self.unreachable = threading.Event()  # the queue
        self._made: dict[str, bytes] = {}
        self._closed = threading.Event()
        self._worker = threading.Thread(target=self._work)
        self._worker.start()

    def client(self) -> Client:
        return Client(transport=_Transport(self))

    def jobs(self, state: Any = None) -> list[Job]:
        """All jobs, the oldest first."""
        return list(self.queue.list(limit=100, order="asc", state=state).jobs)

    def job(self, number: int) -> Job:
        """Wait for job `number` (0: the oldest) and return it."""
        eventually(lambda: len(self.jobs()) > number)
        return self.jobs()[number]

    def finish(self, job: Job, data: bytes | None = None) -> None:
        """Do the worker's part: generate the clip, upload it, finish the job."""
        key = job.request.model_dump_json()
        if data is None:
            request = job.request.model_copy(update={"audio": not self.silent})
            data = self._made.get(key) or self._made.setdefault(key, make_clip(request))
        path = f"/{job.id}/1/clip.mp4"
        self.clips.clips[path] = data
        facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.queue.succeed(job.id, url=self.clips.url + path, **facts)

    def tag(self, prompt: str, seed: int | None = 42) -> int:
        """The tag in the frames of that prompt's clip."""
        return request_tag(VideoRequest(prompt=prompt, seed=seed))

    def close(self) -> None:
        self._closed.set()
        self._worker.join()
        self.clips.close()

    def _work(self) -> None:
        while not self._closed.wait(0.005):
            if self.automatic and not self.unreachable.is_set():
                for job in self.jobs("queued"):
                    with contextlib.suppress(ValueError):  # it has been cancelled
                        self.finish(job)


class _Transport:
    """The queue's transport; it fails while the queue is unreachable."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        self._world.calls += 1
        if self._world.unreachable.is_set() and name != "close":
            raise QueueUnavailable("The queue cannot be reached.")
        return getattr(self._world.queue, name)


class _StallingPipeline:
    """The pipeline. Calls `stall` once, if it is set, right after Scope's queues were filled."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._had_output = False  # at the last call
        self.stall: Callable[[], None] | None = None

    def __call__(self, **parameters: Any) -> Any:
        if self.stall is not None and self._had_output:
            self.stall()
            self.stall = None
        output = self._pipeline(**parameters)
        self._had_output = bool(output)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


class Session:
    """One stream in Scope: a pipeline processor with its thread, and a viewer."""

    def __init__(self, pipeline: Any, **parameters: Any) -> None:
        sent = {"prompts": FOX, "input_mode": "text", **parameters}
        self._pipeline = _StallingPipeline(pipeline)
        self.processor = PipelineProcessor(self._pipeline, "ltx2-queue", initial_parameters=sent)
        self.viewer = Viewer(self.processor)

    def send(self, **parameters: Any) -> None:
        """Change parameters, as a client does."""
        if "paused" in parameters:
            self.viewer.pause(parameters["paused"])
        self.processor.update_parameters(parameters)

    def stall(self, seconds: float) -> None:
        """Stop Scope's process for so long: no call, no picture, no sound."""
        done = threading.Event()

        def stall() -> None:
            self.viewer.stall()
            time.sleep(seconds)
            self.viewer.resume()
            done.set()

        self._pipeline.stall = stall
        assert done.wait(60)

    def __enter__(self) -> Self:
        self.viewer.__enter__()
        self.processor.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.processor.stop()
        self.viewer.__exit__()
        del self._pipeline
        self.processor.pipeline = None
        gc.collect()

    @property
    def tags(self) -> list[int]:
        """The tags of the shown clips in order; a clip that was shown twice occurs twice."""
        tags = []
        last = None
        for shown in self.viewer.shown:
            mark = shown.mark
            assert mark is not None
            if last is None or mark.tag != last.tag or mark.index < last.index:
                tags.append(mark.tag)
            last = mark
        return tags


def plugin_threads() -> list[threading.Thread]:
    """The plugin's running threads."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("ltxq-")]
