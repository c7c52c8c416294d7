"""The queue from the decoding thread to the encoding thread, and the encoder's progress back."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

REPORT_EVERY = 0.5  # seconds between reports without progress: how soon a cancel takes effect

Frames = NDArray[np.uint8]  # [n, H, W, 3], or yuv420p as in `ClipStream.frames`


class Abandoned(Exception):
    """The caller has given up; ends the encoder's thread."""


class Handover:
    """A queue of chunks, bounded in bytes, with the state of both threads."""

    def __init__(self, max_waiting: int) -> None:
        """`max_waiting`: bytes of unencoded frames above which `put` waits."""
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._chunks: deque[Frames] = deque()
        self._waiting = 0  # bytes, with the chunk being encoded
        self._coded = 0  # frames
        self._ended = False  # no more chunks
        self._abandoned = False
        self._finished = False
        self._error: BaseException | None = None

    # Called by the decoding thread.

    def put(self, chunk: Frames) -> None:
        """Queue `chunk`, waiting while the queue is full. Raises the encoder's error, if any."""
        with self._changed:
            # An empty queue accepts a chunk above the limit, which is in memory already.
            self._changed.wait_for(
                lambda: (
                    self._finished
                    or not self._waiting
                    or self._waiting + chunk.nbytes <= self._max_waiting
                )
            )
            self._raise_error()
            self._chunks.append(chunk)
            self._waiting += chunk.nbytes
            self._changed.notify_all()

    def end(self) -> None:
        """Mark the end: no more chunks follow."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Stop the encoder at its next frame."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    def progress(self) -> Iterator[int]:
        """The number of coded frames: at once, at each change, and every half second, until the
        encoder has finished. Raises the encoder's error, if any.
        """
        reported, finished = -1, False
        while not finished:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._finished or self._coded != reported,  # noqa: B023
                    timeout=REPORT_EVERY,
                )
                self._raise_error()
                reported, finished = self._coded, self._finished
            yield reported

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # Called by the encoding thread.

    def chunks(self) -> Iterator[Frames]:
        """The chunks in order. A chunk counts as waiting until the next one is requested."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._chunks or self._ended or self._abandoned)
                self._raise_abandoned()
                if not self._chunks:
                    return
                chunk = self._chunks.popleft()
            yield chunk
            with self._changed:
                self._waiting -= chunk.nbytes
                self._changed.notify_all()
            del chunk

    def coded(self, frames: int) -> None:
        """Set the number of coded frames. Raises `Abandoned` if the caller has given up."""
        with self._changed:
            self._raise_abandoned()
            if frames != self._coded:
                self._coded = frames
                self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """Mark the files as complete, or failed with `error`."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def _raise_abandoned(self) -> None:
        if self._abandoned:
            raise Abandoned
