"""Celery's events about jobs, which Flower shows: what each job makes, its progress, its outcome.

Celery's own events describe messages (sent, received, started), not jobs. An event that cannot be
sent is dropped: no job depends on one.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import Celery
from celery.events.event import EVENT_EXCHANGE_NAME as EVENTS
from celery.events.event import Event
from celery.utils.nodenames import anon_nodename
from celery.utils.time import utcoffset
from redis.exceptions import RedisError

from ltxq.job import Job, Progress, VideoRequest
from ltxq.ledger import TASK, queue_name
from ltxq.printable import blanked

log = logging.getLogger("ltxq")

PROMPT_MOST = 60  # characters of a prompt that are shown
PROGRESS_SECONDS = 1.0  # between two events of one stage of a job


def describe(job_id: str, request: VideoRequest, *, prompt: bool = True) -> str:
    """`768x512, 33 frames, 'a red fox trots…', video_…`, shown as the message's arguments. Flower's
    table shows the beginning.

    Args:
        prompt: whether to show the beginning of the prompt.
    """
    width, height = request.output_size
    parts = [f"{width}x{height}", f"{request.num_frames} frames"]
    if prompt:
        words = " ".join(blanked(request.prompt[: 4 * PROMPT_MOST]).split())
        cut = len(words) > PROMPT_MOST or len(request.prompt) > 4 * PROMPT_MOST
        parts.append(f"'{words[:PROMPT_MOST].rstrip()}…'" if cut else f"'{words}'")
    return ", ".join([*parts, job_id])


@dataclass
class _Shown:
    began: float  # seconds since 1970
    stage: str = ""  # of the last event
    sent: float = 0.0  # when it was sent, seconds since 1970


class TaskEvents:
    """Sends the events of one worker's running jobs. Thread-safe."""

    def __init__(self, app: Celery, worker: str) -> None:
        self._app = app
        self._worker = worker
        self._shown: dict[str, _Shown] = {}
        self._lock = threading.Lock()

    def begins(self, job_id: str) -> None:
        """The worker has claimed a job."""
        began = time.time()
        with self._lock:
            self._shown[job_id] = _Shown(began=began)
        _send(self._app, self._worker, "task-started", job_id, started=began)

    def progress(self, job_id: str, progress: Progress) -> None:
        """Send a running job's progress, at most once a second for each stage."""
        now = time.time()
        with self._lock:  # held while sending: no progress may follow the outcome
            shown = self._shown.get(job_id)
            if shown is None:
                return
            if progress.stage == shown.stage and now - shown.sent < PROGRESS_SECONDS:
                return
            shown.stage, shown.sent = progress.stage, now
            stage = progress.stage.replace("_", " ")
            text = f"{stage} {progress.step} of {progress.steps}, {progress.fraction:.0%} in all"
            # Celery has no event for progress. Flower accepts another `task-started` with a text as
            # its result, and still takes the states that follow.
            began = shown.began
            _send(self._app, self._worker, "task-started", job_id, started=began, result=text)

    def ends(self, job_id: str) -> None:
        """Send no more progress of a job."""
        with self._lock:
            self._shown.pop(job_id, None)


def queued_event(app: Celery, job_id: str, request: VideoRequest) -> tuple[str, str] | None:
    """The event of a submitted job: a Redis channel and what to publish there; None if events are
    off. The ledger publishes it with the record, so no other event of the job precedes it.
    """
    if not app.conf.worker_send_task_events:
        return None
    shown = describe(job_id, request, prompt=app.conf.ltxq_show_prompts)
    queue = queue_name(request.model or "")
    return _event(app, None, "task-sent", job_id, name=TASK, args=shown, kwargs="{}", queue=queue)


def show_outcome(app: Celery, job: Job, worker: str) -> None:
    """Send the event of a final state, in the name of the worker that had the job."""
    send = partial(_send, app, worker)
    if job.result is not None:
        took = job.result.timings.get("total", 0.0)
        text = f"{job.result.size:,} bytes, {job.result.key}"
        send("task-succeeded", job.id, result=text, runtime=took)
    elif job.state == "cancelled":
        ran = job.started_at is not None
        send("task-revoked", job.id, terminated=ran, signum=None, expired=False, result="cancelled")
    elif (error := job.error) is not None:
        why = f"{error.code}: {error.message}"
        send("task-failed", job.id, exception=why, traceback=error.hint, result=error.code)


def show_requeued(app: Celery, job_id: str, worker: str) -> None:
    """Send the event of a job that its worker has given back."""
    why = "given back to the queue"
    _send(app, worker, "task-retried", job_id, exception=why, traceback="", result=None)


def _send(app: Celery, worker: str, kind: str, job_id: str, **fields: Any) -> None:
    """Send one event in the name of a worker; drop it if Redis is away."""
    if not app.conf.worker_send_task_events:
        return
    try:
        app.backend.client.publish(*_event(app, worker, kind, job_id, **fields))
    except (RedisError, OSError) as exc:
        log.debug("An event for Flower is not sent: %s", exc)


def _event(
    app: Celery, worker: str | None, kind: str, job_id: str, **fields: Any
) -> tuple[str, str]:
    """The Redis channel and the message of a Celery event, in kombu's form. kombu itself would make
    a Redis client for each event, which takes longer than the rest.

    Args:
        worker: None: in the name of this process.
    """
    hostname = worker or anon_nodename()
    event = Event(
        kind,
        hostname=hostname,
        utcoffset=utcoffset(),
        pid=os.getpid(),
        clock=app.clock.forward(),
        uuid=job_id,
        **fields,
    )
    where = {"exchange": EVENTS, "routing_key": kind.replace("-", ".")}
    message = {
        "body": json.dumps(event),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"hostname": hostname},
        "properties": {"delivery_tag": str(uuid.uuid4()), "delivery_info": where},
    }
    channel = f"/{app.backend.connparams['db']}.{EVENTS}/{where['routing_key']}"
    return channel, json.dumps(message)
