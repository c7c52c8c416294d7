"""The decoder thread: decodes a playlist's clips into frames, a little ahead of playback."""

from __future__ import annotations

import logging

from ltxq.scope_plugin.frame_buffer import BufferedClip
from ltxq.scope_plugin.playlist import REJECTED, Playlist

log = logging.getLogger("ltxq.scope")


def decode(playlist: Playlist) -> None:
    """Decode clips one after the other until the playlist is closed."""
    while (clip := playlist.next_to_decode()) is not None:
        try:
            _decode_clip(playlist, clip)
        except Exception as exc:  # noqa: BLE001  FFmpeg raises many types; the thread must go on
            error = f"A clip cannot be decoded ({type(exc).__name__}: {exc}). {REJECTED}"
            log.error("%s", error)
            playlist.reject(clip.request, error)
        playlist.finish_decoding(clip)


def _decode_clip(playlist: Playlist, clip: BufferedClip) -> None:
    clip.frame_rate, clip.sound = clip.source.frame_rate(), clip.source.sound()
    for picture in clip.source.pictures(playlist.size):
        if not playlist.add_frame(clip, picture):
            break
