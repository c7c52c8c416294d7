"""The sessions of a pipeline. Scope has one pipeline object for all of them (browser tabs, say),
and calls it from one thread for each.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from ltxq.errors import InvalidRequest
from ltxq.scope_plugin import fetcher
from ltxq.scope_plugin.decoder import decode
from ltxq.scope_plugin.kept import KeptClips
from ltxq.scope_plugin.playback_request import PlaybackRequest, PlaybackRequests
from ltxq.scope_plugin.player import Player, Stamp
from ltxq.scope_plugin.playlist import Playlist

log = logging.getLogger("ltxq.scope")


class Session:
    """One stream: what its client wants, what plays, and the two threads that supply it.

    The threads hold the playlist, not the session; `close` ends them.

    Args:
        loaded: the pipeline's load parameters.
        kept: clips of fixed seeds, shared with other sessions.
        stamp: makes Scope's MediaTimestamp.
    """

    def __init__(self, loaded: Mapping[str, Any], kept: KeptClips, stamp: Stamp) -> None:
        self._wishes = PlaybackRequests(loaded)
        self._playlist = Playlist(kept)
        self._player = Player(self._playlist, stamp)
        self._starting = False  # the last call had `init_cache`
        self._caller: weakref.ref[threading.Thread] | None = None
        for name, work in (
            ("ltxq-fetcher", fetcher.Fetcher(self._playlist, fetcher.connect).run),
            ("ltxq-decoder", lambda playlist=self._playlist: decode(playlist)),
        ):
            threading.Thread(target=work, name=name, daemon=True).start()

    @property
    def last_error(self) -> str | None:
        """Why no clip comes; None where nothing is wrong."""
        return self._playlist.last_error

    @property
    def free(self) -> bool:
        """Whether no thread of Scope's calls: none has yet, or the one that did has ended."""
        caller = None if self._caller is None else self._caller()
        return caller is None or not caller.is_alive()

    def belongs_to(self, thread: threading.Thread) -> bool:
        """Whether that thread calls for this session."""
        return self._caller is not None and self._caller() is thread

    def begin(self, thread: threading.Thread) -> None:
        """`thread` calls from now on; it gets nothing that the thread before it was playing."""
        self._caller = weakref.ref(thread)
        self._starting = True
        self._wishes.start_session()
        self._player.start_session()
        self._playlist.start_again(new_session=True)

    def output(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """What Scope gets for one call; {}: nothing is due."""
        starting = bool(parameters.get("init_cache"))
        if starting and not self._starting:  # Scope's reset button
            self._playlist.start_again(new_session=False)
        self._starting = starting  # Scope leaves it on until the next output
        self._playlist.want(self._wish(parameters))
        return self._player.output()

    def note(self, why: str | None) -> None:
        """Why nothing comes; None: all is well."""
        self._playlist.note(why)

    def close(self) -> None:
        """End the two threads. What is queued for this session is cancelled."""
        self._playlist.close()

    def _wish(self, parameters: Mapping[str, Any]) -> PlaybackRequest | None:
        try:
            return self._wishes.read(parameters)
        except InvalidRequest as exc:
            why = str(exc)  # the error itself would keep the pipeline alive in a log's memory
            if why != self.last_error:
                log.warning("%s", why)
            self.note(why)
            return None


class Sessions:
    """A pipeline's sessions, by the threads that call.

    Scope does not say which session calls, nor when one ends, but each has a thread of its own.
    When that thread has ended, the next new thread takes the session over: a page that is reloaded
    then gets the clip that is being made for it. While other sessions play, an ended one is closed.

    Args:
        make: makes a session.
    """

    def __init__(self, make: Callable[[], Session]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._sessions = [make()]

    @property
    def last_error(self) -> str | None:
        """Why no clip comes in one of the sessions; None where nothing is wrong."""
        return next((s.last_error for s in self._sessions if s.last_error), None)

    def of(self, thread: threading.Thread) -> Session:
        """The session that `thread` calls for; at its first call one that begins now."""
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
        """The pipeline is gone: all threads end."""
        with self._lock:
            for session in self._sessions:
                session.close()
