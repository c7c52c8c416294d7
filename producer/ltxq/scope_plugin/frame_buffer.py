"""Decoded frames in the order of playback, and the clips that they belong to.

Not thread-safe: `playlist.py` calls it under its lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, takewhile

from ltxq.job import VideoRequest
from ltxq.scope_plugin.clip import DownloadedClip, Picture, Sound

BUFFER_SECONDS = 0.5  # decoded ahead of playback
BUFFER_BYTES = 128 * 1024**2  # takes precedence over BUFFER_SECONDS
MIN_FRAMES = 4  # decoded ahead, however large they are


@dataclass(eq=False)
class BufferedClip:
    """One playback of a clip. The decoder sets its frame rate and its sound."""

    source: DownloadedClip
    request: VideoRequest
    frame_rate: Fraction = Fraction(24)  # frames per second
    sound: Sound | None = None  # None: silent
    played_samples: int = 0  # of `sound`
    decoded: bool = False  # all its frames are in the buffer, or were
    started: bool = False  # Scope has its first frame
    dropped: bool = False  # neither decoded nor played any further

    def next_sound(self, samples: int) -> Sound | None:
        """The sound of the next frame: up to `samples` samples. None: the clip is silent."""
        start, self.played_samples = self.played_samples, self.played_samples + samples
        return None if self.sound is None else self.sound[:, start : self.played_samples]


@dataclass(frozen=True)
class Frame:
    """A decoded picture of a clip."""

    clip: BufferedClip
    picture: Picture


class FrameBuffer:
    """Clips from the first decoded frame to the last played one, and their unplayed frames."""

    def __init__(self) -> None:
        self.clips: list[BufferedClip] = []
        self._frames: deque[Frame] = deque()

    @property
    def next_rate(self) -> Fraction | None:
        """Frame rate of the next frame; None: the buffer is empty."""
        return self._frames[0].clip.frame_rate if self._frames else None

    def has_room(self) -> bool:
        """Whether the decoder should add a frame."""
        if len(self._frames) < MIN_FRAMES:
            return True
        seconds = sum(1 / frame.clip.frame_rate for frame in self._frames)
        size = sum(frame.picture.nbytes for frame in self._frames)
        return seconds < BUFFER_SECONDS and size < BUFFER_BYTES

    def add(self, frame: Frame) -> None:
        """Append a frame. Its clip must be in `clips`."""
        self._frames.append(frame)

    def take(self, count: int, *, patient: bool) -> list[Frame]:
        """Remove and return up to `count` frames of one frame rate.

        A clip starts once it fills the buffer or is decoded to its end, so that it does not stop
        in the middle.

        Args:
            patient: return no frames while there are fewer than `count` and more are decoded.
        """
        if not self._frames:
            return []
        first = self._frames[0].clip
        if not (first.started or first.decoded) and self.has_room():
            return []
        rate = self.next_rate
        taken = list(
            takewhile(lambda frame: frame.clip.frame_rate == rate, islice(self._frames, count))
        )
        decoding = not self.clips[-1].decoded
        if patient and decoding and len(taken) == len(self._frames) < count:
            return []
        for frame in taken:
            frame.clip.started = True
            self._frames.popleft()
        return taken

    def remove_played(self) -> bool:
        """Forget the clips that are played to their end. Returns whether there were any."""
        unplayed = {frame.clip for frame in self._frames}
        before = len(self.clips)
        self.clips = [clip for clip in self.clips if not clip.decoded or clip in unplayed]
        return len(self.clips) < before

    def drop(self, condition: Callable[[BufferedClip], bool]) -> None:
        """Drop the clips that meet `condition`, with their frames."""
        for clip in self.clips:
            clip.dropped = condition(clip)
        self.clips = [clip for clip in self.clips if not clip.dropped]
        self._frames = deque(frame for frame in self._frames if not frame.clip.dropped)
