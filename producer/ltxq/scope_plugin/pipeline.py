"""The pipeline class that Scope creates, calls and drops. Scope calls it about 100 times a second,
from one thread per session, and does not report when it drops it.
"""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Any

from scope.core.pipelines.interface import Pipeline

from ltxq.scope_plugin.clip_cache import ClipCache
from ltxq.scope_plugin.config import Ltx2QueueConfig
from ltxq.scope_plugin.session import Session, Sessions

log = logging.getLogger("ltxq.scope")


class Ltx2QueuePipeline(Pipeline):  # type: ignore[misc]  # Scope has no types here
    """Plays clips from an ltxq queue one after the other, with sound.

    Each session has a fetcher and a decoder thread. They do not hold the pipeline, so that it is
    freed when Scope drops it; that closes the sessions and ends the threads.
    """

    @classmethod
    def get_config_class(cls) -> type[Ltx2QueueConfig]:
        """The settings that Scope shows."""
        return Ltx2QueueConfig

    def __init__(self, **parameters: Any) -> None:
        """`parameters`: the settings' defaults and load parameters; unknown ones are ignored."""
        super().__init__()
        cache = ClipCache()
        self._sessions = Sessions(lambda: Session(parameters, cache))
        self._last_logged: str | None = None  # the plugin's own last error in the log
        weakref.finalize(self, self._sessions.close)

    @property
    def last_error(self) -> str | None:
        """Why no clip plays; None: no error."""
        return self._sessions.last_error

    def __call__(self, **parameters: Any) -> dict[str, Any]:
        """A few frames with their sound and time stamps; {}: none are due. Never raises."""
        session = None
        try:
            session = self._sessions.of(threading.current_thread())
            return session.output(parameters)
        except Exception as exc:  # Scope would call again at once, without a pause
            error = (
                f"The Scope plugin failed ({type(exc).__name__}: {exc}). The log has the traceback."
            )
            if error != self._last_logged:
                log.exception("%s", error)
            self._last_logged = error
            if session is not None:
                session.playlist.last_error = error
            return {}
