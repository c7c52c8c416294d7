"""Messages of the queue. ltxq's own messages only wake a worker: the ledger has their jobs. A plain
Celery producer's message contains its job, which is recorded here and queued like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from celery import Celery

from ltxq.celery import report_refusal
from ltxq.celery.flower import queued_event
from ltxq.errors import ConfigurationError, InvalidRequest, LtxqError, QueueUnavailable
from ltxq.job import MAX_WAIT_SECONDS, VideoRequest, is_job_id
from ltxq.ledger import TASK, Ledger
from ltxq.logs import about_job

log = logging.getLogger("ltxq.worker")


def is_wakeup(args: Any, kwargs: Any) -> bool:
    """Whether a message is ltxq's own: its only argument is a job id."""
    match args:
        case [str(job_id)]:
            return not kwargs and is_job_id(job_id)
    return False


def admit(app: Celery, ledger: Ledger, model: str, message: Any) -> bool:
    """Record and queue the job of a plain Celery producer under its task id. Celery's result of an
    invalid job says why it is refused.

    Args:
        message: kombu's, in Celery's form.

    Returns:
        False if the message contains no job: it is a wake-up, or for another task.

    Raises:
        ConnectionError: Redis is away, and nothing is recorded.
    """
    task_id, (args, kwargs, _) = message.headers["id"], message.payload
    if message.headers["task"] != TASK or is_wakeup(args, kwargs):
        return False
    with about_job(task_id):
        try:
            if not is_job_id(task_id):
                raise InvalidRequest(
                    "The task id is no job id: letters, digits, - and _, at most 64.",
                    hint="Leave it to Celery.",
                )
            request = _read_request(args, kwargs, message.headers).settled(model)
            ledger.jobs.submit(task_id, request, event=queued_event(app, task_id, request))
        except (QueueUnavailable, ConfigurationError) as exc:  # the message stays
            raise ConnectionError(f"A job sent through Celery is not recorded: {exc}") from exc
        except LtxqError as exc:
            log.warning("A job sent through Celery is refused: %s", exc)
            report_refusal(app, task_id, exc.as_job_error())
    return True


def _read_request(args: Any, kwargs: Any, headers: Mapping[str, Any]) -> VideoRequest:
    """The request, with Celery's `eta` as `not_before` and its `expires` as `start_within`."""
    if args or set(kwargs) != {"request"}:
        raise InvalidRequest(
            f"{TASK} was sent with other arguments than `request`.",
            hint="Send kwargs={'request': {'prompt': …}}.",
        )
    request = VideoRequest.parse(kwargs["request"])
    wanted: dict[str, Any] = {}
    if eta := _read_time(headers, "eta"):
        wanted["not_before"] = eta
    if expires := _read_time(headers, "expires"):
        left = (expires - datetime.now(UTC)).total_seconds()
        wanted["start_within"] = min(max(left, 0.001), MAX_WAIT_SECONDS)
    return request.model_copy(update=wanted)


def _read_time(headers: Mapping[str, Any], name: str) -> datetime | None:
    """A time in Celery's form; UTC if it has no zone."""
    match headers.get(name):
        case None:
            return None
        case str(text):
            try:
                time = datetime.fromisoformat(text)
                return time if time.tzinfo else time.replace(tzinfo=UTC)
            except ValueError:
                pass
    raise InvalidRequest(f"{name} is no time in ISO 8601.", hint="Leave it to Celery.")
