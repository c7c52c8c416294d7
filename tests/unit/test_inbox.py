"""Messages that a worker took in the moment when Redis went away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ltxq_worker.inbox import _admit_late, _keeping

AWAY = (ConnectionError,)
JOB = SimpleNamespace(headers={"task": "ltxq.generate", "id": "x"}, payload=[[], {}, None])


def test_a_message_that_could_not_be_noted_is_kept() -> None:
    def append(message: Any, delivery: str) -> None:
        raise ConnectionError

    kept: list[Any] = []
    with pytest.raises(ConnectionError):
        _keeping(append, kept, AWAY)(JOB, "tag")
    assert kept == [JOB]


def test_it_is_admitted_later_unless_it_makes_no_sense() -> None:
    admitted: list[Any] = []
    admit = lambda message: bool(admitted.append(message))  # noqa: E731
    for headers, payload in (([], None), ({"task": "t"}, [[], {}, None]), ({}, "x")):
        _admit_late(SimpleNamespace(headers=headers, payload=payload), admit, AWAY)
    assert admitted == []
    _admit_late(JOB, admit, AWAY)
    assert admitted == [JOB]


def test_what_a_stranger_wrote_into_it_does_not_keep_the_worker_from_starting() -> None:
    def admit(message: Any) -> bool:
        raise TypeError

    _admit_late(JOB, admit, AWAY)


def test_it_stays_kept_while_redis_is_away() -> None:
    def admit(message: Any) -> bool:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        _admit_late(JOB, admit, AWAY)
