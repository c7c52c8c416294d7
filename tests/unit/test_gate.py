"""The gate's book: who may come in, and when."""

from __future__ import annotations

import select
import signal
import threading
from types import SimpleNamespace

import pytest
from kombu.asynchronous import Hub

from ltxq_worker.gate import Gate
from ltxq_worker.inbox import pool_of


@pytest.fixture
def gate() -> Gate:
    return Gate(threads=3)


def test_one_message_at_a_time_has_the_gpu(gate: Gate) -> None:
    assert gate.is_open
    gate.take("a")
    assert not gate.is_open
    gate.release_gpu("a")
    assert gate.is_open


def test_as_many_messages_as_threads_are_in_hand(gate: Gate) -> None:
    for delivery in "abc":
        gate.take(delivery)
        gate.release_gpu(delivery)
    assert not gate.is_open
    gate.release("b")
    assert gate.is_open


def test_a_job_delivered_twice_is_two_messages(gate: Gate) -> None:
    gate.take("first delivery")
    gate.release_gpu("first delivery")
    gate.take("second delivery")
    gate.release("first delivery")
    assert not gate.is_open
    gate.release("second delivery")
    assert gate.is_open


def test_releasing_twice_is_releasing_once(gate: Gate) -> None:
    gate.take("a")
    gate.release("a")
    gate.release("a")
    gate.release_gpu("a")  # too late to matter
    assert gate.is_open
    assert "a" not in gate


def test_a_signal_may_close_it_in_the_middle_of_a_look(gate: Gate) -> None:
    closed = 0

    def close(*_: object) -> None:
        nonlocal closed
        closed += 1
        gate.close()

    before = signal.signal(signal.SIGVTALRM, close)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0001, 0.0001)
    try:
        while closed < 300:
            gate.take("a")
            assert not gate.is_open
            gate.release("a")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert not gate.is_open


def test_a_closed_gate_stays_closed(gate: Gate) -> None:
    gate.take("a")
    gate.close()
    gate.release("a")
    assert not gate.is_open


def test_many_releases_do_not_block_on_a_sleeping_event_loop(gate: Gate) -> None:
    for number in range(100_000):  # more than a pipe holds
        gate.release(str(number))


def test_a_release_wakes_the_sleeping_event_loop(gate: Gate) -> None:
    hub = Hub()
    qos = SimpleNamespace(can_consume=lambda: True)
    channel = SimpleNamespace(qos=qos)
    gate.install(SimpleNamespace(hub=hub, task_consumer=SimpleNamespace(channel=channel)))
    assert qos.can_consume()
    gate.take("a")
    assert not qos.can_consume()
    (pipe,) = hub.readers
    assert select.select([pipe], [], [], 0)[0] == []
    gate.release_gpu("a")
    assert select.select([pipe], [], [], 0)[0] == [pipe]
    callback, arguments = hub.readers[pipe]
    callback(*arguments)
    assert select.select([pipe], [], [], 0)[0] == []
    hub.close()


def test_a_message_that_cannot_even_be_rejected_lets_go_of_the_gate() -> None:
    """Redis may have gone just as the pool's thread failed."""
    gate = Gate(2)
    rejected = threading.Event()

    class Message:
        delivery_tag, acknowledged = "a", False

        def reject(self) -> None:
            rejected.set()
            raise ConnectionError("Redis is away")

    class Request:
        id, message = "x", Message()

        def accept(self, *_: object) -> None:
            raise TypeError("a forged name")

    gate.take("a")
    pool = pool_of(gate)(1)
    pool.on_apply(print, accept_callback=Request().accept)
    assert rejected.wait(10)
    pool.on_stop()
    assert gate.is_open
