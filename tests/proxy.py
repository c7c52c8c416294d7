"""A proxy in front of a real server, which may be slow, speak TLS, lose answers or fall silent."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Self

CHUNK = 2048  # bytes


class Proxy:
    """Passes on what comes to `port` of loopback, and the answers."""

    def __init__(self, target: int, *, pause: float = 0, tls: ssl.SSLContext | None = None) -> None:
        """
        Args:
            target: the server's port on loopback.
            pause: seconds before each chunk to the server.
            tls: what a client must speak; None: as the server.
        """
        self.lost = 0  # answers
        self.target = target  # of the next connections
        self._pause, self._tls = pause, tls
        self._needle: bytes | None = None
        self._losing = 0  # answers to lose yet, to requests with the needle
        self._silent = 0  # so many of the first connections pass nothing on
        self._opened = 0  # connections
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def lose_the_answer_to(self, needle: bytes) -> None:
        """Cut the connection instead of answering the next request that has `needle` in it."""
        self._needle, self._losing = needle, 1

    def lose_answers_to(self, needle: bytes) -> None:
        """The same of all such requests, until `lose_nothing`."""
        self._needle, self._losing = needle, 1_000_000

    def lose_nothing(self) -> None:
        """Pass on all answers again."""
        self._losing = 0

    def fall_silent(self) -> None:
        """Pass on nothing more in the connections that are open: their other end has vanished."""
        self._silent = self._opened

    def stop(self) -> None:
        self._ended.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._opened += 1
            threading.Thread(target=self._serve, args=(near, self._opened), daemon=True).start()

    def _serve(self, near: socket.socket, number: int) -> None:
        try:
            if self._tls:
                near = self._tls.wrap_socket(near, server_side=True)
            far = socket.create_connection(("127.0.0.1", self.target))
        except OSError:  # ssl's errors too: a client that does not trust us
            near.close()
            return
        cut = threading.Event()
        answers = threading.Thread(target=self._answer, args=(far, near, cut, number), daemon=True)
        answers.start()
        with far, _shut(far):
            try:
                while data := near.recv(CHUNK):
                    if number <= self._silent:
                        continue
                    self._ended.wait(self._pause)
                    if self._losing and self._needle is not None and self._needle in data:
                        self._losing -= 1
                        cut.set()
                    far.sendall(data)
            except OSError:
                pass

    def _answer(
        self, far: socket.socket, near: socket.socket, cut: threading.Event, number: int
    ) -> None:
        with near, _shut(near):
            try:
                while data := far.recv(CHUNK):
                    if number <= self._silent:
                        continue
                    if cut.is_set():  # the server has done it, and nobody will hear of it
                        self.lost += 1
                        near.shutdown(socket.SHUT_RDWR)
                        return
                    near.sendall(data)
            except OSError:
                return


@contextlib.contextmanager
def _shut(connection: socket.socket) -> Iterator[None]:
    """End the connection afterwards: a close alone waits for the thread that reads from it."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
