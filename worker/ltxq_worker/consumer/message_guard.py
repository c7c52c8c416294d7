"""Guards a worker's consumer against the messages of its queue.

A message that is not in Celery's form is dropped and logged, so that nobody who can write to the
queue can end a worker or occupy its slot. A message stays in Redis until the worker has finished
with it, since a plain Celery producer's job exists nowhere else.
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

# What a message's body may hold beside args and kwargs: Celery's own clients send these keys.
_EMBEDDED = {"callbacks", "errbacks", "chain", "chord"}
MOST_SHOWN = 200  # characters of a message's arguments in Celery's events
MOST_UNPACKED = 2**20  # bytes of an unpacked message; the largest request is under 256 KiB
# By kombu's names. An LZMA stream chooses how much memory unpacking takes, so that is bounded too.
_UNPACKERS: dict[str, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lambda: lzma.LZMADecompressor(memlimit=64 * MOST_UNPACKED),
}


def bound_decompression() -> None:
    """Make kombu, which unpacks a message before ltxq sees it, stop at `MOST_UNPACKED`."""
    for kind in compression.encoders():
        encode, _ = compression.get_encoder(kind)
        compression.register(encode, _bounded(_UNPACKERS.get(kind)), kind)


def _bounded(unpacker: Callable[[], Any] | None) -> Callable[[bytes], bytes]:
    def unpack(body: bytes) -> bytes:
        if unpacker is None:
            raise ValueError("compressed by an unknown method")
        plain: bytes = unpacker().decompress(body, MOST_UNPACKED + 1)
        if len(plain) > MOST_UNPACKED:
            raise ValueError("too large when unpacked")
        return plain

    return unpack


def message_guard_step(admit: Admit, queue: str, taken: str) -> type[bootsteps.StartStopStep]:
    """The bootstep that guards a consumer, also after each reconnection.

    Args:
        admit: records the job of a plain Celery producer; False if the message contains no job.
        queue: the Redis list from which messages are taken.
        taken: this worker's Redis list, which holds a message until it is handled.
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
    """Make a kombu channel move messages from `queue` to `taken`, and delete them once they are
    handled. kombu's own BRPOP removes a message first: if Redis or the connection ends before the
    answer arrives, the message is lost.
    """
    with channel.conn_or_acquire() as redis:  # not the client that waits for messages
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
        """The answer in BRPOP's form, which has the list's name."""
        if command != "BRPOP":
            return parse(connection, command, **options)
        item = parse(connection, "BLMOVE", **options)
        return item and (queue, item)

    def take(**options: Any) -> Any:
        """Read one message; drop an entry that is not in kombu's form."""
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
    """A handler that passes wake-ups on to `take`, and admits or drops other messages."""

    def guarded(message: Any) -> Any:
        try:
            if not _is_a_tasks(message):
                reason = "not in Celery's form"
            elif admit(message):
                message.ack()
                return None
            elif any((message.payload[2] or {}).values()):
                reason = "a wake-up starts no other task"
            else:
                # The ledger decides when a job runs. Celery would keep the message in memory until
                # its `eta`, and after its `expires` drop it with all later messages of its id.
                message.headers.update(eta=None, expires=None, ignore_result=True)
                _show_little(message)
                return take(message)
        except away:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a stranger's headers cause
            reason = type(exc).__name__
        for request in list(state.requests.values()):  # else Celery would keep it as reserved
            if request.message is message:
                state.task_ready(request)
        _drop(message, reason)
        return None

    return guarded


class Pool(TaskPool):
    """Celery's thread pool with one thread. With `worker_disable_prefetch` a message is taken when
    that thread is free.
    """

    def register_with_event_loop(self, loop: Any) -> None:
        """Remember the event loop. Celery calls this at the start."""
        self._loop = loop

    def on_apply(self, *args: Any, **options: Any) -> Any:
        """Run a task, and free its slot afterwards, even if Celery fails on the message before the
        task begins or when it has ended.
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
            self._loop.call_soon(lambda: None)  # wakes the loop, which may take a message now


def _drop(message: Any, reason: str) -> None:
    log.warning("A message is dropped: %s", reason)
    if not message.acknowledged:
        message.reject()


def _show_little(message: Any) -> None:
    """Bound what Celery's events, and so Flower, show of a message: some printable characters of
    its `argsrepr`, and nothing of a plain producer's request, which may contain a secret URL.
    """
    words, (_, kwargs, _) = message.headers.get("argsrepr"), message.payload
    words = words[:MOST_SHOWN] if isinstance(words, str) else "…"
    message.headers["argsrepr"] = blanked(words)
    message.headers["kwargsrepr"] = "{…}" if kwargs else "{}"


def _is_a_tasks(message: Any) -> bool:
    """Whether a message names a task and an id, and has a body of args, kwargs and known keys."""
    match message.headers, message.payload:
        case [{"task": str(), "id": str()}, [list(), dict(), embedded]]:
            return embedded is None or (isinstance(embedded, dict) and embedded.keys() <= _EMBEDDED)
    return False
