"""The state that a session's three threads share: the request, the clips and the decoded frames.

Scope's thread (`player.py`) never waits here; the fetcher's and the decoder's threads do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from fractions import Fraction

from ltxq.job import VideoRequest
from ltxq.scope_plugin.clip import DownloadedClip, Picture
from ltxq.scope_plugin.clip_cache import ClipCache
from ltxq.scope_plugin.frame_buffer import BufferedClip, Frame, FrameBuffer
from ltxq.scope_plugin.playback_request import PlaybackRequest

DEBOUNCE_SECONDS = 0.2  # a changed request is submitted once it has stayed the same for so long
IDLE_SECONDS = 60.0  # without a call from Scope; then the fetcher leaves the queue alone

REJECTED = "The plugin requests no other clip until the prompt or a setting changes."
"""Ends the message of an error that `Playlist.reject` gets."""


class Playlist:
    """Thread-safe. No method holds the lock for longer than a look at a few short lists.

    Args:
        cache: clips with a fixed seed; other sessions may share it.
    """

    def __init__(self, cache: ClipCache, clock: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._clock = clock
        self._changed = threading.Condition()
        self.changes = 0  # a counter, for `wait_for_change`
        self.closed = False
        self.last_error: str | None = None  # why no clip plays; None: no error
        self.size: tuple[int, int] | None = None  # width, height of this session's pictures
        self._requested: PlaybackRequest | None = None
        self._rejected: VideoRequest | None = None
        self._submit_at = 0.0  # when the request is old enough to be submitted
        self._called_at = clock()
        self._idle = False
        self._ready: deque[DownloadedClip] = deque()  # clips of a request with random seeds
        self._fixed: DownloadedClip | None = None  # the clip of a request with a fixed seed
        self._buffer = FrameBuffer()

    # --- called by Scope's thread ---------------------------------------------------------------

    def set_request(self, requested: PlaybackRequest | None) -> None:
        """Play this from now on. Clips of an older request are dropped unless one is playing."""
        with self._changed:
            self._called_at = self._clock()
            if requested is self._requested and not self._idle:
                return
            self._idle = False
            before, self._requested = self._requested, requested
            if requested is None or before is None or requested.video != before.video:
                self._submit_at = self._called_at + (DEBOUNCE_SECONDS if before else 0.0)
                self._rejected = None
                self._ready.clear()
                self._fixed = None
                self._buffer.drop(lambda clip: not clip.started)
            self._notify()

    def restart(self, *, new_session: bool) -> None:
        """Drop what plays. A new session may have pictures of another size."""
        with self._changed:
            self._buffer.drop(lambda _: True)
            if new_session:
                self.size = None
            self._notify()

    def next_rate(self) -> Fraction | None:
        """Frame rate of the next frame; None: no frame is decoded."""
        with self._changed:
            return self._buffer.next_rate

    def take(self, count: int, *, patient: bool) -> list[Frame]:
        """Remove and return the next frames, as `FrameBuffer.take` does."""
        with self._changed:
            taken = self._buffer.take(count, patient=patient)
            if self._buffer.remove_played():
                self._notify()
            elif taken:
                self._changed.notify_all()  # the decoder: the buffer has room
            return taken

    def close(self) -> None:
        """End the session's threads."""
        with self._changed:
            self.closed = True
            self._buffer.drop(lambda _: True)
            self._notify()

    # --- called by the fetcher's thread ---------------------------------------------------------

    def wait_for_change(self, since: int, seconds: float | None) -> None:
        """Wait until `changes` is no longer `since`, but at most `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self.changes != since or self.closed, seconds)

    def wait_while_idle(self) -> None:
        """Wait while Scope has not called for a minute. Scope does not report a stopped stream."""
        with self._changed:
            self._idle = not self.closed and self._clock() > self._called_at + IDLE_SECONDS
            self._changed.wait_for(lambda: not self._idle or self.closed)

    def is_requested(self, request: VideoRequest) -> bool:
        """Whether clips of this request are still to be played."""
        with self._changed:
            return not self.closed and self._is_current(request)

    def debounce_left(self) -> float:
        """Seconds until a changed request may be submitted; 0: now."""
        with self._changed:
            left = self._submit_at - self._clock()
            return max(0.0, left) if self._requested is not None else 0.0

    def to_submit(self, submitted: Collection[VideoRequest]) -> list[VideoRequest]:
        """The requests to submit now.

        Args:
            submitted: the requests whose clips are still awaited.
        """
        with self._changed:
            if self._requested is None or self.closed or self._clock() < self._submit_at:
                return []
            request = self._requested.video
            if request == self._rejected:
                return []
            awaited = sum(other == request for other in submitted)
            if request.seed is not None:
                return [] if awaited or self._fixed_clip() is not None else [request]
            available = len(self._ready) + len(self._buffer.clips) + awaited
            return [request] * (1 + self._requested.prefetch - available)

    def add_clip(self, request: VideoRequest, clip: DownloadedClip) -> None:
        """Add a downloaded clip. A clip with a fixed seed is cached even if the request changed."""
        with self._changed:
            current = self._is_current(request)
            if request.seed is not None:
                self._cache.put(request, clip)
                self._fixed = clip if current else self._fixed
            elif current:
                self._ready.append(clip)
            self._notify()

    def reject(self, request: VideoRequest, error: str) -> None:
        """Do not submit this request again until the session's request changes."""
        with self._changed:
            self.last_error = error
            self._rejected = request
            self._cache.discard(request)
            if self._is_current(request):
                self._fixed = None
            self._notify()

    # --- called by the decoder's thread ---------------------------------------------------------

    def next_to_decode(self) -> BufferedClip | None:
        """Wait until there is a clip and room for its frames. None: the playlist is closed."""
        with self._changed:
            while not self.closed:
                clip = self._next_clip() if self._buffer.has_room() else None
                if clip is not None:
                    self._buffer.clips.append(clip)
                    return clip
                self._changed.wait()
            return None

    def add_frame(self, clip: BufferedClip, picture: Picture) -> bool:
        """Wait for room and add a frame. False: the clip was dropped and needs no more frames."""
        with self._changed:
            self._changed.wait_for(lambda: self._buffer.has_room() or clip.dropped)
            if clip.dropped:
                return False
            height, width = picture.shape[:2]
            self.size = self.size or (width, height)
            self._buffer.add(Frame(clip, picture))
            return True

    def finish_decoding(self, clip: BufferedClip) -> None:
        """All frames of the clip are added, or it cannot be decoded any further."""
        with self._changed:
            clip.decoded = True
            if self._buffer.remove_played():
                self._notify()

    # --- called under the lock ------------------------------------------------------------------

    def _is_current(self, request: VideoRequest) -> bool:
        return self._requested is not None and self._requested.video == request

    def _next_clip(self) -> BufferedClip | None:
        if self._requested is None:
            return None
        if self._requested.video.seed is not None:
            clip = self._fixed_clip()
        else:
            clip = self._ready.popleft() if self._ready else None
        return None if clip is None else BufferedClip(clip, self._requested.video)

    def _fixed_clip(self) -> DownloadedClip | None:
        """The clip of a request with a fixed seed. The playlist holds it as well as the cache,
        because other sessions' clips may evict it there.
        """
        if self._fixed is None and self._requested is not None:
            self._fixed = self._cache.get(self._requested.video)
        return self._fixed

    def _notify(self) -> None:
        """Wake the threads that wait for a change."""
        self.changes += 1
        self._changed.notify_all()
