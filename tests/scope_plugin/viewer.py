"""A viewer of one stream: takes pictures and sound from a processor's queues, and computes when
Scope would have shown and played them.

Pictures are shown by their time stamps (`pacing.py`). Sound is played in frames of 20 ms one after
the other, whatever its time stamps; where it is missing, and while Scope is paused, silence is
played. Both are computed from the arrival times, so that the viewer's threads may be late on a busy
machine. Only a test causes a stall.
"""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ltxq_worker.pipeline.instant import Mark, read_mark
from pacing import Pacing

RATE = 48_000  # Hz
TICK = 960  # samples: 20 ms
LOUD = 0.05  # amplitude; the largest is 1
POLL = 0.005  # seconds between two polls of an empty queue
SILENCE = np.zeros((2, TICK), np.float32)


@dataclass(frozen=True)
class Shown:
    """A picture on the screen."""

    at: float  # seconds, wall clock: when it was due, or its arrival if that was later
    stamp: float  # seconds, its time stamp
    mark: Mark | None  # the instant pipeline's mark in it
    size: tuple[int, int]  # width, height


@dataclass(frozen=True)
class Heard:
    """20 ms of sound."""

    at: float  # seconds, wall clock
    stamp: float | None  # None: silence that the viewer inserted
    samples: Any  # float32 [2, 960]


@dataclass(frozen=True)
class Sound:
    """A part of the sound, as it arrived."""

    arrived: float  # seconds, wall clock
    number: int  # of its first sample, from its time stamp
    samples: Any  # float32 [2, S]


@dataclass
class Span:
    """A time span, in seconds by the wall clock."""

    begin: float
    end: float = math.inf  # it lasts


class _Arrivals(queue.Queue[Any]):
    """A queue that records the arrival time of each packet."""

    def _put(self, packet: Any) -> None:
        super()._put((time.monotonic(), packet))


class Viewer:
    """Watches a processor inside a `with` block, and fills `shown` and `sounds`."""

    def __init__(self, processor: Any) -> None:
        self.shown: list[Shown] = []
        self.sounds: list[Sound] = []
        self._changed = threading.Condition()
        self._pictures, self._audio = _Arrivals(30), _Arrivals(10)
        processor.output_queues["video"] = [self._pictures]
        processor.audio_output_queue = self._audio
        self._done = threading.Event()
        self._ended: float | None = None
        self._began: list[float] = []  # arrival of the first picture and of the first sound
        self._stalls: list[Span] = []
        self._pauses: list[Span] = []
        self._both = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._watch, self._listen)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended = self.shown[-1].at if self.shown else None
        self._done.set()
        for thread in self._threads:
            thread.join(10)

    def wait_until(self, seen: Any, seconds: float = 60.0) -> None:
        """Wait until `seen(self)` is true; it is evaluated after every picture."""
        with self._changed:
            assert self._changed.wait_for(lambda: seen(self), seconds), "not seen in time"

    def stall(self) -> None:
        """Stop Scope's process: nothing is shown or played until `resume`."""
        self._stalls.append(Span(time.monotonic()))

    def resume(self) -> None:
        """End the stall: pictures and sounds that were due in it come now."""
        with self._changed:
            self._stalls[-1].end = time.monotonic()
            self._changed.notify_all()

    def pause(self, paused: bool) -> None:
        """Press Scope's pause button: queued sound waits, queued pictures are still shown."""
        if paused:
            self._pauses.append(Span(time.monotonic()))
        elif self._pauses:
            self._pauses[-1].end = time.monotonic()

    @property
    def heard(self) -> list[Heard]:
        """The sound played until now, or until the last picture if the viewer has ended."""
        heard: list[Heard] = []
        if len(self._began) < 2:
            return heard
        sounds, parts, left, tick = list(self.sounds), [], 0, 0
        arrived, end = 0, self._ended or time.monotonic()
        while (due := max(self._began) + tick * TICK / RATE) < end:
            at = self._after_stalls(due)
            tick += 1
            if any(pause.begin <= at < pause.end for pause in self._pauses):
                heard.append(Heard(at, None, SILENCE))
                continue
            while arrived < len(sounds) and sounds[arrived].arrived <= at:
                parts.append((sounds[arrived].number, sounds[arrived].samples))
                left += sounds[arrived].samples.shape[1]
                arrived += 1
            stamp, samples = None, SILENCE
            if left >= TICK:
                stamp, samples = _take(parts)
                left -= TICK
            heard.append(Heard(at, stamp, samples))
        return heard

    def _watch(self) -> None:
        pacing, ready = Pacing(), 0.0  # ready: when Scope takes the next picture
        while not self._done.is_set():
            try:
                arrived, packet = self._pictures.get(timeout=POLL)
            except queue.Empty:
                continue
            stamp = float(packet.timestamp.pts * packet.timestamp.time_base)
            if not ready:
                self._wait_for_both(arrived)
                ready = max(self._began)
            taken = self._after_stalls(max(ready, arrived))
            due = taken + pacing.wait(stamp, taken)
            self._done.wait(max(0.0, due - time.monotonic()))
            ready = at = self._after_stalls(due)
            picture = packet.tensor[0].numpy()
            shown = Shown(at, stamp, _mark(picture), picture.shape[1::-1])
            with self._changed:
                self.shown.append(shown)
                self._changed.notify_all()

    def _listen(self) -> None:
        while not self._done.is_set():
            try:
                arrived, packet = self._audio.get(timeout=POLL)
            except queue.Empty:
                continue
            assert packet.sample_rate == RATE
            number = int(packet.timestamp.pts * packet.timestamp.time_base * RATE)
            self.sounds.append(Sound(arrived, number, packet.audio.numpy().copy()))
            if not self._both.is_set():
                self._wait_for_both(arrived)

    def _after_stalls(self, at: float) -> float:
        """`at`, or the end of the stall that `at` falls into."""
        with self._changed:
            for stall in self._stalls:
                if stall.begin <= at < stall.end:
                    self._changed.wait_for(lambda stall=stall: stall.end < math.inf)
                    at = max(at, stall.end)
        return at

    def _wait_for_both(self, arrived: float) -> None:
        """Start picture and sound together."""
        self._began.append(arrived)
        if len(self._began) == 2:
            self._both.set()
        while not self._both.wait(POLL) and not self._done.is_set():
            pass


def _take(parts: list[tuple[int, Any]]) -> tuple[float, Any]:
    """Remove 20 ms from the parts; returns the time stamp of its first sample, and the samples."""
    stamp, taken, missing = parts[0][0] / RATE, [], TICK
    while missing:
        number, part = parts.pop(0)
        taken.append(part[:, :missing])
        if part.shape[1] > missing:
            parts.insert(0, (number + missing, part[:, missing:]))
        missing -= taken[-1].shape[1]
    return stamp, np.concatenate(taken, axis=1)


def _mark(picture: Any) -> Mark | None:
    try:
        return read_mark(picture)
    except ValueError:
        return None


def skews(viewer: Viewer, since: float = 0.0) -> list[float]:
    """The delay of the sound in seconds (below 0: it was early), for each picture that was shown at
    wall-clock time `since` or later.
    """
    sounds = [(h.at, h.at - h.stamp) for h in viewer.heard if h.stamp is not None]
    delays, number = [], 0
    for shown in viewer.shown:
        while number + 1 < len(sounds) and sounds[number + 1][0] <= shown.at:
            number += 1
        if shown.at >= since and sounds and abs(sounds[number][0] - shown.at) < 0.1:
            delays.append(sounds[number][1] - (shown.at - shown.stamp))
    return delays


def apart(delays: Sequence[float]) -> float:
    """90th percentile of the seconds between sound and picture. It ignores the worst tenth, because
    a busy machine may stop the processor for longer than the plugin outputs ahead.
    """
    return float(np.quantile(np.abs(delays), 0.9))


def breaks(shown: Sequence[Shown], last: int) -> list[str]:
    """Errors in the order of frames: each clip must run from frame 0 to frame `last`, each frame
    once. Only the last frame may be repeated.
    """
    if any(picture.mark is None for picture in shown):
        return ["a picture without a readable mark"]
    marks = [picture.mark for picture in shown if picture.mark is not None]
    found = [] if not marks or marks[0].index == 0 else [f"begins with {marks[0]}"]
    for before, now in itertools.pairwise(marks):
        repeated = before == now and now.index == last
        continued = now == Mark(before.tag, before.index + 1)
        started = before.index == last and now.index == 0
        if not (repeated or continued or started):
            found.append(f"{now} after {before}")
    return found


def loud(sound: Heard) -> bool:
    """Whether the sound is more than silence."""
    return bool(np.abs(sound.samples).max() > LOUD)


def onset(heard: Sequence[Heard]) -> float:
    """The wall-clock time at which the first loud sound begins, in seconds."""
    first = next(sound for sound in heard if loud(sound))
    return first.at + int(np.argmax(np.abs(first.samples[0]) > LOUD)) / RATE
