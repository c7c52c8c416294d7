"""The webhooks that are due: at least one delivery for each finished job that asked for it."""

from __future__ import annotations

from ltxq.ledger.records import WebhookAttempt
from ltxq.ledger.script import Script


class Outbox:
    """Hands out attempts and records how they ended."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def take(self, *, lease: float) -> WebhookAttempt | None:
        """The webhook that has been due longest, or None.

        One receiver (a host, whatever the port) has at most four attempts under way at once in
        the whole fleet, so one that hangs does not hold up the others.

        Args:
            lease: seconds for which nobody else is given this webhook; after them the attempt
                counts as failed.
        """
        answer = self._script.run("take_webhook", int(lease * 1000))
        if not answer:
            return None
        job_id, attempt, age = answer
        return WebhookAttempt(job_id=job_id, attempt=attempt, age=age / 1000)

    def delivered(self, delivery: WebhookAttempt) -> None:
        """The receiver has accepted it: no more attempts."""
        self._script.run("webhook_delivered", delivery.job_id)

    def failed(self, delivery: WebhookAttempt, reason: str, *, again_in: float | None) -> None:
        """Record a failed attempt. Nothing changes if a later attempt holds the lease by now.

        Args:
            reason: for the job's owner, without secrets that the URL may hold.
            again_in: seconds to the next attempt; None: there is none.
        """
        wait = "" if again_in is None else int(again_in * 1000)
        self._script.run("webhook_failed", delivery.job_id, delivery.attempt, reason, wait)

    def waiting(self) -> int:
        """How many webhooks are due now or later, of the thousand receivers due first."""
        return int(self._script.run("webhooks_waiting"))
