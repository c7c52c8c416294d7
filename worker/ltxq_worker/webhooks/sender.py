"""Sends webhooks, signed as Standard Webhooks prescribe, until their receivers accept them.

The ledger knows which webhooks are due, so any supervisor can go on where another died.
safe_http.py reaches strangers' hosts safely.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from standardwebhooks import Webhook

from ltxq.download_name import download_name
from ltxq.errors import LtxqError
from ltxq.job import Job
from ltxq.ledger import Ledger, WebhookAttempt
from ltxq.links import Links
from ltxq.logs import about_job
from ltxq.settings import Settings
from ltxq.storage import Storage
from ltxq_worker.webhooks.safe_http import TOTAL_SECONDS, NotSent, Outbound

log = logging.getLogger("ltxq.supervisor")

BACKOFF = (2.0, 10.0, 60.0, 300.0, 900.0, 3600.0)  # seconds after each failure; the last repeats
PATIENCE = 24 * 3600.0  # seconds after the job's end in which a failed attempt is repeated
LEASE_SECONDS = 2 * TOTAL_SECONDS  # covers one delivery, a slow resolver and a short outage
LOOK_SECONDS = 1.0  # between two looks for webhooks that are due
SENDERS = 16  # threads; at most four of them wait for one receiver

_EVENTS = {
    "succeeded": "video.completed",
    "failed": "video.failed",
    "cancelled": "video.cancelled",
}


class Webhooks:
    """Sends the webhooks that are due. Many senders may work at once: each leases its webhook."""

    def __init__(
        self,
        ledger: Ledger,
        storage: Storage,
        settings: Settings,
        *,
        outbound: Outbound | None = None,
        backoff: Sequence[float] = BACKOFF,
        patience: float = PATIENCE,
        lease: float = LEASE_SECONDS,
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._links = Links.from_settings(settings, ledger.link_secret)
        self._secret = settings.webhook_secret
        self._outbound = outbound or Outbound(settings.webhook_allow)
        self._retention = settings.retention
        self._backoff = backoff
        self._patience = patience
        self._lease = lease

    def start(self, ended: threading.Event) -> list[threading.Thread]:
        """Start the threads that send until `ended` is set. They finish deliveries under way."""
        if self._secret is None:
            threads = [threading.Thread(target=self._report_missing_secret, args=(ended,))]
        else:
            threads = [
                threading.Thread(target=self._keep_sending, args=(ended,)) for _ in range(SENDERS)
            ]
        for thread in threads:
            thread.name, thread.daemon = "webhooks", True
            thread.start()
        return threads

    def send_one(self) -> bool:
        """Send the webhook that has been due longest; False if none is due.

        Raises:
            QueueUnavailable, ConfigurationError: from the ledger.
        """
        delivery = self._ledger.outbox.take(lease=self._lease)
        if delivery is None:
            return False
        with about_job(delivery.job_id):
            self._deliver(delivery)
        return True

    def _deliver(self, delivery: WebhookAttempt) -> None:
        try:
            self._send(self._ledger.jobs.get(delivery.job_id))
        except (NotSent, LtxqError) as exc:
            self._note_failure(delivery, str(exc))
        except Exception as exc:
            log.exception(
                "Sending the webhook of %s failed with an unexpected error", delivery.job_id
            )
            self._note_failure(delivery, f"ltxq failed to send it ({type(exc).__name__}).")
        else:
            self._ledger.outbox.delivered(delivery)

    def _send(self, job: Job) -> None:
        if self._secret is None or job.request.webhook_url is None:
            raise NotSent("There is nothing to sign it with, or nowhere to send it.")
        body = json.dumps(self._event(job))
        # A job has one event, so receivers recognize a repeated delivery by the event's id.
        event_id, now = f"event_{job.id}", datetime.now(UTC)
        signature = Webhook(self._secret.get_secret_value()).sign(event_id, now, body)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "ltxq",
            "webhook-id": event_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": signature,
        }
        self._outbound.post(job.request.webhook_url, body.encode(), headers)

    def _event(self, job: Job) -> dict[str, Any]:
        """{type, timestamp of the job's end, data}. The URLs are signed now."""
        if job.result is not None:
            name = download_name(job.request.prompt, job.result.seed)
            until = job.kept_until(self._retention)
            expires_in = job.request.expires_in
            if self._links is not None:
                urls = self._links.urls(job.id, expires_in, until)
            else:
                urls = self._storage.clip_urls(job.result.key, expires_in, name, until)
            job = job.model_copy(update={"result": job.result.model_copy(update=urls)})
        fields = job.model_dump(mode="json", include={"id", "state", "result", "error"})
        return {
            "type": _EVENTS[job.state],
            "timestamp": (job.finished_at or datetime.now(UTC)).isoformat(),
            "data": {**fields, "metadata": job.request.metadata},
        }

    def _note_failure(self, delivery: WebhookAttempt, reason: str) -> None:
        wait: float | None = self._backoff[min(delivery.attempt, len(self._backoff)) - 1]
        if delivery.age > self._patience:
            wait = None
            log.error("The webhook of %s is given up: %s", delivery.job_id, reason)
        else:
            log.warning("The webhook of %s: %s Again in %g s", delivery.job_id, reason, wait)
        self._ledger.outbox.failed(delivery, reason, again_in=wait)

    def _keep_sending(self, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                sent = self.send_one()
            except LtxqError as exc:  # Redis is away, which the sweep logs
                log.debug("No webhooks: %s", exc)
                sent = False
            if not sent:
                ended.wait(LOOK_SECONDS)

    def _report_missing_secret(self, ended: threading.Event) -> None:
        """Log once that webhooks wait: none is sent unsigned."""
        while not ended.wait(LOOK_SECONDS):
            try:
                waiting = self._ledger.outbox.waiting()
            except LtxqError as exc:
                log.debug("No webhooks: %s", exc)
                continue
            if waiting:
                log.error(
                    "%d webhooks wait: nothing is sent unsigned, and LTXQ_WEBHOOK_SECRET is not "
                    'set. Set it to what this prints: echo "whsec_$(openssl rand -base64 32)"',
                    waiting,
                )
                return
