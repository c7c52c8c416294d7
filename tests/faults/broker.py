"""Celery's messages as they lie in Redis."""

from __future__ import annotations

import json

import redis

from ltxq.ledger import queue_name

QUEUE = queue_name("instant")


def take_message(server: redis.Redis, job_id: str) -> bool:
    """Remove a job's message, as if it had been lost on its way; whether it was there."""
    for message in server.lrange(QUEUE, 0, -1):
        if json.loads(message)["headers"]["id"] == job_id:
            return bool(server.lrem(QUEUE, 1, message))
    return False
