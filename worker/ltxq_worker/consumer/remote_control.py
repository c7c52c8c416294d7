"""Celery's remote control, reduced to what Flower reads and to cancelling.

Everybody who can write to Redis can send these commands, so all others are refused: only its
supervisor stops a worker or decides what it serves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from celery import Celery, bootsteps
from celery.worker.control import Panel
from celery.worker.pidbox import Pidbox
from redis.exceptions import DataError

from ltxq.celery import report_outcome
from ltxq.errors import JobNotFound, LtxqError
from ltxq.job import is_job_id
from ltxq.ledger import Ledger
from ltxq.logs import about_job

log = logging.getLogger("ltxq.worker")

# Called without arguments: with some, these commands show any attribute of a task.
READING = frozenset(
    {
        *("ping", "stats", "conf", "report", "clock", "heartbeat", "enable_events"),
        *("active", "reserved", "scheduled", "revoked", "registered", "active_queues"),
    }
)
# Done in the ledger. Celery's own commands would discard an id for ever, even if it is sent again.
CANCELLING = frozenset({"revoke", "terminate"})
MOST_CANCELLED = 1000  # by one message, for which the event loop waits


def control_step(app: Celery, ledger: Ledger) -> type[bootsteps.StartStopStep]:
    """The bootstep that replaces Celery's own, which `app` must have switched off."""

    class ControlStep(bootsteps.StartStopStep):
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def __init__(self, parent: Any, **options: Any) -> None:
            box = _Mailbox(parent, app, ledger)
            self.start, self.stop, self.shutdown = box.start, box.stop, box.shutdown
            super().__init__(parent, **options)

    return ControlStep


class _Mailbox(Pidbox):
    """Celery's mailbox. It drops and logs malformed messages and refused commands."""

    def __init__(self, consumer: Any, app: Celery, ledger: Ledger) -> None:
        super().__init__(consumer)
        self._app = app
        self._ledger = ledger
        self._away = away_errors(consumer.connection_errors)
        self._replies = self.node.mailbox.reply_exchange.name

    def start(self, consumer: Any) -> None:
        super().start(consumer)
        self.consumer.on_decode_error = lambda _message, exc: _drop(type(exc).__name__)
        channel = self.node.channel
        channel.handlers["LISTEN"] = _listening(channel, self._away)

    def on_message(self, body: Any, _message: Any) -> None:
        """Obey a command that is for this worker, allowed and well-formed."""
        self._forward_clock()  # by one, not to the sender's clock, which may be any number
        try:
            match body:
                case {"method": str(method)}:
                    if self._is_addressee(body):
                        self._obey(method, body)
                case _:
                    _drop("not in Celery's form")
        except self._away:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a stranger's fields cause
            _drop(type(exc).__name__)

    def _is_addressee(self, body: dict[str, Any]) -> bool:
        match body.get("destination"), body.get("pattern"), body.get("matcher"):
            case (None | [], None, _):
                return True
            case (list(names), _, _):
                return self.hostname in names
            case (None, str(pattern), "glob"):  # not "pcre": some patterns never end
                return fnmatchcase(self.hostname, pattern)
        return False

    def _obey(self, method: str, body: dict[str, Any]) -> None:
        match body.get("arguments") or {}, body.get("reply_to"):
            case (dict(arguments), None as reply_to):
                pass
            case (dict(arguments), {"exchange": self._replies, "routing_key": str()} as reply_to):
                pass
            case _:
                _drop("not in Celery's form")
                return
        if method in READING:
            answer = Panel.data[method](self.node.state)
            if method == "stats":
                answer = _without_login(answer)
        elif method in CANCELLING:
            answer = self._cancel(arguments.get("task_ids") or arguments.get("task_id") or [])
        else:
            log.warning("The remote command %.40r is refused.", method)
            answer = {"error": "ltxq's workers do not take this command."}
        if reply_to:
            where = {"exchange": self._replies, "routing_key": reply_to["routing_key"]}
            self.node.reply({self.hostname: answer}, **where, ticket=body.get("ticket"))

    def _cancel(self, ids: Any) -> dict[str, str]:
        wanted = ids if isinstance(ids, list) else [ids]
        jobs = [job_id for job_id in wanted if isinstance(job_id, str) and is_job_id(job_id)]
        if len(jobs) < len(wanted) or len(jobs) > MOST_CANCELLED:
            return {"error": f"Nothing is cancelled: send at most {MOST_CANCELLED} ids of jobs."}
        for job_id in jobs:
            try:
                if self._ledger.jobs.cancel(job_id) == "cancelled":
                    report_outcome(self._app, self._ledger, job_id, worker=self.hostname)
            except JobNotFound:
                with about_job(job_id):
                    log.info("revoke: there is no job %s", job_id)
            except LtxqError as exc:
                return {"error": str(exc)}
        return {"ok": f"cancelled in the ledger: {jobs}"}


def _without_login(stats: dict[str, Any]) -> dict[str, Any]:
    """Celery's `stats` with the plain facts of the broker alone. It would show the URLs of all
    Sentinels, or of a socket, with the password.
    """
    broker = stats.get("broker") or {}
    shown = {name: broker.get(name) for name in ("transport", "hostname", "port", "virtual_host")}
    if "://" in str(shown["hostname"]):  # a socket's URL
        del shown["hostname"]
    return {**stats, "broker": shown}


def away_errors(known: tuple[type[Exception], ...]) -> tuple[type[Exception], ...]:
    """The errors by which kombu says that Redis is away, without KeyError and redis-py's DataError:
    while a message is read, those mean that a field is missing or of a wrong type.
    """
    return tuple(kind for kind in known if not issubclass(kind, KeyError | DataError))


def _listening(channel: Any, away: tuple[type[Exception], ...]) -> Callable[[], Any]:
    """A handler that reads what is published to `channel`, and drops malformed messages."""
    read = channel.handlers["LISTEN"]

    def guarded() -> Any:
        while True:
            try:
                return read()
            except away:
                raise
            except Exception as exc:  # noqa: BLE001 - whatever a stranger's bytes cause
                _drop(type(exc).__name__)
            if not channel.subclient.connection.can_read(timeout=0):
                return True

    return guarded


def _drop(reason: str) -> None:
    log.warning("A remote control message is dropped: %s", reason)
