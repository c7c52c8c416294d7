"""The loop of one session, as in Scope 0.2.4: merge one parameter update, call the pipeline, queue
its output, drop what the queues cannot hold.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any

import torch

from scope.core.pipelines import registry  # noqa: F401  as Scope's server does

from .media_packets import AudioPacket, MediaTimestamp, VideoPacket

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.01
ONE_SHOT = ("vace_ref_images", "images", "first_frame_image", "last_frame_image")


class PipelineProcessor:
    def __init__(
        self, pipeline: Any, pipeline_id: str, initial_parameters: dict[str, Any] | None = None
    ) -> None:
        self.pipeline = pipeline
        self.parameters = initial_parameters or {}
        self.parameters_queue: queue.Queue[dict[str, Any]] = queue.Queue(8)
        self.output_queues: dict[str, list[queue.Queue[VideoPacket]]] = {}
        self.audio_output_queue: queue.Queue[AudioPacket] = queue.Queue(10)
        self.is_prepared = False
        self.paused = False
        self.native_fps: float | None = None
        self._pending_cache_init = False
        self._stopped = threading.Event()
        self.worker_thread: threading.Thread | None = None

    def start(self) -> None:
        self.worker_thread = threading.Thread(target=self._loop, daemon=True)
        self.worker_thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self.worker_thread is not None:
            self.worker_thread.join(5)
        for waiting in (*self.output_queues.get("video", ()), self.audio_output_queue):
            _empty(waiting)

    def update_parameters(self, parameters: dict[str, Any]) -> None:
        self.parameters_queue.put_nowait(parameters)

    def _loop(self) -> None:
        while not self._stopped.is_set():
            try:
                self._chunk()
            except Exception:  # Scope calls again at once
                log.exception("the pipeline failed")

    def _chunk(self) -> None:
        self._merge_one_update()
        self.paused = self.parameters.pop("paused", self.paused)
        if self.paused:
            self._stopped.wait(IDLE_SECONDS)
            return
        reset = self.parameters.pop("reset_cache", None)
        if reset:
            for waiting in self.output_queues.get("video", ()):
                _empty(waiting)
            self._pending_cache_init = True
        call = dict(self.parameters)
        for name in ONE_SHOT:
            self.parameters.pop(name, None)
        call["init_cache"] = bool(not self.is_prepared or self._pending_cache_init or reset)
        output = self.pipeline(**call)
        if not output:
            self._stopped.wait(IDLE_SECONDS)
            return
        self._queue_sound(output)
        if output.get("video") is not None:
            if "transition" in call:
                self.parameters.pop("transition", None)
            self._queue_pictures(output)
            self.native_fps = float(output["frame_rate"])
        self.is_prepared, self._pending_cache_init = True, False

    def _merge_one_update(self) -> None:
        try:
            new = self.parameters_queue.get_nowait()
        except queue.Empty:
            return
        if new == self.parameters:
            return
        if "prompts" in new and "transition" not in new:
            self.parameters.pop("transition", None)
        self.parameters = {**self.parameters, **new}

    def _queue_sound(self, output: dict[str, Any]) -> None:
        if output.get("audio") is None or output.get("audio_sample_rate") is None:
            return
        stamps = output.get("audio_timestamps") or [None]
        stamp = stamps[0] if isinstance(stamps[0], MediaTimestamp) else MediaTimestamp()
        try:
            self.audio_output_queue.put_nowait(
                AudioPacket(output["audio"].detach().cpu(), output["audio_sample_rate"], stamp)
            )
        except queue.Full:
            log.warning("audio queue full")

    def _queue_pictures(self, output: dict[str, Any]) -> None:
        video = output["video"]
        if not isinstance(video, torch.Tensor):
            return
        if video.dtype != torch.uint8:
            video = (video * 255).clamp(0, 255).to(torch.uint8)
        stamps = output.get("video_timestamps") or [MediaTimestamp()] * len(video)
        for picture, stamp in zip(video, stamps, strict=True):
            for waiting in self.output_queues.get("video", ()):
                try:
                    waiting.put_nowait(VideoPacket(picture.unsqueeze(0), stamp))
                except queue.Full:
                    log.debug("video queue full")


def _empty(waiting: queue.Queue[Any]) -> None:
    while True:
        try:
            waiting.get_nowait()
        except queue.Empty:
            return
