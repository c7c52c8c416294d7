"""A front before a real S3 server that refuses what some S3-compatible stores refuse.

It passes on the rest, and notes every request. It also is an HTTP proxy: with it in `HTTP_PROXY`
any host name reaches the server, as `clips.s3.test`, the bucket in the host's name.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tls import serving

MOST = 64 * 2**20  # bytes of a body
SUFFIX = ".s3.test"  # of hosts that begin with a bucket


@dataclass
class Request:
    """A request as it came."""

    method: str
    host: str
    path: str  # with the query
    headers: dict[str, str]
    body: bytes = field(repr=False, default=b"")

    @property
    def operation(self) -> str:
        """Roughly, the name of the operation in S3's API."""
        query = urlsplit(self.path).query
        if self.method == "POST" and re.search(r"(^|&)delete", query):
            return "DeleteObjects"
        if self.method == "POST" and re.search(r"(^|&)uploads", query):
            return "CreateMultipartUpload"
        if self.method == "GET" and "list-type" in query:
            return "ListObjectsV2"
        if self.method == "PUT" and "uploadId" not in query:
            return "PutObject"
        if self.method == "DELETE" and "uploadId" not in query:
            return "DeleteObject"
        return {"GET": "GetObject", "HEAD": "HeadObject"}.get(self.method, self.method)


# An HTTP status and S3's error code, perhaps with ": " and its message; or with 200 the whole body.
Answer = tuple[int, str]
Rule = Callable[[Request], Answer | None]


def no_lists_of_keys(status: int = 400, code: str = "MissingContentMD5") -> Rule:
    """Refuses DeleteObjects."""
    return lambda asked: (status, code) if asked.operation == "DeleteObjects" else None


def no_new_checksums(asked: Request) -> Answer | None:
    """Refuses checksums in trailers, chunked signing, and Amazon's newer checksums elsewhere."""
    headers = {name.lower(): text for name, text in asked.headers.items()}
    chunked = "aws-chunked" in headers.get("content-encoding", "")
    streaming = headers.get("x-amz-content-sha256", "").startswith("STREAMING-")
    if chunked or streaming or "x-amz-trailer" in headers or "transfer-encoding" in headers:
        return 501, "NotImplemented"
    if asked.operation != "DeleteObjects" and any("checksum" in name for name in headers):
        return 400, "InvalidRequest"
    return None


def only_with_md5(asked: Request) -> Answer | None:
    """Refuses a body without its MD5 in the header, as for a bucket with Object Lock."""
    if not asked.body or asked.operation == "CreateMultipartUpload":
        return None
    if asked.method == "POST" and "uploadId" in asked.path:  # the list of parts
        return None
    right = base64.b64encode(hashlib.md5(asked.body, usedforsecurity=False).digest()).decode()
    given = {name.lower(): text for name, text in asked.headers.items()}.get("content-md5")
    return None if given == right else (400, "InvalidRequest")


def only_virtual_hosts(asked: Request) -> Answer | None:
    """Refuses the bucket in the path."""
    return None if asked.host.endswith(SUFFIX) else (403, "SecondLevelDomainForbidden")


def only_encrypted(*, key: str | None = None) -> Rule:
    """Refuses to write without the header for encryption, as a bucket's policy can."""

    def rule(asked: Request) -> Answer | None:
        headers = {name.lower(): text for name, text in asked.headers.items()}
        if asked.operation not in ("PutObject", "CreateMultipartUpload"):
            return None
        sse, used = "x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id"
        right = sse in headers and (key is None or headers.get(used) == key)
        return None if right else (403, "AccessDenied")

    return rule


def keeps(needle: str) -> Rule:
    """Refuses to delete keys with `needle` in them, one by one and in lists."""

    def rule(asked: Request) -> Answer | None:
        if asked.operation == "DeleteObject" and needle in asked.path:
            return 403, "AccessDenied"
        if asked.operation == "DeleteObjects" and needle.encode() in asked.body:
            return 501, "NotImplemented"
        return None

    return rule


def refuses(*operations: str, status: int = 403, code: str = "AccessDenied") -> Rule:
    """Refuses some operations."""
    return lambda asked: (status, code) if asked.operation in operations else None


class Hose:
    """Stands in for every object that is read: many bytes, as fast as they are taken.

    Args:
        size: bytes, as it says.
        cut: after so many bytes it closes the connection.
        coding: as the answer says.
    """

    def __init__(self, size: int, *, cut: int | None = None, coding: str = "identity") -> None:
        self.coding = coding
        self.size, self.cut = size, size if cut is None else cut
        self.sent = 0  # bytes of all answers
        self.open = 0  # answers that are being sent
        self.refused = threading.Event()  # a reader has closed its connection

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Send the whole object; ranges are ignored, as some servers do."""
        handler.send_response(200)
        handler.send_header("Content-Length", str(self.size))
        handler.send_header("Content-Encoding", self.coding)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        self.open += 1
        try:
            left, block = self.cut, bytes(65536)
            while left:
                sending = block[:left]
                handler.wfile.write(sending)
                left -= len(sending)
                self.sent += len(sending)
            handler.close_connection = self.cut < self.size
        except OSError:
            handler.close_connection = True
            self.refused.set()
        finally:
            self.open -= 1


class StrictS3:
    """The front, on a free port of loopback."""

    def __init__(self, target: str, *rules: Rule, certificate: Path | None = None) -> None:
        """
        Args:
            target: the server's endpoint.
            rules: each may refuse a request; the first refusal is the answer.
            certificate: with its key; None: without TLS.
        """
        self.rules = list(rules)
        self.asked: list[Request] = []
        self.hose: Hose | None = None
        front, port = self, urlsplit(target).port
        assert port is not None

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_expect_100(self) -> bool:
                self.send_response_only(100)
                self.end_headers()
                return True

            def answer(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                assert size <= MOST
                parts = urlsplit(self.path)
                path = parts.path + (f"?{parts.query}" if parts.query else "")
                host = parts.netloc or self.headers["Host"]
                asked = Request(self.command, host, path, dict(self.headers), self.rfile.read(size))
                front.asked.append(asked)
                if front.hose and asked.operation in ("GetObject", "HeadObject"):
                    front.hose.answer(self)
                    return
                for rule in front.rules:
                    if (refusal := rule(asked)) is not None:
                        self.refuse(*refusal)
                        return
                self.pass_on(asked, port)

            def pass_on(self, asked: Request, port: int) -> None:
                path = asked.path
                if asked.host.endswith(SUFFIX):
                    path = f"/{asked.host.removesuffix(SUFFIX)}{path}"
                far = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                try:
                    headers = {n: t for n, t in asked.headers.items() if n.lower() != "expect"}
                    if asked.host.endswith(SUFFIX):
                        headers["Host"] = f"127.0.0.1:{port}"
                    far.request(asked.method, path, asked.body, headers)
                    answer = far.getresponse()
                    body = answer.read()
                    self.send_response(answer.status)
                    for name, text in answer.getheaders():
                        if name.lower() not in (
                            "transfer-encoding",
                            "connection",
                            "date",
                            "server",
                        ):
                            self.send_header(name, text)
                    if answer.getheader("Content-Length") is None:
                        self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    if asked.method != "HEAD":
                        self.wfile.write(body)
                finally:
                    far.close()

            def refuse(self, status: int, code: str) -> None:
                name, _, message = code.partition(": ")
                error = f"<Code>{name}</Code><Message>{message or 'not here'}</Message>"
                body = (code if status == 200 else f"<Error>{error}</Error>").encode()
                self.send_response(status)
                kind = "text/html" if status == 200 else "application/xml"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        scheme = "http"
        if certificate is not None:
            scheme, plain = "https", self._server.socket
            self._server.socket = serving(certificate).wrap_socket(
                plain, server_side=True, do_handshake_on_connect=False
            )
        self.endpoint = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def operations(self) -> list[str]:
        """What was asked, in order."""
        return [asked.operation for asked in self.asked]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
