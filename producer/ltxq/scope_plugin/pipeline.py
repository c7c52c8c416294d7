"""The pipeline as Scope sees it: a class it makes, calls 100 times a second from a thread of its
own for each session, and drops without a word.
"""

from __future__ import annotations

import logging
import threading
import weakref
from fractions import Fraction
from typing import Any

from scope.core.pipelines.interface import Pipeline
from scope.server.media_packets import MediaTimestamp

from ltxq.errors import InvalidRequest
from ltxq.scope_plugin import fetcher
from ltxq.scope_plugin.config import Ltx2QueueConfig
from ltxq.scope_plugin.decoder import decode
from ltxq.scope_plugin.player import Player
from ltxq.scope_plugin.playlist import Playlist
from ltxq.scope_plugin.wish import Wish, Wishes

log = logging.getLogger("ltxq.scope")


class Ltx2QueuePipeline(Pipeline):  # type: ignore[misc]  # Scope has no types here
    """Plays clips from an ltxq queue, one after the other, with sound.

    Two threads of its own fetch and decode. They hold the playlist, not the pipeline, so that
    Scope's dropping it closes the playlist and ends them.
    """

    @classmethod
    def get_config_class(cls) -> type[Ltx2QueueConfig]:
        """The schema Scope shows."""
        return Ltx2QueueConfig

    def __init__(self, **parameters: Any) -> None:
        """`parameters`: the schema's defaults and load parameters; unknown ones are ignored."""
        super().__init__()
        self._wishes = Wishes(parameters)
        self._playlist = Playlist()
        self._player = Player(self._playlist, _stamp)
        self._starting = False  # the last call had `init_cache`
        self._caller: weakref.ref[threading.Thread] | None = None
        weakref.finalize(self, self._playlist.close)
        for name, work in (
            ("ltxq-fetcher", fetcher.Fetcher(self._playlist, fetcher.connect).run),
            ("ltxq-decoder", lambda playlist=self._playlist: decode(playlist)),
        ):
            threading.Thread(target=work, name=name, daemon=True).start()

    @property
    def last_error(self) -> str | None:
        """Why no clip comes; None where nothing is wrong."""
        return self._playlist.last_error

    def __call__(self, **parameters: Any) -> dict[str, Any]:
        """A few frames with their sound and time stamps, or {}: nothing is due. Never raises."""
        try:
            self._notice_a_new_start(bool(parameters.get("init_cache")))
            self._playlist.want(self._wish(parameters))
            return self._player.output()
        except Exception as exc:  # Scope would call again at once, and without end
            why = f"The Scope plugin failed ({type(exc).__name__}: {exc})."
            if why != self._playlist.last_error:
                log.exception("%s", why)
            self._playlist.note(why)
            return {}

    def _wish(self, parameters: dict[str, Any]) -> Wish | None:
        try:
            return self._wishes.read(parameters)
        except InvalidRequest as exc:
            why = str(exc)  # the error itself would keep the pipeline alive in a log's memory
            if why != self._playlist.last_error:
                log.warning("%s", why)
            self._playlist.note(why)
            return None

    def _notice_a_new_start(self, init_cache: bool) -> None:
        """Scope tells of a new session by `init_cache` from a new thread; of its reset button by
        `init_cache` in the midst of a session. It stays on until the next output.
        """
        news, self._starting = init_cache and not self._starting, init_cache
        if not init_cache:
            return
        caller = threading.current_thread()
        if self._caller is None or self._caller() is not caller:
            self._caller = weakref.ref(caller)
            self._wishes.start_session()
            self._player.start_session()
            self._playlist.start_again(new_session=True)
        elif news:
            self._playlist.start_again(new_session=False)


def _stamp(pts: int, unit: Fraction) -> Any:
    return MediaTimestamp(pts=pts, time_base=unit)
