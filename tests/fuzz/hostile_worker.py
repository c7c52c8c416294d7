"""A worker behind a Redis that anybody writes to, and the ways to see that it still works."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import psutil
import redis

from fleet import PATIENCE, Fleet, eventually
from ltxq import Client
from ltxq.ledger import queue_name
from ltxq.settings import Settings

QUEUE = queue_name("instant")
LISTS = [QUEUE, *(f"{QUEUE}\x06\x16{step}" for step in (3, 6, 9))]  # Celery's, by priority
SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_frames": 9, "audio": False}
JSON, PICKLE, YAML = "application/json", "application/x-python-serialize", "application/x-yaml"


def message(
    body: bytes = b'[[], {"request": {"prompt": "a fox", "model": "nobody"}}, null]',
    *,
    headers: Any = None,
    content_type: Any = JSON,
    properties: dict[str, Any] | None = None,
) -> bytes:
    """An entry of a queue as kombu writes it."""
    envelope = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "binary",
        "content-type": content_type,
        "headers": {"task": "ltxq.generate", "id": "forged", "lang": "py"}
        if headers is None
        else headers,
        "properties": {
            "delivery_tag": "a-tag",
            "body_encoding": "base64",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": 0,
            **(properties or {}),
        },
    }
    return json.dumps(envelope).encode()


class HostileWorker:
    """A fleet of one worker, the connection its messages are forged over, and a normal client."""

    def __init__(self, fleet: Fleet, url: str, marker: Path) -> None:
        self.fleet = fleet
        self.redis = redis.Redis.from_url(url, socket_timeout=10)
        self.settings = Settings(url=url, default_model="instant")
        self.client = Client(settings=self.settings)
        self.marker = marker  # a file that exists once anybody has loaded what must not be
        (self.worker,) = fleet.workers()

    def put(self, entries: list[bytes]) -> None:
        """Put them into the lists, the most urgent first in line."""
        for number, entry in enumerate(entries):
            self.redis.lpush(LISTS[number % len(LISTS)], entry)

    def still_works(self) -> None:
        """A job goes through, in the process that was there from the beginning."""
        job = self.client.submit("a fox", priority="low", **SMALL)
        assert self.client.wait(job.id, PATIENCE).state == "succeeded", self.fleet.log
        eventually(lambda: not any(self.redis.llen(name) for name in LISTS))
        assert self.fleet.workers() == [self.worker], self.fleet.log
        assert self.worker.status() != psutil.STATUS_ZOMBIE
        assert not self.marker.exists()

    def poisons(self) -> list[tuple[str, bytes]]:
        """Content types and bodies that create the marker where they are loaded."""
        create = f"open({str(self.marker)!r}, 'w')"
        # Spelt by hand, protocol 0: importing the module that writes it is forbidden here.
        pickled = f"cbuiltins\neval\n(V{create}\ntR.".encode()
        tagged = f"!!python/object/apply:builtins.eval [{create!r}]".encode()
        return [
            (spelling, body)
            for kind, body in ((PICKLE, pickled), (YAML, tagged))
            for spelling in (kind, kind.rpartition("-")[2], "pickle", "yaml")
        ]

    def close(self) -> None:
        self.client.close()
        self.redis.close()
