"""Clips of fixed seeds, kept to be played again. All sessions of a pipeline share them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from ltxq.job import VideoRequest

if TYPE_CHECKING:
    from ltxq.scope_plugin.clip import DownloadedClip

KEPT_CLIPS, KEPT_BYTES = 16, 256 * 1024**2


class KeptClips:
    """At most 16 clips and 256 MB; the clip that was used least recently goes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clips: OrderedDict[str, DownloadedClip] = (
            OrderedDict()
        )  # by request, the last used at the end

    def __len__(self) -> int:
        return len(self._clips)

    def __contains__(self, request: VideoRequest) -> bool:
        with self._lock:
            return _key(request) in self._clips

    def get(self, request: VideoRequest) -> DownloadedClip | None:
        """The request's clip, which counts as used now."""
        with self._lock:
            clip = self._clips.get(_key(request))
            if clip is not None:
                self._clips.move_to_end(_key(request))
            return clip

    def keep(self, request: VideoRequest, clip: DownloadedClip) -> None:
        """Keep a clip. It stays even if it is larger than the limit, until the next one comes."""
        with self._lock:
            self._clips[_key(request)] = clip
            while len(self._clips) > 1 and (
                len(self._clips) > KEPT_CLIPS or self._bytes() > KEPT_BYTES
            ):
                self._clips.popitem(last=False)

    def forget(self, request: VideoRequest) -> None:
        """Keep the request's clip no longer."""
        with self._lock:
            self._clips.pop(_key(request), None)

    def _bytes(self) -> int:
        return sum(len(clip.data) for clip in self._clips.values())


def _key(request: VideoRequest) -> str:
    return request.model_dump_json()
