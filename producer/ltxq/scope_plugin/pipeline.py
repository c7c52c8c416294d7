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

from ltxq.scope_plugin.config import Ltx2QueueConfig
from ltxq.scope_plugin.kept import KeptClips
from ltxq.scope_plugin.session import Session, Sessions

log = logging.getLogger("ltxq.scope")


class Ltx2QueuePipeline(Pipeline):  # type: ignore[misc]  # Scope has no types here
    """Plays clips from an ltxq queue, one after the other, with sound; in each session its own.

    Each session has two threads, which fetch and decode. They do not hold the pipeline: Scope's
    dropping it closes the sessions, which ends the threads.
    """

    @classmethod
    def get_config_class(cls) -> type[Ltx2QueueConfig]:
        """The schema Scope shows."""
        return Ltx2QueueConfig

    def __init__(self, **parameters: Any) -> None:
        """`parameters`: the schema's defaults and load parameters; unknown ones are ignored."""
        super().__init__()
        kept = KeptClips()
        self._sessions = Sessions(lambda: Session(parameters, kept, _stamp))
        self._fault: str | None = None  # what the log has said of the plugin's own faults
        weakref.finalize(self, self._sessions.close)

    @property
    def last_error(self) -> str | None:
        """Why no clip comes; None where nothing is wrong."""
        return self._sessions.last_error

    def __call__(self, **parameters: Any) -> dict[str, Any]:
        """A few frames with their sound and time stamps, or {}: nothing is due. Never raises."""
        session = None
        try:
            session = self._sessions.of(threading.current_thread())
            return session.output(parameters)
        except Exception as exc:  # Scope would call again at once, and without end
            why = f"The Scope plugin failed ({type(exc).__name__}: {exc})."
            if why != self._fault:
                log.exception("%s", why)
            self._fault = why
            if session is not None:
                session.note(why)
            return {}


def _stamp(pts: int, unit: Fraction) -> Any:
    return MediaTimestamp(pts=pts, time_base=unit)
