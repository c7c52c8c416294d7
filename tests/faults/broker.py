"""Celery's messages as they lie in Redis."""

from __future__ import annotations

import json

import redis

from ltxq.job import Priority
from ltxq.ledger import LANES, queue_name


def lane_key(priority: Priority = "normal", *, head: bool = False, model: str = "instant") -> str:
    """The list of a lane's messages. `head`: of jobs that were given back."""
    lane = LANES[priority]
    return f"{queue_name(model)}\x06\x16{lane - lane % 2 if head else lane}"


def take_message(server: redis.Redis, lane: str, job_id: str) -> bool:
    """Remove a job's message, as if it had been lost on its way; whether it was there."""
    for message in server.lrange(lane, 0, -1):
        if json.loads(message)["headers"]["id"] == job_id:
            return bool(server.lrem(lane, 1, message))
    return False
