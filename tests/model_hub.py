"""A server that answers as the Hugging Face hub does, and downloads from it.

The real huggingface_hub runs in a process of its own. The fixture `hub` is in `conftest.py`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import model_files
from ltxq_worker.models.catalog import CATALOG

SHA = "a" * 40  # of the newest commit
MODEL = "ltx-2-19b-distilled"
LTX, GEMMA = "Lightricks/LTX-2", "google/gemma-3-12b-it"
CHECKPOINT, UPSCALER = CATALOG[MODEL].weights.files
TOKEN = "hf_good"
FILES = {
    LTX: {CHECKPOINT: b"c" * 300_000, UPSCALER: b"u" * 1000, "ltx-2-19b-dev.safetensors": b"no"},
    GEMMA: {
        "config.json": b"{}",
        "model-00001-of-00001.safetensors": b"g" * 2000,
        "tokenizer.model": b"t",
        "README.md": b"not needed",
        "original/other.safetensors": b"not needed",
    },
}


@dataclass
class Hub:
    """What the server says, changed by each test; and what it was asked."""

    port: int = 0
    needs_token: bool = True
    access: dict[str, str] = field(default_factory=lambda: {LTX: "granted", GEMMA: "granted"})
    broken: int | None = None  # an HTTP status that everything answers
    cut_after: int | None = None  # bytes of the checkpoint, then the connection breaks
    cuts: int = 0  # how many times more
    damaged: bool = False
    cdn: bool = False  # large files lie on another host
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    tokens_on_cdn: list[str] = field(default_factory=list)
    newest: str = SHA
    older: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)  # by commit
    stall_after: int | None = None  # bytes of the checkpoint, then nothing more comes
    stalled: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    lists_hashes: bool = True  # and sizes, as the hub does where it is asked to
    etags: str = "hub"  # "sha1", "md5" or "none", as mirrors have them
    oddity: str = ""  # how the files' bodies are sent: see `send_oddly`

    @property
    def ranges(self) -> list[str]:
        return [asked_range for _, _, asked_range in self.asked if asked_range]


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    revision = SHA
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        if self.hub.broken:
            return self.reply(self.hub.broken)
        if path.startswith("/cdn/"):
            self.hub.tokens_on_cdn += self.headers.get_all("Authorization", [])
            return self.send_file(*path.removeprefix("/cdn/").rsplit("/", 1))
        token = self.headers.get("Authorization")
        if token not in (None, f"Bearer {TOKEN}"):
            return self.reply(
                401, {"X-Error-Message": "Invalid credentials in Authorization header"}
            )
        if path.startswith("/api/models/"):
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            revision = revision or self.hub.newest
            if revision not in {self.hub.newest, *self.hub.older}:
                return self.reply(404, {"X-Error-Code": "RevisionNotFound"})
            if self.hub.access[repo] == "hidden":
                return self.reply(404 if token else 401, {"X-Error-Code": "RepoNotFound"})
            siblings = [
                {"rfilename": name, **(self.listed(name, content) if self.hub.lists_hashes else {})}
                for name, content in self.files(repo, revision).items()
            ]
            about = {"id": repo, "sha": revision, "siblings": siblings}
            return self.reply(200, body=json.dumps(about))
        repo, _, name = path[1:].partition("/resolve/")
        self.revision, _, name = name.partition("/")
        if token is None and self.hub.needs_token:
            return self.reply(401, {"X-Error-Code": "GatedRepo"})
        if self.hub.access[repo] == "gated":
            return self.reply(403, {"X-Error-Code": "GatedRepo"})
        if self.hub.access[repo] == "narrow token":
            return self.reply(403, {"X-Error-Message": "Please enable access in your token"})
        if self.hub.cdn:
            return self.reply(
                302,
                {
                    "Location": f"http://localhost:{self.hub.port}/cdn/{repo}/{name}",
                    **self.about(repo, name, linked="X-Linked-"),
                },
            )
        return self.send_file(repo, name)

    def files(self, repo: str, revision: str) -> dict[str, bytes]:
        return self.hub.older[revision][repo] if revision in self.hub.older else FILES[repo]

    def listed(self, name: str, content: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        about: dict[str, Any] = {"size": len(content), "blobId": blob.hexdigest()}
        if not name.endswith(".json"):
            sha256 = hashlib.sha256(content).hexdigest()
            about["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
        return about

    def about(self, repo: str, name: str, linked: str = "") -> dict[str, str]:
        content = self.files(repo, self.revision)[name]
        etag = hashlib.sha256(content).hexdigest()
        if name.endswith(".json"):  # small: git's own hash
            blob = b"blob %d\0" % len(content) + content
            etag = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
        if self.hub.etags == "none":
            return {"X-Repo-Commit": self.revision}
        if self.hub.etags != "hub":
            etag = hashlib.new(self.hub.etags, content, usedforsecurity=False).hexdigest()
        size = {"X-Linked-Size": str(len(content))} if linked else {}
        return {"X-Repo-Commit": self.revision, f"{linked}ETag": f'"{etag}"', **size}

    def send_file(self, repo: str, name: str) -> None:
        content = self.files(repo, self.revision)[name]
        if self.hub.oddity and self.command == "GET":
            self.send_oddly(content)
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        for key, value in self.about(repo, name).items():
            self.send_header(key, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if name == CHECKPOINT and self.hub.stall_after:
            self.wfile.write(content[start : start + self.hub.stall_after])
            self.hub.stalled.set()
            self.hub.over.wait(60)
            self.close_connection = True
            return
        if name == CHECKPOINT and self.hub.cut_after and self.hub.cuts:
            self.hub.cuts -= 1
            self.wfile.write(content[start : start + self.hub.cut_after])
            self.close_connection = True
        else:
            self.wfile.write(content[start:].swapcase() if self.hub.damaged else content[start:])

    def send_oddly(self, content: bytes) -> None:
        """As captive portals, proxies and storage servers do."""
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        page = b"<html>Sign in</html>"
        whole = {"Content-Range": f"bytes 0-{len(content) - 1}/{len(content)}"}
        other = {"Content-Range": f"bytes {start}-{start + 9}/{start + 10}"}
        status, headers, body = {
            "ignores ranges": (200, {}, content),
            "refuses ranges": (416, {}, b"") if start else (200, {}, content),
            "answers another range": (206 if start else 200, whole if start else {}, content),
            "has another size": (206, other, content[:10]) if start else (200, {}, content),
            "sends a page": (200, {"Content-Type": "text/html; charset=utf-8"}, page),
            "sends a page as a file": (200, {}, page),
            "sends a page of no length": (200, {"Transfer-Encoding": "chunked"}, page),
            "sends more": (200, {"Transfer-Encoding": "chunked"}, content + b"more"),
            "compresses": (200, {"Content-Encoding": "gzip"}, gzip.compress(content)),
        }[self.hub.oddity]
        if "Transfer-Encoding" in headers:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        else:
            headers = {**headers, "Content-Length": str(len(body))}
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def reply(self, status: int, headers: dict[str, str] | None = None, body: str = "") -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        """Be quiet."""


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (Answers,), {"hub": hub}))
    hub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


DOWNLOAD = """
import json, os, sys
from pathlib import Path
from ltxq.errors import LtxqError
from ltxq_worker.models.files import fetch
from ltxq_worker.models.files.download import download

fetch._WAIT = 0.05
more = json.loads(os.environ.get("HOW", "{}"))
told, notes = [], []
def report(done, total):
    told.append([done, total])
    if len(sys.argv) > 3 and done:  # somebody else fills the disk meanwhile
        with (Path(sys.argv[2]) / "other").open("ab", buffering=0) as other:
            try:
                while other.write(bytes(4096)): pass
            except OSError: pass
try:
    folder = download(sys.argv[1], Path(sys.argv[2]), report=report, note=notes.append, **more)
    print(json.dumps({"folder": str(folder), "told": told, "notes": notes}))
except LtxqError as exc:
    print(json.dumps({"error": type(exc).__name__, "message": exc.message, "hint": exc.hint,
                      "retryable": exc.retryable}))
"""


def environment(hub: Hub, tmp_path: Path, token: str | None, **more: str) -> dict[str, str]:
    mine = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HOME": str(tmp_path / "home"),
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.port}",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "*",
        **more,
    }
    return mine if token is None else {**mine, "HF_TOKEN": token}


def download(
    hub: Hub,
    tmp_path: Path,
    *,
    token: str | None = TOKEN,
    name: str = MODEL,
    user: int | None = None,
    **more: str,
) -> dict[str, Any]:
    """What one call of `download` in a fresh process comes to."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DOWNLOAD, name, str(tmp_path / "models")],
        env=environment(hub, tmp_path, token, **more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        user=user,
    )
    assert done.returncode == 0, done.stderr
    for secret in (TOKEN, "hf_wrong"):
        assert secret not in done.stdout + done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def published() -> dict[str, dict[str, bytes]]:
    """The hub's files as a model that can be opened, with a text encoder in two shards."""
    with tempfile.TemporaryDirectory() as folder:
        root = model_files.model(Path(folder) / "model", checkpoint=CHECKPOINT)
        model_files.safetensors(root / UPSCALER, model_files.upscaler_tensors(), {})
        model_files.in_shards(root / "gemma")
        ltx = {path.name: path.read_bytes() for path in root.glob("*.safetensors")}
        gemma = {path.name: path.read_bytes() for path in (root / "gemma").iterdir()}
    return {LTX: ltx, GEMMA: {**gemma, "tokenizer.model": b"t" * 99}}


def run(
    hub: Hub, tmp_path: Path, command: str, *, before: Sequence[str] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    """`command`, which begins with "ltxq", as a user types it, with the models of `tmp_path`.

    `before`: a program that runs it.
    """
    _, *arguments = command.split()
    settings = {"LTXQ_MODEL_DIR": str(tmp_path / "models"), **more}
    return subprocess.run(
        [*before, sys.executable, "-m", "ltxq", *arguments],
        env=environment(hub, tmp_path, TOKEN, **settings),
        capture_output=True,
        text=True,
        timeout=60,
    )


def held(tmp_path: Path) -> dict[str, bytes]:
    """The hub's files that are not hidden, nor in a hidden folder."""
    models = tmp_path / "models"
    return {
        str(path.relative_to(models)): path.read_bytes()
        for path in models.rglob("*")
        if path.is_file()
        and not any(p.startswith(".") for p in path.relative_to(models).parts)
        and path.name != "SHA256SUMS"
    }


WHOLE = {
    f"{MODEL}/{CHECKPOINT}": FILES[LTX][CHECKPOINT],
    f"{MODEL}/{UPSCALER}": FILES[LTX][UPSCALER],
    "gemma-3-12b-it/config.json": b"{}",
    "gemma-3-12b-it/model-00001-of-00001.safetensors": b"g" * 2000,
    "gemma-3-12b-it/tokenizer.model": b"t",
}
