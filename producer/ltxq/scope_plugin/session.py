"""Sessions: Scope shares one pipeline object among all streams (browser tabs, for example).

It calls from one thread per stream, so `Sessions` finds the session by the calling thread.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from ltxq.errors import InvalidRequest
from ltxq.scope_plugin import connection
from ltxq.scope_plugin.clip_cache import ClipCache
from ltxq.scope_plugin.decoder import decode
from ltxq.scope_plugin.fetcher import Fetcher
from ltxq.scope_plugin.playback_request import ParameterReader, PlaybackRequest
from ltxq.scope_plugin.player import Player
from ltxq.scope_plugin.playlist import Playlist

log = logging.getLogger("ltxq.scope")


class Session:
    """One stream: its parameters, its playlist, its player, and its fetcher and decoder threads.

    The threads hold the playlist, not the session; `close` ends them.

    Args:
        loaded: the pipeline's load parameters.
        cache: clips with a fixed seed, shared with other sessions.
    """

    def __init__(self, loaded: Mapping[str, Any], cache: ClipCache) -> None:
        self.playlist = Playlist(cache)
        self._reader = ParameterReader(loaded)
        self._player = Player(self.playlist)
        self._init_cache = False  # the last call had `init_cache`
        self._thread: Callable[[], threading.Thread | None] = lambda: None  # a weak reference
        fetch = Fetcher(self.playlist, connection.connect).run
        threading.Thread(target=fetch, name="ltxq-fetcher", daemon=True).start()
        threading.Thread(
            target=decode, args=(self.playlist,), name="ltxq-decoder", daemon=True
        ).start()

    @property
    def free(self) -> bool:
        """Whether no living thread of Scope's uses this session."""
        thread = self._thread()
        return thread is None or not thread.is_alive()

    def belongs_to(self, thread: threading.Thread) -> bool:
        """Whether `thread` uses this session."""
        return self._thread() is thread

    def begin(self, thread: threading.Thread) -> None:
        """Hand the session to `thread`. It gets no frame that the thread before it was playing."""
        self._thread = weakref.ref(thread)
        self._init_cache = True
        self._reader.start_session()
        self._player.start_session()
        self.playlist.restart(new_session=True)

    def output(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The output of one call by Scope; {}: none is due."""
        init_cache = bool(parameters.get("init_cache"))
        if init_cache and not self._init_cache:  # Scope's reset button
            self.playlist.restart(new_session=False)
        self._init_cache = init_cache  # Scope repeats `init_cache` until it gets an output
        self.playlist.set_request(self._read(parameters))
        return self._player.output()

    def close(self) -> None:
        """End the two threads and cancel the session's jobs."""
        self.playlist.close()

    def _read(self, parameters: Mapping[str, Any]) -> PlaybackRequest | None:
        try:
            return self._reader.read(parameters)
        except InvalidRequest as exc:
            # Only the text: the exception's traceback would keep the pipeline alive.
            error = f"A parameter is invalid, so no clip is requested: {exc}"
            if error != self.playlist.last_error:
                log.warning("%s", error)
            self.playlist.last_error = error
            return None


class Sessions:
    """A pipeline's sessions.

    Scope reports neither a session's name nor its end, but calls for each from a thread of its own.
    When that thread has ended, the next new thread takes its session over, so that a reloaded page
    gets the clip that is already being generated. A call for another session closes it instead.

    Args:
        make: makes a session.
    """

    def __init__(self, make: Callable[[], Session]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._sessions = [make()]

    @property
    def last_error(self) -> str | None:
        """The error of the first session that has one; None: no error."""
        errors = (session.playlist.last_error for session in self._sessions)
        return next(filter(None, errors), None)

    def of(self, thread: threading.Thread) -> Session:
        """The session of `thread`; at the thread's first call it begins."""
        with self._lock:
            session = next((s for s in self._sessions if s.belongs_to(thread)), None)
            if session is None:
                session = next((s for s in self._sessions if s.free), None) or self._make()
                session.begin(thread)
                self._sessions = [*(s for s in self._sessions if s is not session), session]
            for other in [s for s in self._sessions if s is not session and s.free]:
                other.close()
                self._sessions.remove(other)
            return session

    def close(self) -> None:
        """Close all sessions."""
        with self._lock:
            for session in self._sessions:
                session.close()
