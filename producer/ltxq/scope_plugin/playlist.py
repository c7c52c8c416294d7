"""Where the plugin's three threads meet: what is wanted, which clips are there, which frames are
decoded. Scope's thread (`player.py`) never waits in here; the fetcher and the decoder do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from fractions import Fraction
from typing import TYPE_CHECKING

from ltxq.job import VideoRequest
from ltxq.scope_plugin.kept import KeptClips
from ltxq.scope_plugin.playback_request import PlaybackRequest
from ltxq.scope_plugin.showing import End, Frame, Showing

if TYPE_CHECKING:
    from ltxq.scope_plugin.clip import DownloadedClip
    from ltxq.scope_plugin.showing import Picture

SETTLE_SECONDS = 0.2  # a wish must stand that long before its clip is asked for, but the first one
IDLE_SECONDS = 60.0  # without a call from Scope: nobody watches, and the queue is left alone
BUFFER_SECONDS = 0.5  # decoded ahead of what Scope gets
BUFFER_BYTES = 128 * 1024**2  # but no more than that
LEAST_FRAMES = 4  # decoded ahead however large they are


class Playlist:
    """A session's whole state but for the clock. Everything takes a lock, and none of it for
    longer than a look at some small lists.

    Args:
        kept: clips of fixed seeds; other sessions may share them.
    """

    def __init__(
        self, kept: KeptClips | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kept = KeptClips() if kept is None else kept
        self._clock = clock
        self._changed = threading.Condition()
        self.closed = False
        self.last_error: str | None = None
        self.size: tuple[int, int] | None = None  # width, height of this session's frames
        self._wish: PlaybackRequest | None = None
        self._settled_at = 0.0
        self._called_at = clock()
        self._idle = False
        self._news = 0
        self._refused: VideoRequest | None = None
        self._ready: deque[DownloadedClip] = deque()  # of the wish, with seeds of their own
        self._fixed: DownloadedClip | None = None  # of the wish, if its seed is fixed
        self._showings: list[Showing] = []  # not played to the end yet
        self._frames: deque[Frame | End] = deque()  # in the order they are played

    # --- Scope's thread -------------------------------------------------------------------------

    def want(self, wish: PlaybackRequest | None) -> None:
        """From now on this is wanted. What is not of it and has not begun to play is dropped."""
        with self._changed:
            self._called_at = self._clock()
            if wish is self._wish and not self._idle:
                return
            self._idle = False
            before, self._wish = self._wish, wish
            if wish is None or before is None or wish.request != before.request:
                self._settled_at = self._called_at + (SETTLE_SECONDS if before else 0.0)
                self._refused = None
                self._ready.clear()
                self._fixed = None
                self._drop(lambda showing: not showing.begun)
            self._tell()

    def start_again(self, *, new_session: bool) -> None:
        """Drop what plays. A new session may have frames of another size."""
        with self._changed:
            self._drop(lambda _: True)
            if new_session:
                self.size = None
            self._tell()

    def next_rate(self) -> Fraction | None:
        """Frames per second of what comes next; None: nothing is there."""
        with self._changed:
            return self._frames[0].showing.rate if self._frames else None

    def take(self, count: int, *, patient: bool) -> list[Frame]:
        """Up to `count` frames of one rate, out of the buffer. None of a clip that has not begun
        until the buffer is full of it: it should not stop in its midst.

        Args:
            patient: none at all while fewer are there and the decoder is about to bring more.
        """
        with self._changed:
            if not self._frames or not self._can_begin(self._frames[0].showing):
                return []
            rate = self._frames[0].showing.rate
            there = [frame for frame in self._frames if isinstance(frame, Frame)][:count]
            more = len(there) < count and all(frame.showing.rate == rate for frame in there)
            if more and patient and self._decoding():
                return []
            taken: list[Frame] = []
            while self._frames:
                frame = self._frames[0]
                if isinstance(frame, End):
                    self._remove(frame.showing)
                elif len(taken) < count and frame.showing.rate == rate:
                    frame.showing.begun = True
                    taken.append(frame)
                else:
                    break
                self._frames.popleft()
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        """The pipeline is gone: the threads end."""
        with self._changed:
            self.closed = True
            self._drop(lambda _: True)
            self._tell()

    # --- the fetcher's ---------------------------------------------------------------------------

    @property
    def news(self) -> int:
        """A count of what the fetcher may have to act upon, to wait after."""
        return self._news

    def wait_for_news(self, since: int, seconds: float | None) -> None:
        """Until something has happened after the count `since`, but no longer than `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._news != since or self.closed, seconds)

    def wait_while_idle(self) -> None:
        """Until Scope calls, if it has not for a minute. It does not tell when a stream stops."""
        with self._changed:
            self._idle = not self.closed and self._clock() > self._called_at + IDLE_SECONDS
            self._changed.wait_for(lambda: not self._idle or self.closed)

    def wanted(self, request: VideoRequest) -> bool:
        """Whether this request's clips are (still) to be played."""
        with self._changed:
            return not self.closed and self._wish is not None and self._wish.request == request

    def to_order(
        self, submitted: Collection[VideoRequest]
    ) -> tuple[VideoRequest | None, int, float]:
        """The request to submit, how often, and in how many seconds to ask again; 0: not so.

        Args:
            submitted: what is on the way already.
        """
        with self._changed:
            if self._wish is None or self.closed or self._wish.request == self._refused:
                return None, 0, 0.0
            request = self._wish.request
            on_the_way = sum(other == request for other in submitted)
            if (unsettled := self._settled_at - self._clock()) > 0:
                return request, 0, unsettled
            if request.seed is not None:
                return request, int(self._fixed_clip() is None and not on_the_way), 0.0
            there = len(self._ready) + len(self._showings) + on_the_way
            return request, max(0, 1 + self._wish.prefetch - there), 0.0

    def note(self, error: str | None) -> None:
        """Why nothing comes, for whoever asks the pipeline; None: all is well."""
        self.last_error = error

    def add(self, request: VideoRequest, clip: DownloadedClip) -> None:
        """A clip has come. One that is no longer wanted is kept if its seed is fixed."""
        with self._changed:
            wanted = self._wish is not None and self._wish.request == request
            if request.seed is not None:
                self._kept.keep(request, clip)
                self._fixed = clip if wanted else self._fixed
            elif wanted:
                self._ready.append(clip)
            self._tell()

    def refuse(self, request: VideoRequest, why: str) -> None:
        """This request can never be made; it is not asked for again while it stands."""
        with self._changed:
            self.last_error = why
            self._refused = request
            self._kept.forget(request)
            if self._wish is not None and self._wish.request == request:
                self._fixed = None
            self._tell()

    # --- the decoder's ---------------------------------------------------------------------------

    def next_showing(self) -> Showing | None:
        """The next clip to decode, when there is one and the buffer is not full; None: closed."""
        with self._changed:
            while not self.closed:
                clip = self._next_clip() if self._room() else None
                if clip is not None and self._wish is not None:
                    showing = Showing(clip, self._wish.request)
                    self._showings.append(showing)
                    return showing
                self._changed.wait()
            return None

    def put(self, showing: Showing, picture: Picture) -> bool:
        """Add a frame, when there is room. False: the showing was dropped; no more of it."""
        with self._changed:
            self._changed.wait_for(lambda: self._room() or showing.dropped)
            if not showing.dropped:
                height, width = picture.shape[:2]
                self.size = self.size or (width, height)
                self._frames.append(Frame(showing, picture))
            return not showing.dropped

    def end(self, showing: Showing) -> None:
        """All frames of it are there."""
        with self._changed:
            if showing.dropped:
                return
            if any(frame.showing is showing for frame in self._frames):
                self._frames.append(End(showing))
            else:
                self._remove(showing)

    # --- within -----------------------------------------------------------------------------------

    def _next_clip(self) -> DownloadedClip | None:
        if self._wish is None:
            return None
        if self._wish.request.seed is None:
            return self._ready.popleft() if self._ready else None
        return self._fixed_clip()

    def _fixed_clip(self) -> DownloadedClip | None:
        """The clip of a wish with a fixed seed. It is held here too: other sessions' clips may take
        its place among the kept ones.
        """
        if self._fixed is None and self._wish is not None:
            self._fixed = self._kept.get(self._wish.request)
        return self._fixed

    def _room(self) -> bool:
        if len(self._frames) < LEAST_FRAMES:
            return True
        seconds = sum(1 / frame.showing.rate for frame in self._frames if isinstance(frame, Frame))
        size = sum(frame.picture.nbytes for frame in self._frames if isinstance(frame, Frame))
        return seconds < BUFFER_SECONDS and size < BUFFER_BYTES

    def _can_begin(self, showing: Showing) -> bool:
        return showing.begun or self._decoded(showing) or not self._room()

    def _decoding(self) -> bool:
        """Whether frames are about to come."""
        return bool(self._showings) and not self._decoded(self._showings[-1])

    def _decoded(self, showing: Showing) -> bool:
        """Whether it is there to its end."""
        return End(showing) in self._frames

    def _drop(self, which: Callable[[Showing], bool]) -> None:
        for showing in self._showings:
            showing.dropped = which(showing)
        self._showings = [showing for showing in self._showings if not showing.dropped]
        self._frames = deque(frame for frame in self._frames if not frame.showing.dropped)

    def _remove(self, showing: Showing) -> None:
        self._showings.remove(showing)
        self._tell()

    def _tell(self) -> None:
        self._news += 1
        self._changed.notify_all()
