"""A stub of an S3 server that needs only the standard library, for benchmarks only.

Keeps buckets in memory, and supports the calls that ltxq makes through boto3: put (whole or
multipart), get, head, list, delete. Checks no signatures, and loses its objects when it ends.

`python bench/harness/s3_stub.py` serves on a free port of loopback and prints it.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
PAGE = 1000  # keys in one answer at most


class Object:
    """A stored object."""

    def __init__(self, content: bytes, kind: str) -> None:
        self.content, self.kind, self.at = content, kind, time.time()
        self.etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


class Handler(BaseHTTPRequestHandler):
    """Handles one connection; all connections share the objects."""

    protocol_version = "HTTP/1.1"
    lock: ClassVar[threading.Lock] = threading.Lock()
    objects: ClassVar[dict[str, Object]] = {}  # by bucket/key
    uploads: ClassVar[dict[str, dict[int, bytes]]] = {}  # parts by number, by upload

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if "uploadId" in self.query:
            with self.lock:
                parts = self.uploads[self.query["uploadId"]]
                parts[int(self.query["partNumber"])] = content
            self.answer(headers={"ETag": Object(content, "").etag})
            return
        self.answer(headers={"ETag": self.store(content, self.headers["Content-Type"])})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if "uploads" in self.query:
            upload = f"upload-{time.monotonic_ns()}"
            with self.lock:
                self.uploads[upload] = {}
            self.answer(f"<InitiateMultipartUploadResult {XMLNS}><UploadId>{upload}</UploadId>"
                        "</InitiateMultipartUploadResult>")  # fmt: skip
        elif "uploadId" in self.query:
            with self.lock:
                parts = self.uploads.pop(self.query["uploadId"])
            etag = self.store(b"".join(parts[number] for number in sorted(parts)), "video/mp4")
            self.answer(f"<CompleteMultipartUploadResult {XMLNS}><ETag>{escape(etag)}</ETag>"
                        "</CompleteMultipartUploadResult>")  # fmt: skip
        elif "delete" in self.query:
            keys = [key.text for key in ElementTree.fromstring(body).iter() if _is(key, "Key")]  # noqa: S314 - sent by the bench
            with self.lock:
                for key in keys:
                    self.objects.pop(f"{self.key}{key}", None)
            gone = "".join(f"<Deleted><Key>{escape(key or '')}</Key></Deleted>" for key in keys)
            self.answer(f"<DeleteResult {XMLNS}>{gone}</DeleteResult>")
        else:
            self.refuse(HTTPStatus.NOT_IMPLEMENTED, "NotImplemented")

    def do_GET(self) -> None:
        if "list-type" in self.query:
            self.answer(self.listing())
        elif (found := self.objects.get(self.key)) is None:
            self.refuse(HTTPStatus.NOT_FOUND, "NoSuchKey")
        else:
            self.give(found)

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        with self.lock:
            if "uploadId" in self.query:
                self.uploads.pop(self.query["uploadId"], None)
            else:
                self.objects.pop(self.key, None)
        self.answer(status=HTTPStatus.NO_CONTENT)

    @property
    def query(self) -> dict[str, str]:
        """The URL's parameters."""
        fields = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        return {name: values[0] for name, values in fields.items()}

    @property
    def key(self) -> str:
        """`bucket/key`, or `bucket/` for a request to a bucket."""
        bucket, _, key = unquote(urlsplit(self.path).path).removeprefix("/").partition("/")
        return f"{bucket}/{key}"

    def store(self, content: bytes, kind: str | None) -> str:
        """Store an object and return its ETag."""
        stored = Object(content, kind or "application/octet-stream")
        with self.lock:
            self.objects[self.key] = stored
        return stored.etag

    def listing(self) -> str:
        """A page of a bucket's keys, in order."""
        bucket, prefix = self.key, self.query.get("prefix", "")
        after = self.query.get("continuation-token", "")
        most = min(PAGE, int(self.query.get("max-keys", PAGE)))
        with self.lock:
            keys = sorted(
                key.removeprefix(bucket)
                for key in self.objects
                if key.startswith(f"{bucket}{prefix}") and key.removeprefix(bucket) > after
            )
            page = [(key, self.objects[f"{bucket}{key}"]) for key in keys[:most]]
        more = len(keys) > most
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(entry.content)}</Size>"
            f"<ETag>{escape(entry.etag)}</ETag><LastModified>{_iso(entry.at)}</LastModified>"
            "</Contents>"
            for key, entry in page
        )
        rest = (
            f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if more else ""
        )
        return (
            f"<ListBucketResult {XMLNS}><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{rest}{entries}</ListBucketResult>"
        )

    def give(self, found: Object) -> None:
        """Send an object, or the requested range of it."""
        content, size = found.content, len(found.content)
        headers = {"ETag": found.etag, "Last-Modified": formatdate(found.at, usegmt=True)}
        status = HTTPStatus.OK
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or ""):
            first, last = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
            content = content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            status = HTTPStatus.PARTIAL_CONTENT
        self.answer(content, found.kind, status, headers)

    def refuse(self, status: HTTPStatus, code: str) -> None:
        """Send an error in S3's format."""
        self.answer(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>", status=status)

    def answer(
        self,
        content: bytes | str = b"",
        kind: str = "application/xml",
        status: HTTPStatus = HTTPStatus.OK,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send the answer; for a HEAD request without the body."""
        body = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Do not log, since logging would cost more time than the requests."""


def _is(element: ElementTree.Element, name: str) -> bool:
    return element.tag.rpartition("}")[2] == name


def _iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(at))


def main() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(f"listening on port {server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
