"""A worker connects to its queue only while Redis takes writes.

By itself, Celery would reconnect many times a second while Redis is full or a replica, and only
every half minute while Redis is away.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import bootsteps
from celery.worker import state

from ltxq.errors import LtxqError
from ltxq.ledger import Ledger

log = logging.getLogger("ltxq.worker")

LOOK_SECONDS = 1.0  # between two looks


def reconnect_step(ledger: Ledger) -> type[bootsteps.Step]:
    """The bootstep that makes a consumer wait until the ledger's Redis takes writes."""

    class ReconnectStep(bootsteps.Step):
        def __init__(self, parent: Any, **options: Any) -> None:
            super().__init__(parent, **options)
            connect = parent.connect

            def patient() -> Any:
                _wait_for_writes(ledger)
                return connect()

            parent.connect = patient

    return ReconnectStep


def _wait_for_writes(ledger: Ledger) -> None:
    waited = False
    while True:
        try:
            ledger.check_writes()
        except LtxqError as exc:  # also where it refuses the user: an operator may grant it again
            if not waited:
                log.warning("No jobs are taken until Redis takes writes: %s", exc)
            waited = True
            state.maybe_shutdown()
            time.sleep(LOOK_SECONDS)
        else:
            break
    if waited:
        log.info("Redis takes writes: jobs are taken again.")
