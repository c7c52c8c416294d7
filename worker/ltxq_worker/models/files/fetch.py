"""Fetches one file from the hub or its local cache, and checks it; `places.py` gives it its name.

Why not huggingface_hub's own transfer: `hf_hub_download(local_dir=…)` of 2.4.0 deletes its partial
file when it stops, so that an interrupted checkpoint of 43 GB would start again from zero; and
`http_get` appends whatever a server answers, such as a login page, to a partial file. Session,
token, redirects, waiting and errors are the library's.

The URL names a commit, so that its content never changes, and the partial file has the content's
hash in its name. No If-Range is sent: the host that holds the files has ETags of its own.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from ltxq.errors import ModelUnusable
from ltxq_worker.models.files.hub import HubFile
from ltxq_worker.models.files.hub_errors import AGAIN, HubUnavailable
from ltxq_worker.models.files.record import Digest, pieces_of

log = logging.getLogger("ltxq.worker")

TRIES = 5  # after broken connections without a byte in between
_WAIT = 1.0  # seconds between two of them
_PIECE = 1 << 20  # bytes written at once
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)")

At = Callable[[int], None]  # receives the bytes of this file that are here


class _CannotResumeError(Exception):
    """The server's answer does not continue the partial file."""


def fetch(file: HubFile, at: At) -> str:
    """Download the whole of `file` into its partial file, and continue a partial file that exists;
    returns the SHA-256.

    Raises:
        HubUnavailable: the connection broke, or another server answers.
        ModelUnusable: the content is not the hub's.
        Errors of huggingface_hub and of the disk, for `advice`.
    """
    return _from_cache(file, at) or _from_hub(file, at)


def _from_cache(file: HubFile, at: At) -> str | None:
    """Link or copy the file from the hub's local cache; returns its SHA-256, or None if it is
    missing or damaged.
    """
    if file.cached is None:
        return None
    digest, size = Digest(file.size, file.etag), 0
    with (Path(os.devnull) if file.linkable else file.part).open("wb") as target:
        try:
            for piece in pieces_of(file.cached):
                target.write(piece)
                digest.update(piece)
                at(size := size + len(piece))
        except PermissionError:
            return None
    if not digest.agrees:
        if not file.linkable:
            file.part.unlink()
        return None
    if file.linkable:
        # The link shares its content with the cache: writing into one would change the other.
        # Neither ltxq nor huggingface_hub writes into a finished file; both replace it.
        file.part.unlink(missing_ok=True)
        os.link(file.cached, file.part)
    return digest.sha256


def _from_hub(file: HubFile, at: At) -> str:
    """Download the missing part of `file`; returns its SHA-256.

    A partial file may hold what a server sent by mistake: a continued one that comes out wrong is
    fetched once more from the start.
    """
    continued = file.begun > 0
    _transfer(file, at)
    digest = Digest.of(file.part, file.size, file.etag)
    if not digest.agrees and continued:
        log.warning("%s was continued and came out wrong: it is fetched anew", file.path)
        file.part.unlink()
        _transfer(file, at)
        digest = Digest.of(file.part, file.size, file.etag)
    if not digest.agrees:
        file.part.unlink()
        raise ModelUnusable(
            f"{file.name} arrived damaged: its hash is not {file.etag}.",
            hint="It was deleted. Run the same command again; if this happens again, look at "
            "the disk and at proxies on the way.",
        )
    return digest.sha256


def _transfer(file: HubFile, at: At) -> None:
    """Fill the partial file to its size, over broken connections."""
    with file.part.open("ab") as part:
        part.truncate(file.begun)
        part.seek(0, os.SEEK_END)
        tries, most = TRIES, part.tell()
        while part.tell() < file.size:
            broken: HTTPError | None = None
            try:
                _receive(file, part, at)
            except _CannotResumeError:
                part.truncate(0)
                part.seek(0)
            except HfHubHTTPError:
                raise
            except HTTPError as exc:
                log.warning("%s: %s", file.name, exc)
                broken = exc
            tries = TRIES if part.tell() > most else tries - 1
            most = max(most, part.tell())
            if tries < 0 and part.tell() < file.size:
                raise broken or HubUnavailable(
                    f"{file.name} ended before it was complete.", hint=AGAIN
                )
            if broken:
                time.sleep(_WAIT)
        part.flush()
        os.fsync(part.fileno())  # it will be noted as whole


def _receive(file: HubFile, part: IO[bytes], at: At) -> None:
    """Append one answer's body, if it is the rest of the file, or replace the part by the whole."""
    start = part.tell()
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with http_stream_backoff(
        "GET",
        file.url,
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        retry_on_exceptions=(),
        retry_on_status_codes=(408, 429),
    ) as response:
        if start and response.status_code == 416:
            raise _CannotResumeError
        hf_raise_for_status(response)
        begin = _begin(response, file, start)
        part.truncate(begin)
        part.seek(begin)
        at(begin)
        for piece in response.iter_bytes(_PIECE):
            if part.tell() + len(piece) > file.size:
                raise _foreign(file, f"sends more than {file.size:,} bytes")
            part.write(piece)
            at(part.tell())


def _begin(response: Any, file: HubFile, start: int) -> int:
    """The offset in the file of an answer's body: `start`, or 0 for the whole file.

    Raises:
        HubUnavailable: it is another document.
    """
    headers = response.headers
    if "html" in headers.get("Content-Type", "") and not file.name.endswith(".html"):
        raise _foreign(file, "sends a web page, such as a login page")
    encoded = headers.get("Content-Encoding", "identity") != "identity"
    if response.status_code == 206:
        answered = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if not answered or encoded or int(answered[1]) != start:
            if start:
                raise _CannotResumeError
            raise _foreign(file, "sends a part that was not asked for")
        if answered[2] not in ("*", str(file.size)):
            raise _foreign(file, f"has a file of {answered[2]} bytes instead of {file.size:,}")
        return start
    length = headers.get("Content-Length", str(file.size))
    if response.status_code != 200 or (not encoded and length != str(file.size)):
        raise _foreign(
            file,
            f"sends {length[:20]} bytes (HTTP {response.status_code}) instead of {file.size:,}",
        )
    return 0


def _foreign(file: HubFile, what: str) -> HubUnavailable:
    return HubUnavailable(
        f"The server that answers for {file.name} {what}: it is not the hub.",
        hint=f"Check HF_ENDPOINT, the network's login and proxies on the way. {AGAIN}",
    )
