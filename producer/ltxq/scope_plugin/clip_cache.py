"""Caches the clips with a fixed seed, to play them again. All sessions share one cache."""

from __future__ import annotations

import threading
from collections import OrderedDict

from ltxq.job import VideoRequest
from ltxq.scope_plugin.clip import DownloadedClip

MAX_CLIPS, MAX_BYTES = 16, 256 * 1024**2


class ClipCache:
    """At most 16 clips and 256 MB; the least recently used clip is evicted first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By request; the most recently used clip is the last one.
        self._clips: OrderedDict[str, DownloadedClip] = OrderedDict()

    def get(self, request: VideoRequest) -> DownloadedClip | None:
        """The request's clip, which counts as used now."""
        with self._lock:
            clip = self._clips.get(_key(request))
            if clip is not None:
                self._clips.move_to_end(_key(request))
            return clip

    def put(self, request: VideoRequest, clip: DownloadedClip) -> None:
        """Cache a clip. A clip larger than the limit stays until the next one is put."""
        with self._lock:
            self._clips[_key(request)] = clip
            size = sum(len(clip.data) for clip in self._clips.values())
            while len(self._clips) > 1 and (len(self._clips) > MAX_CLIPS or size > MAX_BYTES):
                _, evicted = self._clips.popitem(last=False)
                size -= len(evicted.data)

    def discard(self, request: VideoRequest) -> None:
        """Remove the request's clip, if it is cached."""
        with self._lock:
            self._clips.pop(_key(request), None)


def _key(request: VideoRequest) -> str:
    return request.model_dump_json()
