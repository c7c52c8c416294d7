"""The thread that turns clips into frames, a little ahead of what is played."""

from __future__ import annotations

import logging

from ltxq.scope_plugin.playlist import Playlist
from ltxq.scope_plugin.showing import Showing

log = logging.getLogger("ltxq.scope")


def decode(playlist: Playlist) -> None:
    """Decode one clip after the other until the playlist is closed."""
    while (showing := playlist.next_showing()) is not None:
        try:
            _decode(playlist, showing)
        except Exception as exc:  # noqa: BLE001  FFmpeg's errors are many, and a thread must go on
            why = f"A clip cannot be decoded ({type(exc).__name__}: {exc})."
            log.error("%s", why)
            playlist.refuse(showing.request, why)
        playlist.end(showing)


def _decode(playlist: Playlist, showing: Showing) -> None:
    showing.rate, showing.sound = showing.clip.rate(), showing.clip.sound()
    for picture in showing.clip.pictures(playlist.size):
        if not playlist.put(showing, picture):
            break
