"""Between the thread that decodes and the one that encodes: frames one way, progress back.

Bounded by bytes. Knows nothing of what the frames are for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

REPORT_EVERY = 0.5  # seconds: how soon a cancel is noticed while no frame is finished

Frames = NDArray[np.uint8]  # [n, H, W, 3]


class Abandoned(Exception):
    """The caller has given up: the encoder's thread ends."""


class Handover:
    """The chunks that wait, and how far both sides are."""

    def __init__(self, max_waiting: int) -> None:
        """`max_waiting`: bytes of frames not yet encoded before `put` waits."""
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._chunks: deque[Frames] = deque()
        self._waiting = 0  # bytes, with the chunk being encoded
        self._coded = 0  # frames
        self._ended = False  # no more chunks
        self._abandoned = False
        self._finished = False
        self._error: BaseException | None = None

    # The decoding thread's side.

    def put(self, chunk: Frames) -> None:
        """Hand over `chunk`, waiting while too much waits. Raises what the encoder failed with."""
        with self._changed:
            # One chunk alone may be larger than the bound: it is in memory already.
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
        """That was the last chunk."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Have the encoder stop at its next frame."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    def progress(self) -> Iterator[int]:
        """Frames coded so far: at once, when there are more, and every half second, to the end."""
        told = -1
        finished = False
        while not finished:
            with self._changed:
                if told >= 0:
                    self._changed.wait_for(
                        lambda: self._finished or self._coded != told,  # noqa: B023
                        timeout=REPORT_EVERY,
                    )
                self._raise_error()
                told, finished = self._coded, self._finished
            yield told

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # The encoding thread's side.

    def chunks(self) -> Iterator[Frames]:
        """The chunks as they come; a chunk counts as waiting until the next is asked for."""
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
        """`frames` are coded so far. Raises `Abandoned` if the caller has given up."""
        with self._changed:
            self._raise_abandoned()
            if frames != self._coded:
                self._coded = frames
                self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """The files are complete, or `error` ended it."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def _raise_abandoned(self) -> None:
        if self._abandoned:
            raise Abandoned
