"""The ledger: the job records in Redis, the truth about every job.

reader.py       what can be asked about jobs
fleet.py        what is known of workers and queues
ledger.py       what can be done with a job, and what each step promises
script/         the same steps in Lua, each atomic in Redis, and the map of its keys
records.py      what the steps hand out: claims, jobs
connection.py   Redis with patience, and its errors as ltxq's
"""

from ltxq.ledger.connection import PATIENCE, Subscription
from ltxq.ledger.fleet import FleetFigures, QueueStats, Worker, WorkerState
from ltxq.ledger.ledger import CANCELLED, TIMED_OUT, WORKER_LOST, Ledger
from ltxq.ledger.reader import PREFIX, not_found
from ltxq.ledger.records import (
    BANDS,
    TASK,
    Claim,
    Returned,
    RunningJob,
    Standing,
    Swept,
    WebhookAttempt,
    queue_name,
)

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
