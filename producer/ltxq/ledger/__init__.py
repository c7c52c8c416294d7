"""The ledger: the job records in Redis, the truth about every job.

ledger.py       `Ledger`: the parts below over one connection
jobs.py         submit, cancel, delete and read jobs
claims.py       take, renew, give back and finish jobs
changes.py      subscriptions to what changes
outbox.py       webhooks that are due
fleet.py        workers, queues, hosts that are to drain
sweeper.py      what supervisors repair and clear away
records.py      what these hand out, and how it is read from Redis's answers
script.py       one operation as a Python call
script/         the operations in Lua, each atomic in Redis, and the map of the keys
probe.py        may this user do what its role does? Asked before any of it is done
permissions.py  what each role does on Redis: commands, keys, channels
connection.py   Redis with patience: one server, a socket, or behind Sentinels
answers.py      Redis's error answers as ltxq's errors
"""

from ltxq.ledger.changes import Subscription
from ltxq.ledger.connection import PATIENCE
from ltxq.ledger.fleet import FleetFigures, QueueStats, Worker, WorkerState
from ltxq.ledger.jobs import not_found
from ltxq.ledger.ledger import Ledger
from ltxq.ledger.permissions import Role
from ltxq.ledger.records import (
    BANDS,
    CANCELLED,
    TASK,
    TIMED_OUT,
    WORKER_LOST,
    Claim,
    Returned,
    RunningJob,
    Standing,
    Swept,
    WebhookAttempt,
    queue_name,
)
from ltxq.ledger.script import PREFIX

__all__ = [
    "BANDS",
    "CANCELLED",
    "PATIENCE",
    "PREFIX",
    "TASK",
    "TIMED_OUT",
    "WORKER_LOST",
    "Claim",
    "FleetFigures",
    "Ledger",
    "QueueStats",
    "Returned",
    "Role",
    "RunningJob",
    "Standing",
    "Subscription",
    "Swept",
    "WebhookAttempt",
    "Worker",
    "WorkerState",
    "not_found",
    "queue_name",
]
