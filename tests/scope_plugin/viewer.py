"""Who watches: takes pictures and sound from a processor's queues, and knows what a screen and a
loudspeaker would have made of them, by Scope's own rules.

Pictures come when their time stamps say (`pacing.py`). Sound is played in frames of 20 ms one after
the other, whatever its stamps; silence is put in where there is none, and while Scope is paused.
Both are reckoned from when things arrived, so that a viewer whose threads have to wait on a busy
machine sees the same. A stall is one that a test makes.
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
LOUD = 0.05  # of 1
LOOK = 0.005  # seconds between two looks at an empty queue
SILENCE = np.zeros((2, TICK), np.float32)


@dataclass(frozen=True)
class Shown:
    """A picture on the screen."""

    at: float  # seconds by the wall: when it was due, or when it came, if that was later
    stamp: float  # seconds by its time stamp
    mark: Mark | None  # what the instant pipeline wrote into it
    size: tuple[int, int]  # width, height


@dataclass(frozen=True)
class Heard:
    """20 ms of sound."""

    at: float  # seconds by the wall
    stamp: float | None  # None: silence that the viewer put in
    samples: Any  # float32 [2, 960]


@dataclass(frozen=True)
class Sound:
    """A part of it, as it came."""

    arrived: float  # seconds by the wall
    number: int  # of its first sample, by its time stamp
    samples: Any  # float32 [2, S]


@dataclass
class Span:
    """From when until when by the wall, in seconds."""

    begin: float
    end: float = math.inf  # not known yet


class _Arrivals(queue.Queue[Any]):
    """A queue that notes when things came."""

    def _put(self, packet: Any) -> None:
        super()._put((time.monotonic(), packet))


class Viewer:
    """Watches a processor within a `with`; `shown` and `sounds` grow meanwhile."""

    def __init__(self, processor: Any) -> None:
        self.shown: list[Shown] = []
        self.sounds: list[Sound] = []
        self.news = threading.Condition()
        self._pictures, self._arriving = _Arrivals(30), _Arrivals(10)
        processor.output_queues["video"] = [self._pictures]
        processor.audio_output_queue = self._arriving
        self._done = threading.Event()
        self._ended: float | None = None
        self._began: list[float] = []  # when the first picture and the first sound came
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
        """Until `seen(self)` is true; looked at with every picture."""
        with self.news:
            assert self.news.wait_for(lambda: seen(self), seconds), "not seen in time"

    def stall(self) -> None:
        """Scope's process stands still from now on: nothing is shown or played."""
        self._stalls.append(Span(time.monotonic()))

    def go_on(self) -> None:
        """It goes on: pictures and sounds that were due meanwhile come now."""
        with self.news:
            self._stalls[-1].end = time.monotonic()
            self.news.notify_all()

    def pause(self, paused: bool) -> None:
        """Scope's pause button: its sound is silence and stays where it is; pictures come on."""
        if paused:
            self._pauses.append(Span(time.monotonic()))
        elif self._pauses:
            self._pauses[-1].end = time.monotonic()

    @property
    def heard(self) -> list[Heard]:
        """What a loudspeaker has played until now, or until the last picture."""
        heard: list[Heard] = []
        if len(self._began) < 2:
            return heard
        sounds, parts, left, tick = list(self.sounds), [], 0, 0
        coming, end = 0, self._ended or time.monotonic()
        while (due := max(self._began) + tick * TICK / RATE) < end:
            at = self._after_stalls(due)
            tick += 1
            if any(pause.begin <= at < pause.end for pause in self._pauses):
                heard.append(Heard(at, None, SILENCE))
                continue
            while coming < len(sounds) and sounds[coming].arrived <= at:
                parts.append((sounds[coming].number, sounds[coming].samples))
                left += sounds[coming].samples.shape[1]
                coming += 1
            stamp, samples = None, SILENCE
            if left >= TICK:
                stamp, samples = _take(parts)
                left -= TICK
            heard.append(Heard(at, stamp, samples))
        return heard

    def _watch(self) -> None:
        pacing, ready = Pacing(), 0.0  # ready: when the track takes the next picture
        while not self._done.is_set():
            try:
                arrived, packet = self._pictures.get(timeout=LOOK)
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
            with self.news:
                self.shown.append(shown)
                self.news.notify_all()

    def _listen(self) -> None:
        while not self._done.is_set():
            try:
                arrived, packet = self._arriving.get(timeout=LOOK)
            except queue.Empty:
                continue
            assert packet.sample_rate == RATE
            number = int(packet.timestamp.pts * packet.timestamp.time_base * RATE)
            self.sounds.append(Sound(arrived, number, packet.audio.numpy().copy()))
            if not self._both.is_set():
                self._wait_for_both(arrived)

    def _after_stalls(self, at: float) -> float:
        """When what is due at `at` comes: at once, or when the stall of that time has ended."""
        with self.news:
            for stall in self._stalls:
                if stall.begin <= at < stall.end:
                    self.news.wait_for(lambda stall=stall: stall.end < math.inf)
                    at = max(at, stall.end)
        return at

    def _wait_for_both(self, arrived: float) -> None:
        """Neither begins without the other."""
        self._began.append(arrived)
        if len(self._began) == 2:
            self._both.set()
        while not self._both.wait(LOOK) and not self._done.is_set():
            pass


def _take(parts: list[tuple[int, Any]]) -> tuple[float, Any]:
    """20 ms from the parts, and the stamp of its first sample."""
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
    """For each picture shown at `since` or later, by the wall: by how many seconds its sound was
    late (below 0: early), as seen and heard on this side of the queues.
    """
    sounds = [(h.at, h.at - h.stamp) for h in viewer.heard if h.stamp is not None]
    late, at = [], 0
    for shown in viewer.shown:
        while at + 1 < len(sounds) and sounds[at + 1][0] <= shown.at:
            at += 1
        if shown.at >= since and sounds and abs(sounds[at][0] - shown.at) < 0.1:
            late.append(sounds[at][1] - (shown.at - shown.stamp))
    return late


def apart(late: Sequence[float]) -> float:
    """By how many seconds sound and picture are apart, but for a tenth of the pictures: on a busy
    machine a processor may get no time for longer than what is given out ahead.
    """
    return float(np.quantile(np.abs(late), 0.9))


def breaks(shown: Sequence[Shown], last: int) -> list[str]:
    """Where clips do not run from their first frame to their last, `last`, one after the other,
    each frame once; the last one may stand.
    """
    if any(picture.mark is None for picture in shown):
        return ["a picture without a readable mark"]
    marks = [picture.mark for picture in shown if picture.mark is not None]
    found = [] if not marks or marks[0].index == 0 else [f"begins with {marks[0]}"]
    for before, now in itertools.pairwise(marks):
        stands = before == now and now.index == last
        goes_on = now == Mark(before.tag, before.index + 1)
        begins = before.index == last and now.index == 0
        if not (stands or goes_on or begins):
            found.append(f"{now} after {before}")
    return found


def loud(sound: Heard) -> bool:
    """Whether there is anything to hear."""
    return bool(np.abs(sound.samples).max() > LOUD)


def onset(heard: Sequence[Heard]) -> float:
    """When the first sound begins, in seconds by the wall."""
    first = next(sound for sound in heard if loud(sound))
    return first.at + int(np.argmax(np.abs(first.samples[0]) > LOUD)) / RATE
