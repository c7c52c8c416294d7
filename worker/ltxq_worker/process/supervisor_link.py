"""A worker process's end of the control channel to its supervisor."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

ORDER_MOST = 1024  # bytes of one order


class SupervisorLink:
    """Reports to the supervisor, and yields its orders. When the channel breaks, the supervisor
    has died.
    """

    def __init__(self, fd: int) -> None:
        self._channel = socket.socket(fileno=fd)

    def send(self, **message: Any) -> None:
        """Send one JSON object as one packet."""
        self._channel.sendall(json.dumps(message).encode())

    def try_to_send(self, **message: Any) -> bool:
        """The same, but returns False instead of waiting for a supervisor that does not read."""
        try:
            self._channel.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def orders(self) -> Iterator[str]:
        """The supervisor's orders, 'drain' and 'give_back', until it has died."""
        with suppress(OSError):  # a reset, if it died with unread messages
            while packet := self._channel.recv(ORDER_MOST):
                yield json.loads(packet)["stop"]
