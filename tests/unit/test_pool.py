"""Celery's pool of one thread: when a task ends, its slot is free and the event loop wakes."""

from __future__ import annotations

import threading

import pytest
from celery.worker import state

from ltxq_worker.consumer.message_guard import Pool


class Loop:
    """An event loop that is asleep."""

    def __init__(self) -> None:
        self.woken = threading.Event()

    def call_soon(self, act: object) -> None:
        self.woken.set()


class Message:
    """Of a job. Redis may have gone when it is rejected."""

    acknowledged = False

    def __init__(self) -> None:
        self.rejected = threading.Event()

    def reject(self) -> None:
        self.rejected.set()
        raise ConnectionError("Redis is away")


class Request:
    """Of a message, as Celery keeps it while it is worked on."""

    id = "x"

    def __init__(self, fails: bool) -> None:
        self.message = Message()
        self.fails = fails

    def accept(self, *_: object) -> None:
        if self.fails:
            raise TypeError("a forged name")


@pytest.mark.parametrize("fails", [False, True])
def test_the_event_loop_is_woken_when_the_slot_is_free(fails: bool) -> None:
    loop, request, pool = Loop(), Request(fails), Pool(1)
    pool.register_with_event_loop(loop)
    state.task_reserved(request)
    pool.on_apply(print, callback=print, accept_callback=request.accept)
    try:
        if fails:  # before Celery itself would see that it has ended
            assert request.message.rejected.wait(10)
            assert request not in state.reserved_requests
        assert loop.woken.wait(10)
    finally:
        pool.on_stop()
        state.task_ready(request)
