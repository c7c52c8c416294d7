"""The gate: a worker takes a message only when its GPU and a thread are free, so that no job
waits behind a busy GPU while another GPU idles. A Celery bootstep of a few lines installs it.
"""

from __future__ import annotations

import os
import threading
import time
from types import MethodType
from typing import Any

from celery import bootsteps


class Gate:
    """A book of the messages in hand, keyed by delivery: one job may be delivered twice."""

    def __init__(self, threads: int) -> None:
        """`threads`: messages in hand at the most: one on the GPU, the rest uploading."""
        self._threads = threads
        self._on_gpu: dict[str, bool] = {}
        self._busy = 0.0  # seconds the GPU was somebody's, up to the last release
        self._taken_at: float | None = None  # since when it is, on the monotonic clock
        self._closed = False
        self._paused_until = 0.0
        self._lock = threading.Lock()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def is_open(self) -> bool:
        """Whether another message may be taken."""
        with self._lock:
            return (
                not self._closed
                and time.monotonic() >= self._paused_until
                and len(self._on_gpu) < self._threads
                and not any(self._on_gpu.values())
            )

    @property
    def is_full(self) -> bool:
        """Whether no message is taken, though the GPU is free, until one in hand is done with."""
        with self._lock:
            return len(self._on_gpu) >= self._threads and not any(self._on_gpu.values())

    def __contains__(self, delivery: str) -> bool:
        """Whether the message was let in."""
        with self._lock:
            return delivery in self._on_gpu

    def take(self, delivery: str) -> None:
        """A message has come: it has the GPU now."""
        with self._lock:
            self._on_gpu[delivery] = True
            self._note_gpu()

    def release_gpu(self, delivery: str) -> None:
        """The message's job no longer needs the GPU."""
        with self._lock:
            if delivery in self._on_gpu:
                self._on_gpu[delivery] = False
                self._note_gpu()
        self._wake()

    def release(self, delivery: str) -> None:
        """The message is done with."""
        with self._lock:
            self._on_gpu.pop(delivery, None)
            self._note_gpu()
        self._wake()

    def standing(self) -> tuple[float, int, int]:
        """Seconds the GPU was somebody's since the start; messages that have it; those that do not
        need it any more.
        """
        with self._lock:
            held = 0.0 if self._taken_at is None else time.monotonic() - self._taken_at
            on_gpu = sum(self._on_gpu.values())
            return self._busy + held, on_gpu, len(self._on_gpu) - on_gpu

    def pause(self, seconds: float) -> None:
        """Take no more messages for a while."""
        with self._lock:
            self._paused_until = time.monotonic() + seconds
        wake = threading.Timer(seconds, self._wake)
        wake.daemon = True
        wake.start()

    def close(self) -> None:
        """Take no more messages, for good. Without the lock: a signal's handler calls this, and may
        have interrupted a look at the book.
        """
        self._closed = True

    def install(self, consumer: Any) -> None:
        """Make a Celery consumer ask this gate before it takes a message."""
        qos = consumer.task_consumer.channel.qos
        without_gate = qos.can_consume
        qos.can_consume = MethodType(lambda _qos: self.is_open and without_gate(), qos)
        # The event loop sleeps up to a second; a byte in a pipe wakes it the moment we open.
        consumer.hub.add_reader(self._wake_reader, self._drain)

    def _note_gpu(self) -> None:
        """The book has changed: does the GPU's clock run?"""
        if any(self._on_gpu.values()):
            self._taken_at = self._taken_at or time.monotonic()
        elif self._taken_at is not None:
            self._busy += time.monotonic() - self._taken_at
            self._taken_at = None

    def _wake(self) -> None:
        try:
            os.write(self._wake_writer, b".")
        except BlockingIOError:
            return  # full of wake-ups already

    def _drain(self) -> None:
        try:
            os.read(self._wake_reader, 4096)
        except BlockingIOError:
            return


def gate_step(gate: Gate) -> type[bootsteps.StartStopStep]:
    """The bootstep that installs `gate`, again at every reconnection."""

    class GateStep(bootsteps.StartStopStep):
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, parent: Any) -> None:
            gate.install(parent)

    return GateStep
