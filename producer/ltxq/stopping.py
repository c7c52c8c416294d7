"""The signals that ask a process to stop, and how many requests they make.

One request may arrive several times. systemd signals every process of a service, and a parent
passes the signal on; `timeout` signals its command twice; a terminal that closes sends SIGHUP to
the shell's job, and the shell does so too.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TOGETHER_SECONDS = 0.2  # within which signals belong to one request


def stop_signals() -> frozenset[signal.Signals]:
    """SIGINT, SIGTERM and, unless this process was started to ignore it (`nohup`), SIGHUP."""
    names = ["SIGINT", "SIGTERM"]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        names.append("SIGHUP")
    return frozenset(signal.Signals[name] for name in names)


class StopRequests:
    """Counts requests to stop. SIGHUP is the first request or none: a terminal closes once."""

    def __init__(self) -> None:
        self._begun = 0
        self._complete_at = 0.0  # of the monotonic clock

    def note(self, number: int) -> bool:
        """Note a signal. Returns whether it begins a request. Safe in a signal handler."""
        now = time.monotonic()
        again = self._begun and signal.Signals(number).name == "SIGHUP"
        if again or now < self._complete_at:
            return False
        self._begun, self._complete_at = self._begun + 1, now + TOGETHER_SECONDS
        return True

    @property
    def begun(self) -> int:
        """How many requests have begun."""
        return self._begun

    @property
    def count(self) -> int:
        """How many requests are complete: no later signal belongs to them."""
        return self._begun - (time.monotonic() < self._complete_at)


class Interrupts:
    """The signals that have interrupted a command."""

    def __init__(self) -> None:
        self.last: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as of a shell; SIGINT's if no signal was seen."""
        return 128 + (self.last or signal.SIGINT)


@contextmanager
def interrupting() -> Iterator[Interrupts]:
    """Inside, a signal that asks to stop raises KeyboardInterrupt, so that a command removes its
    temporary files and ends its children. Signals of the same request are ignored meanwhile.

    Does nothing outside the main thread, where Python has no signal handlers.
    """
    interrupts, requests = Interrupts(), StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if requests.note(number):
            interrupts.last = signal.Signals(number)
            raise KeyboardInterrupt

    # A shell script starts its background commands so that they ignore SIGINT.
    heard = [n for n in stop_signals() if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
