"""`ClipFile`, where a client behaves in a way that a test cannot wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from redis import ConnectionPool

pytest.importorskip("fastapi")

from ltxq.gateway.access.http_limits import ABORT
from ltxq.gateway.access.rates import Rates
from ltxq.gateway.routes import clip_file
from ltxq.gateway.routes.clip_file import ClipFile, Wanted
from ltxq.settings import Settings


class Clips:
    """One endless file."""

    def __init__(self) -> None:
        self.closed = False

    @asynccontextmanager
    async def open(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield bytes(10)

        try:
            yield SimpleNamespace(first=0, size=10**9, total=10**9, chunks=chunks())
        finally:
            self.closed = True


def test_a_client_that_reads_nothing_for_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_file, "SEND_SECONDS", 0.05)

    async def serve() -> tuple[list[str], Clips]:
        clips, aborted, done = Clips(), asyncio.Event(), []

        async def send(message: Any) -> None:
            done.append(message["type"])
            if len(done) == 3:
                await asyncio.Event().wait()

        async def receive() -> Any:
            await aborted.wait()
            return {"type": "http.disconnect"}

        answer = ClipFile(
            Wanted("http://x", head=False, part=None, size=None, what="video_1"),
            {},
            clips=clips,  # type: ignore[arg-type]
            rates=Rates(Settings(), ConnectionPool()),
            owner=None,
        )
        async with asyncio.timeout(10):
            await answer({ABORT: aborted.set}, receive, send)
        return done, clips

    done, clips = asyncio.run(serve())
    assert done == ["http.response.start", "http.response.body", "http.response.body"]
    assert clips.closed
