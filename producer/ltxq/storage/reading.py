"""Reads objects as a stream, for a gateway that sends them on: no thread and no file for each."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from ltxq.errors import LtxqError, StorageUnavailable
from ltxq.printable import one_line
from ltxq.proxies import trust_env
from ltxq.storage.client import CONNECT_TIMEOUT, READ_TIMEOUT, Calls
from ltxq.storage.errors import answered, without_trust
from ltxq.storage.signing import Signer

SIGNED_SECONDS = 300  # of a URL that is used at once; clocks may differ a little
STREAMS_MOST = 1000  # objects that are read at the same time
WAIT_SECONDS = 5.0  # for one of those to end
ERROR_MOST = 8 * 1024  # bytes of an error's answer that are read
# Bytes of the socket's receive buffer. uvloop reads the whole buffer before it pauses, and the
# kernel's default grows to megabytes for each download.
READ_AHEAD = 128 * 1024

_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


@dataclass(frozen=True)
class Opened:
    """An object, or a part of it, about to be read."""

    first: int  # position of its first byte in the object
    size: int  # bytes that come
    total: int  # bytes of the whole object
    chunks: AsyncIterator[bytes]


class Reader:
    """Reads objects of one bucket, on one event loop."""

    def __init__(self, calls: Calls, signer: Signer) -> None:
        self._calls = calls
        self._signer = signer
        self._http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT, pool=WAIT_SECONDS),
            limits=httpx2.Limits(max_connections=STREAMS_MOST, max_keepalive_connections=20),
            verify=calls.trust,
            trust_env=trust_env(str(calls.client.meta.endpoint_url)),
            headers={"accept-encoding": "identity"},
            follow_redirects=False,
        )

    def sign(self, key: str, *, head: bool) -> str:
        """The URL to open. It may wait for credentials: call it in a thread."""
        method = "head_object" if head else "get_object"
        return self._signer.inner_url(key, SIGNED_SECONDS, method=method)

    @asynccontextmanager
    async def open(
        self, url: str, *, head: bool = False, part: tuple[int, int] | None = None
    ) -> AsyncIterator[Opened | None]:
        """The object behind a URL of `sign`; None: it is not there.

        Args:
            part: its first and its last byte; None: the whole object.

        Raises:
            StorageRefused, StorageUnavailable
        """
        headers = {}
        if part is not None:
            headers["range"] = f"bytes={part[0]}-{part[1]}"
        request = self._http.build_request("HEAD" if head else "GET", url, headers=headers)
        try:
            try:
                answer = await self._http.send(request, stream=True)
            except (httpx2.NetworkError, httpx2.RemoteProtocolError):
                # The server may have closed the connection that was idle here.
                answer = await self._http.send(request, stream=True)
        except httpx2.HTTPError as exc:
            raise self._away(exc) from exc
        try:
            if answer.status_code == 404:
                yield None
                return
            if answer.status_code not in (200, 206):
                raise await self._refusal(answer, head=head)
            _read_little_ahead(answer)
            yield self._opened(answer, part)
        finally:
            await answer.aclose()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def _opened(self, answer: httpx2.Response, part: tuple[int, int] | None) -> Opened:
        length = answer.headers.get("content-length", "")
        kind, coding = (answer.headers.get(f"content-{name}", "") for name in ("type", "encoding"))
        if kind.startswith("text/html") or coding not in ("", "identity", "aws-chunked"):
            raise StorageUnavailable(
                f"The storage sent something else than the object, {self._calls.place}: "
                f"{one_line(f'{kind} {coding}'.strip()[:80])}.",
                hint="No S3 server answers there, or a proxy in front of it changes its answers.",
            )
        if not length.isdecimal():
            raise StorageUnavailable(
                f"The storage does not say how long an object is, {self._calls.place}.",
                hint="No S3 server answers there, or a proxy in front of it changes its answers.",
            )
        if part is None:
            return Opened(0, int(length), int(length), self._chunks(answer, 0, int(length)))
        # Some servers answer 200 with the part; others with the whole object.
        if match := _RANGE.fullmatch(answer.headers.get("content-range", "")):
            first, last, total = map(int, match.groups())
            skip, size = 0, last - first + 1
        else:
            first, total = part[0], int(length)
            skip, size = first, total - first
        size = min(size, part[1] - first + 1)
        if first != part[0] or size < 1 or (match is None and answer.status_code == 206):
            raise self._away(None)
        return Opened(first, size, total, self._chunks(answer, skip, size))

    async def _chunks(self, answer: httpx2.Response, skip: int, left: int) -> AsyncIterator[bytes]:
        try:
            async for chunk in answer.aiter_raw():
                kept = chunk[skip:][:left]
                skip, left = max(0, skip - len(chunk)), left - len(kept)
                if kept:
                    yield kept
                if not left:
                    return
        except httpx2.HTTPError as exc:
            raise self._away(exc) from exc
        if left:
            raise self._away(None)

    async def _refusal(self, answer: httpx2.Response, *, head: bool) -> LtxqError:
        from botocore.exceptions import ClientError

        body = b""
        try:
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > ERROR_MOST:
                    break
        except httpx2.HTTPError as exc:
            return self._away(exc)
        text = body.decode("utf-8", "replace")
        status = answer.status_code
        fields: dict[str, Any] = {
            "Error": {"Code": _tag(text, "Code") or str(status), "Message": _tag(text, "Message")},
            "ResponseMetadata": {"HTTPStatusCode": status},
        }
        refused = ClientError(fields, "HeadObject" if head else "GetObject")
        return answered(refused, self._calls.place)

    def _away(self, exc: Exception | None) -> LtxqError:
        if exc is not None and (untrusted := without_trust(exc, self._calls.place)):
            return untrusted
        why = "it sent another part than asked" if exc is None else type(exc).__name__
        return StorageUnavailable(
            f"An object cannot be read, {self._calls.place}: {why}.",
            hint="Check that the storage runs, and the network between.",
        )


def _read_little_ahead(answer: httpx2.Response) -> None:
    connection = answer.extensions["network_stream"].get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_AHEAD)


def _tag(text: str, name: str) -> str:
    match = re.search(f"<{name}>([^<]*)</{name}>", text)
    return match[1] if match else ""
