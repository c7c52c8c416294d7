"""What Scope gets at each call: the next few frames with their sound, by the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ltxq.scope_plugin.playlist import Playlist
from ltxq.scope_plugin.showing import Frame
from ltxq.scope_plugin.timeline import SAMPLE_RATE, Timeline

# Scope has no back-pressure: what is too early is lost. Its queue of pictures holds 30 of them and
# its queue of sounds 10, so with 3 pictures to a sound both are full at the same time, and what is
# lost while a browser connects is lost from both.
CHUNK = 3
AHEAD_SECONDS = 0.25  # given to Scope ahead of the wall
LATE_SECONDS = 0.1  # ahead: less than that, and a frame must come now, be it the last one again

if TYPE_CHECKING:
    from ltxq.scope_plugin.showing import Picture

Stamp = Callable[[int, Fraction], Any]  # makes Scope's MediaTimestamp


class Player:
    """Plays a playlist. Never waits; every output has as much sound as picture.

    Between clips the last frame stands, with silence, so that the sound never runs dry: Scope
    would put in silence of its own, and all later sound would be late by that.
    """

    def __init__(self, playlist: Playlist, stamp: Stamp, timeline: Timeline | None = None) -> None:
        self._playlist = playlist
        self._stamp = stamp
        self._timeline = timeline or Timeline()
        self._rate = Fraction(24)
        self._last: Picture | None = None  # it stands between clips

    @property
    def playing(self) -> bool:
        """Whether this session has seen a picture."""
        return self._last is not None

    def start_session(self) -> None:
        """Time begins anew, with nothing shown."""
        self._timeline.restart()
        self._last = None

    def output(self) -> dict[str, Any]:
        """The next frames with their sound; {} where none is due yet, or there is nothing."""
        if self._timeline.drains(self._rate):
            return {}
        rate = self._playlist.next_rate() or self._rate
        count = max(1, min(CHUNK, int(AHEAD_SECONDS * rate)))
        ahead = self._timeline.ahead
        if ahead > max(AHEAD_SECONDS - count / rate, LATE_SECONDS):
            return {}
        frames = self._playlist.take(count, patient=ahead > LATE_SECONDS or not self.playing)
        if frames:
            pictures = [frame.picture for frame in frames]
            self._rate, self._last = frames[-1].showing.rate, pictures[-1]
            return self._output(pictures, frames)
        if self._last is not None and ahead <= LATE_SECONDS:
            return self._output([self._last] * count, ())
        return {}

    def _output(self, pictures: Sequence[Picture], frames: Sequence[Frame]) -> dict[str, Any]:
        import numpy as np
        import torch

        starts = self._timeline.advance(len(pictures), self._rate)
        sound = np.zeros((2, starts[-1] - starts[0]), np.float32)
        for frame, start, end in zip(frames, starts, starts[1:], strict=False):
            heard = frame.showing.next_sound(end - start)
            if heard is not None:
                at = start - starts[0]
                sound[:, at : at + heard.shape[1]] = heard
        unit = Fraction(1, SAMPLE_RATE)
        stamps = [self._stamp(start, unit) for start in starts[:-1]]
        return {
            # By numpy: torch shares a copy of that size among threads and waits for the last one.
            "video": torch.from_numpy(np.stack(pictures)),
            "audio": torch.from_numpy(sound),
            "audio_sample_rate": SAMPLE_RATE,
            "frame_rate": float(self._rate),
            "video_timestamps": stamps,
            "audio_timestamps": stamps[:1],
        }
