"""What lies between the queue and Celery. A message that is not of Celery's form is dropped and
logged, so that nobody who can write to the queue ends a worker or takes its slot. A message stays
in Redis until the worker is through with it: a plain Celery producer's job is nowhere else. What a
task says is process/main.py's.
"""

from __future__ import annotations

import bz2
import logging
import lzma
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty
from typing import Any

from celery import bootsteps
from celery.concurrency.thread import TaskPool
from celery.worker import state
from kombu import compression

from ltxq.printable import blanked
from ltxq_worker.consumer.remote_control import away_errors

log = logging.getLogger("ltxq.worker")

Admit = Callable[[Any], bool]

# What a message's body may hold beside args and kwargs: what Celery's own clients put there.
_EMBEDDED = {"callbacks", "errbacks", "chain", "chord"}
MOST_SHOWN = 200  # characters of a message that Celery's events repeat
MOST_UNPACKED = 2**20  # bytes of a compressed message; the largest request is under 256 KiB
# By kombu's names. An LZMA stream says itself how much memory it takes, which is bounded as well.
_UNPACKERS: dict[str, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lambda: lzma.LZMADecompressor(memlimit=64 * MOST_UNPACKED),
}


def bound_decompression() -> None:
    """Have kombu, which unpacks a message before ltxq sees it, stop at `MOST_UNPACKED`."""
    for kind in compression.encoders():
        encode, _ = compression.get_encoder(kind)
        compression.register(encode, _bounded(_UNPACKERS.get(kind)), kind)


def _bounded(unpacker: Callable[[], Any] | None) -> Callable[[bytes], bytes]:
    def unpack(body: bytes) -> bytes:
        if unpacker is None:
            raise ValueError("compressed in a way that is not taken")
        plain: bytes = unpacker().decompress(body, MOST_UNPACKED + 1)
        if len(plain) > MOST_UNPACKED:
            raise ValueError("too large when unpacked")
        return plain

    return unpack


def message_guard_step(admit: Admit, queue: str, taken: str) -> type[bootsteps.StartStopStep]:
    """The bootstep that guards a consumer, again at every reconnection.

    Args:
        admit: records the job of a plain Celery producer. False: the message is no such job.
        queue: the list that messages are taken from.
        taken: this worker's own list, where a message is until the worker is through with it.
    """

    class MessageGuardStep(bootsteps.StartStopStep):
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, parent: Any) -> None:
            channel = parent.task_consumer.channel
            away = away_errors(parent.connection_errors + parent.channel_errors)
            _take_by_moving(channel, queue, taken, away)
            parent.task_consumer.on_decode_error = lambda message, exc: _drop(
                message, type(exc).__name__
            )
            take = type(parent).create_task_handler(parent)
            parent.create_task_handler = lambda: _taking(take, admit, away)

    return MessageGuardStep


def _take_by_moving(
    channel: Any, queue: str, taken: str, away: tuple[type[Exception], ...]
) -> None:
    """Have a channel of kombu's move messages from `queue` to `taken`, and remove them when they
    are dealt with. kombu's own BRPOP removes them first: one whose answer is lost, where Redis or
    the connection to it ends in that moment, is nowhere.
    """
    with channel.conn_or_acquire() as redis:  # beside the client that waits for messages
        while redis.lmove(taken, queue, "LEFT", "RIGHT"):
            pass
    client, read, parse = channel.client, channel._brpop_read, channel.client.parse_response
    expected: tuple[type[Exception], ...] = (*away, Empty)

    def ask(timeout: float | None = None) -> None:
        channel._in_poll, channel._brpop_sent_at = client.connection, time.monotonic()
        client.connection.send_command(
            "BLMOVE", queue, taken, "RIGHT", "LEFT", timeout or channel.brpop_timeout
        )

    def answer(connection: Any, command: str, **options: Any) -> Any:
        """As the answer to BRPOP: the list's name as well."""
        if command != "BRPOP":
            return parse(connection, command, **options)
        item = parse(connection, "BLMOVE", **options)
        return item and (queue, item)

    def take(**options: Any) -> Any:
        """An entry that is no envelope of kombu's is no reason to end."""
        try:
            read(**options)
        except expected:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a stranger's bytes cause
            log.warning("An entry of the queue is no message: dropped (%s)", type(exc).__name__)
        redis.delete(taken)
        return True

    channel._brpop_start, client.parse_response = ask, answer
    channel._brpop_read = channel.handlers["BRPOP"] = take


def _taking(
    take: Callable[[Any], Any], admit: Admit, away: tuple[type[Exception], ...]
) -> Callable[[Any], Any]:
    """`take`, for wake-ups; other messages are admitted or dropped."""

    def guarded(message: Any) -> Any:
        try:
            if not _is_a_tasks(message):
                reason = "not of Celery's form"
            elif admit(message):
                message.ack()
                return None
            elif any((message.payload[2] or {}).values()):
                reason = "a wake-up starts no other task"
            else:
                # When a job runs is for the ledger to say. Celery would keep the message in memory
                # until an `eta`, and drop it after `expires`, with all later ones of its id.
                message.headers.update(eta=None, expires=None, ignore_result=True)
                _show_little(message)
                return take(message)
        except away:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a stranger's headers cause
            reason = type(exc).__name__
        for request in list(state.requests.values()):  # Celery's books, where it would stay
            if request.message is message:
                state.task_ready(request)
        _drop(message, reason)
        return None

    return guarded


class Pool(TaskPool):
    """Celery's pool of threads, of which there is one: with `worker_disable_prefetch` a message is
    taken when it is free.
    """

    def register_with_event_loop(self, loop: Any) -> None:
        """Celery calls this before there is anything to do."""
        self._loop = loop

    def on_apply(self, *args: Any, **options: Any) -> Any:
        """Run a task, and see that its slot is free afterwards, whatever its message does to Celery
        before the task begins or when it has ended.
        """
        result = super().on_apply(*args, **options)
        result.f.add_done_callback(partial(self._done, options["accept_callback"].__self__))
        return result

    def _done(self, request: Any, future: Future[Any]) -> None:
        try:
            if not future.cancelled() and (error := future.exception()):
                state.task_ready(request)
                _drop(request.message, type(error).__name__)
        finally:
            self._loop.call_soon(lambda: None)  # it sleeps, and may take a message now


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
    message.headers["argsrepr"] = blanked(words)
    message.headers["kwargsrepr"] = "{…}" if kwargs else "{}"


def _is_a_tasks(message: Any) -> bool:
    """Whether it says a task and its id, and has a body of args, kwargs and nothing unknown."""
    match message.headers, message.payload:
        case [{"task": str(), "id": str()}, [list(), dict(), embedded]]:
            return embedded is None or (isinstance(embedded, dict) and embedded.keys() <= _EMBEDDED)
    return False
