"""Tells systemd how a service of `Type=notify` is. Without systemd it does nothing."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

WATCHDOG_SECONDS = 10.0  # between two signs of life


class Service:
    """This process as systemd's service. Its methods may be called again and again."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._told: set[str] = set()
        self._alive_at = 0.0

    def ready(self) -> None:
        """The service is started."""
        self._tell_once("READY=1")

    def stopping(self) -> None:
        """The service finishes its work and ends."""
        self._tell_once("STOPPING=1")

    def alive(self) -> None:
        """The main loop runs: `WatchdogSec` begins anew."""
        if time.monotonic() >= self._alive_at:
            self._alive_at = time.monotonic() + WATCHDOG_SECONDS
            self._tell("WATCHDOG=1")

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._tell(line)

    def _tell(self, line: str) -> None:
        if not self._address:
            return
        # A name that begins with @ is in Linux's abstract namespace.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(1)
            channel.sendto(line.encode(), address)
