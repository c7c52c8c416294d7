"""The order and the timing in which the buffer hands out decoded frames."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from ltxq import VideoRequest
from ltxq.scope_plugin.clip import DownloadedClip
from ltxq.scope_plugin.frame_buffer import (
    BUFFER_BYTES,
    MIN_FRAMES,
    BufferedClip,
    Frame,
    FrameBuffer,
)

PICTURE: Any = np.zeros((2, 2, 3), np.uint8)


def add_clip(buffer: FrameBuffer, frames: int, rate: int = 24, *, decoded: bool) -> BufferedClip:
    clip = BufferedClip(DownloadedClip(b""), VideoRequest(seed=42, prompt="a fox"), Fraction(rate))
    clip.decoded = decoded
    buffer.clips.append(clip)
    for _ in range(frames):
        buffer.add(Frame(clip, PICTURE))
    return clip


def test_a_clip_starts_once_it_fills_half_a_second_or_is_decoded() -> None:
    buffer = FrameBuffer()
    clip = add_clip(buffer, 11, decoded=False)
    assert buffer.take(3, patient=False) == []
    buffer.add(Frame(clip, PICTURE))
    assert not buffer.has_room()
    assert len(buffer.take(3, patient=False)) == 3
    assert len(buffer.take(3, patient=False)) == 3  # it has started
    short = FrameBuffer()
    add_clip(short, 1, decoded=True)
    assert len(short.take(3, patient=True)) == 1


def test_a_patient_call_waits_for_frames_that_are_being_decoded() -> None:
    buffer = FrameBuffer()
    clip = add_clip(buffer, 12, decoded=False)
    buffer.take(10, patient=True)
    assert buffer.take(3, patient=True) == []
    assert len(buffer.take(3, patient=False)) == 2
    buffer.add(Frame(clip, PICTURE))
    clip.decoded = True
    assert len(buffer.take(3, patient=True)) == 1


def test_frames_of_different_frame_rates_are_not_mixed() -> None:
    buffer = FrameBuffer()
    first, second = add_clip(buffer, 2, decoded=True), add_clip(buffer, 2, 30, decoded=True)
    assert [frame.clip for frame in buffer.take(3, patient=True)] == [first, first]
    assert buffer.next_rate == 30
    assert buffer.remove_played()
    assert buffer.clips == [second]
    assert not buffer.remove_played()


def test_dropped_clips_lose_their_frames() -> None:
    buffer = FrameBuffer()
    first, second = add_clip(buffer, 2, decoded=True), add_clip(buffer, 2, decoded=True)
    buffer.drop(lambda clip: clip is first)
    assert first.dropped
    assert [frame.clip for frame in buffer.take(9, patient=False)] == [second, second]


def test_large_frames_fill_the_buffer_by_their_bytes() -> None:
    buffer = FrameBuffer()
    clip = add_clip(buffer, 0, decoded=False)
    large: Any = np.empty((BUFFER_BYTES // 2,), np.uint8)  # never written: takes no memory
    for _ in range(MIN_FRAMES):
        assert buffer.has_room()
        buffer.add(Frame(clip, large))
    assert not buffer.has_room()
