"""What was put on the queue and is no message of Celery's form is thrown away and logged, so that
nobody who can write to the queue ends a worker or shuts its gate. What a task says is app.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty
from typing import Any

from celery import bootsteps
from celery.concurrency.thread import TaskPool
from celery.worker import state

from ltxq_worker.control import away_errors
from ltxq_worker.gate import Gate

log = logging.getLogger("ltxq.worker")

# What a message's body may hold beside args and kwargs. Anything else would become a property of
# the running task, and could pass for another delivery.
_EMBEDDED = {"callbacks", "errbacks", "chain", "chord"}
MOST_SHOWN = 200  # characters of a message that Celery's events repeat


def inbox_step(gate: Gate) -> type[bootsteps.StartStopStep]:
    """The bootstep that guards a consumer, again at every reconnection."""

    class InboxStep(bootsteps.StartStopStep):
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, parent: Any) -> None:
            channel = parent.task_consumer.channel
            away = away_errors(parent.connection_errors + parent.channel_errors)
            channel.handlers["BRPOP"] = _reading(channel.handlers["BRPOP"], away)
            take = type(parent).create_task_handler(parent)
            parent.create_task_handler = lambda: _taking(take, gate, away)

    return InboxStep


def _reading(read: Callable[[], Any], away: tuple[type[Exception], ...]) -> Callable[[], Any]:
    """`read`, for which an entry that is no envelope of kombu's is no reason to end."""
    expected: tuple[type[Exception], ...] = (*away, Empty)

    def guarded() -> Any:
        try:
            return read()
        except expected:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a stranger's bytes cause
            log.warning("An entry of the queue is no message: dropped (%s)", type(exc).__name__)
            return True

    return guarded


def _taking(
    take: Callable[[Any], Any], gate: Gate, away: tuple[type[Exception], ...]
) -> Callable[[Any], Any]:
    """`take`, for messages of Celery's form; others are dropped."""

    def guarded(message: Any) -> Any:
        try:
            if _is_a_tasks(message):
                _show_little(message)
                return take(message)
            reason = "not of Celery's form"
        except away:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a stranger's headers cause
            reason = type(exc).__name__
        gate.release(message.delivery_tag)  # first: rejecting it may fail where Redis is away
        for request in list(state.requests.values()):  # Celery's books, where it would stay
            if request.message is message:
                state.task_ready(request)
        _drop(message, reason)
        return None

    return guarded


def pool_of(gate: Gate) -> type[TaskPool]:
    """Celery's pool of threads. Whatever a message does to Celery in one of them, before its task
    runs or after, `gate` hears that it is done with.
    """

    class Pool(TaskPool):
        def on_apply(self, *args: Any, **options: Any) -> Any:
            request = options["accept_callback"].__self__
            result = super().on_apply(*args, **options)
            result.f.add_done_callback(lambda future: done(request, future))
            return result

    def done(request: Any, future: Future[Any]) -> None:
        gate.release(request.message.delivery_tag)
        if not future.cancelled() and (error := future.exception()):
            state.task_ready(request)
            _drop(request.message, type(error).__name__)

    return Pool


def _drop(message: Any, reason: str) -> None:
    log.warning("A message is dropped: %s", reason)
    if not message.acknowledged:
        message.reject()


def _show_little(message: Any) -> None:
    """What Celery's events, and so Flower, show of it: its sender's words, printable and not too
    many; of a plain producer's request nothing, for it may hold a URL that is a secret.
    """
    words, (_, kwargs, _) = message.headers.get("argsrepr"), message.payload
    words = words[:MOST_SHOWN] if isinstance(words, str) else "…"
    message.headers["argsrepr"] = "".join(c if c.isprintable() else " " for c in words)
    message.headers["kwargsrepr"] = "{…}" if kwargs else "{}"


def _is_a_tasks(message: Any) -> bool:
    """Whether it says a task and its id, and has a body of args, kwargs and nothing unknown."""
    match message.headers, message.payload:
        case [{"task": str(), "id": str()}, [list(), dict(), embedded]]:
            return embedded is None or (isinstance(embedded, dict) and embedded.keys() <= _EMBEDDED)
    return False
