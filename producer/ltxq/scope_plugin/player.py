"""Composes the output of each call by Scope: the next few frames, their sound and time stamps."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from scope.server.media_packets import MediaTimestamp

from ltxq.scope_plugin.clip import Picture
from ltxq.scope_plugin.frame_buffer import Frame
from ltxq.scope_plugin.playlist import Playlist
from ltxq.scope_plugin.timeline import SAMPLE_RATE, Timeline

# Scope has no back-pressure: it drops what its queues cannot hold. They hold 30 pictures and 10
# sounds. With 3 pictures to a sound both fill up together, so that Scope drops equally much of both
# while a browser connects.
CHUNK_FRAMES = 3
AHEAD_SECONDS = 0.25  # output ahead of the wall clock
LATE_SECONDS = 0.1  # with less than that ahead, the last frame is repeated if none is decoded


class Player:
    """Plays a playlist. Never waits; every output has as much sound as picture.

    Between clips it repeats the last frame with silence. If the sound stopped, Scope would insert
    silence of its own, and all later sound would be late by that much.
    """

    def __init__(self, playlist: Playlist) -> None:
        self._playlist = playlist
        self._timeline = Timeline()
        self._rate = Fraction(24)  # frames per second of the last output
        self._last: Picture | None = None  # None: this session has not output a frame

    def start_session(self) -> None:
        """Restart the time stamps at 0, with no last frame to repeat."""
        self._timeline.restart()
        self._last = None

    def output(self) -> dict[str, Any]:
        """The next frames with their sound; {}: none are due, or none are decoded."""
        if self._timeline.must_drain(self._rate):
            return {}
        rate = self._playlist.next_rate() or self._rate
        count = max(1, min(CHUNK_FRAMES, int(AHEAD_SECONDS * rate)))
        ahead = self._timeline.ahead
        if ahead > max(AHEAD_SECONDS - count / rate, LATE_SECONDS):
            return {}
        late = ahead <= LATE_SECONDS
        frames = self._playlist.take(count, patient=not late or self._last is None)
        if frames:
            pictures = [frame.picture for frame in frames]
            self._rate, self._last = frames[-1].clip.frame_rate, pictures[-1]
            return self._compose(pictures, frames)
        if late and self._last is not None:
            return self._compose([self._last] * count, ())
        return {}

    def _compose(self, pictures: Sequence[Picture], frames: Sequence[Frame]) -> dict[str, Any]:
        """The output of `pictures` with the sound of `frames`; silence without frames."""
        import numpy as np
        import torch

        starts = self._timeline.advance(len(pictures), self._rate)
        sound = np.zeros((2, starts[-1] - starts[0]), np.float32)
        for frame, start, end in zip(frames, starts, starts[1:], strict=False):
            part = frame.clip.next_sound(end - start)
            if part is not None:
                offset = start - starts[0]
                sound[:, offset : offset + part.shape[1]] = part
        time_base = Fraction(1, SAMPLE_RATE)
        stamps = [MediaTimestamp(pts=start, time_base=time_base) for start in starts[:-1]]
        return {
            # numpy copies here: torch would split a copy of that size among threads and wait for
            # the slowest.
            "video": torch.from_numpy(np.stack(pictures)),
            "audio": torch.from_numpy(sound),
            "audio_sample_rate": SAMPLE_RATE,
            "frame_rate": float(self._rate),
            "video_timestamps": stamps,
            "audio_timestamps": stamps[:1],
        }
