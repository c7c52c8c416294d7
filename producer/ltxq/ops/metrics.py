"""`/metrics` for Prometheus: the server, and the metrics of the whole fleet, read from the ledger
at each scrape. All processes serve the same values, so queries take the maximum, not the sum.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, get_args
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import (
    CollectorRegistry,
    Info,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from ltxq.errors import ConfigurationError, LtxqError
from ltxq.ledger import FleetFigures, Ledger, WorkerState
from ltxq.settings import Address, Settings

log = logging.getLogger("ltxq")

REQUEST_SECONDS = 10.0  # for a scraper to send its request
UP = "1 if Redis answers, else 0."
OTHER = "other"  # all models that had no worker for a week: strangers may name any
WORKER_STATES = (*get_args(WorkerState), "away")
# The ledger's events of a queue, and their labels in the metrics.
REQUEUED = {
    "lost": "worker_lost",
    "lease_ended": "lease_ended",
    "given_back": "given_back",
    "sent_again": "message_lost",
}
WEBHOOKS = {
    "webhook_delivered": "delivered",
    "webhook_failed": "failed",
    "webhook_given_up": "given_up",
}

Samples = Counter[tuple[str, ...]]  # by the values of the labels


class FleetCollector(Collector):
    """The ledger's figures: queues, workers, outcomes, webhooks."""

    def __init__(self, ledger: Ledger, *, default_model: str) -> None:
        self._ledger = ledger
        self._default_model = default_model

    def describe(self) -> Iterable[Metric]:
        """Nothing, since registering must not ask Redis."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The metrics now; while Redis is away, only that it is."""
        try:
            figures = self._ledger.fleet.figures()
        except LtxqError as exc:
            log.debug("Redis gives no metrics of the fleet: %s", exc)
            yield GaugeMetricFamily("ltxq_ledger_up", UP, 0)
            return
        yield GaugeMetricFamily("ltxq_ledger_up", UP, 1)
        yield from _queues(figures, self._default_model)
        yield from _counts(figures, self._default_model)
        yield from _whole(figures)


def _queues(figures: FleetFigures, default_model: str) -> Iterator[Metric]:
    models = {default_model, *figures.served}
    depth, running, unfinished = Samples(), Samples(), Samples({(default_model,): 0})
    oldest: dict[tuple[str, ...], float] = {}
    for queue in figures.queues:
        model = queue.model if queue.model in models else OTHER
        for priority, waiting in queue.waiting.items():
            depth[model, priority] += waiting.jobs
            oldest[model, priority] = max(oldest.get((model, priority), 0.0), waiting.oldest)
        running[model,] += queue.running
        unfinished[model,] += queue.running + queue.depth
    workers = Samples({(model, state): 0 for model in models for state in WORKER_STATES})
    for worker in figures.workers:
        workers[worker.model if worker.model in models else OTHER, worker.state] += 1
    yield _gauge("ltxq_queue_depth", "Queued jobs.", ("model", "priority"), depth)
    yield _gauge(
        "ltxq_queue_oldest_age_seconds",
        "Seconds since the oldest queued job was submitted; 0 if none is queued.",
        ("model", "priority"),
        oldest,
    )
    yield _gauge("ltxq_running_jobs", "Running jobs.", ("model",), running)
    yield _gauge(
        "ltxq_unfinished_jobs",
        "Queued and running jobs; use it to scale workers.",
        ("model",),
        unfinished,
    )
    yield _gauge(
        "ltxq_workers",
        "Workers by state; away: no heartbeat of their supervisor for 10 s.",
        ("model", "state"),
        workers,
    )


def _counts(figures: FleetFigures, default_model: str) -> Iterator[Metric]:
    models = {default_model, *figures.served}
    submitted, claimed = Samples(), Samples()
    webhooks = Samples({(outcome,): 0 for outcome in WEBHOOKS.values()})
    requeued = Samples({(model, reason): 0 for model in models for reason in REQUEUED.values()})
    finished = Samples(
        {(model, state, ""): 0 for model in models for state in ("succeeded", "cancelled")}
    )
    for name, counted in figures.totals.items():
        model = name if name in models else OTHER
        for what, number in counted.items():
            state, _, code = what.partition(":")
            if what == "submitted":
                submitted[model,] += number
            elif what == "claimed":
                claimed[model,] += number
            elif what in REQUEUED:
                requeued[model, REQUEUED[what]] += number
            elif what in WEBHOOKS:
                webhooks[WEBHOOKS[what],] += number
            elif state in ("succeeded", "failed", "cancelled"):
                finished[model, state, code if state == "failed" else ""] += number
    yield _counter("ltxq_jobs_submitted", "Jobs accepted.", ("model",), submitted)
    yield _counter("ltxq_jobs_claimed", "Claims by workers.", ("model",), claimed)
    yield _counter(
        "ltxq_jobs_finished",
        "Jobs by their final state; code: of the error of a failed one.",
        ("model", "state", "code"),
        finished,
    )
    yield _counter(
        "ltxq_jobs_requeued",
        "Jobs queued again: their worker was lost with them on its GPU, its lease ended, it gave "
        "them back, or their message was lost.",
        ("model", "reason"),
        requeued,
    )
    yield _counter(
        "ltxq_webhook_attempts",
        "Attempts to deliver a webhook; given_up: the last of a day's.",
        ("outcome",),
        webhooks,
    )


def _whole(figures: FleetFigures) -> Iterator[Metric]:
    for name, help_text, value in (
        ("ltxq_webhooks_pending", "Webhooks due now or later.", figures.webhooks),
        (
            "ltxq_webhooks_overdue_seconds",
            "Seconds since the oldest due webhook became due.",
            figures.webhooks_overdue,
        ),
        ("ltxq_leases_overdue", "Leases that ended and were not swept.", figures.leases_overdue),
        (
            "ltxq_results_unreported",
            "Final states that are not yet stored as Celery results.",
            figures.unreported,
        ),
        (
            "ltxq_sweep_age_seconds",
            "Seconds since the last sweep of any supervisor.",
            figures.sweep_age,
        ),
        (
            "ltxq_undeleted_clips",
            "Clips of which the storage refuses to delete a file; at most 1000 are counted.",
            figures.undeleted,
        ),
        ("ltxq_redis_memory_used_bytes", "Redis's memory.", figures.memory_used),
        ("ltxq_redis_memory_limit_bytes", "Its maxmemory; 0: none.", figures.memory_limit),
    ):
        if value is not None:
            yield GaugeMetricFamily(name, help_text, value)


def _family(
    kind: Callable[..., Any],
    name: str,
    text: str,
    labels: tuple[str, ...],
    samples: Mapping[tuple[str, ...], float],
) -> Metric:
    family = kind(name, text, labels=labels)
    for values, number in sorted(samples.items()):
        family.add_metric(values, number)
    return family  # type: ignore[no-any-return]


_gauge = partial(_family, GaugeMetricFamily)
_counter = partial(_family, CounterMetricFamily)


def new_registry() -> CollectorRegistry:
    """A registry with the metrics of every process: its version, memory and CPU time."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    Info("ltxq_build", "The version that runs.", registry=registry).info(
        {"version": version("ltxq")}
    )
    return registry


class MetricsServer:
    """Serves `/metrics` from a thread.

    Args:
        address: port 0: any free port.
        checks: other paths, as {'/healthz': whether this process works}.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """

    def __init__(
        self,
        address: Address,
        registry: CollectorRegistry,
        checks: Mapping[str, Callable[[], bool]] = MappingProxyType({}),
    ) -> None:
        metrics = make_wsgi_app(registry)

        def answer(environ: Any, start: Any) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if path == "/metrics":
                return metrics(environ, start)  # type: ignore[no-any-return]
            if path not in checks:
                start("404 Not Found", [("Content-Type", "text/plain")])
                return [", ".join(["/metrics", *checks]).encode() + b"\n"]
            fine = checks[path]()
            status = "200 OK" if fine else "503 Service Unavailable"
            start(status, [("Content-Type", "text/plain")])
            return [b"yes\n" if fine else b"no\n"]

        try:
            self._server = _Server((address.host.strip("[]"), address.port), _Handler)
        except OSError as exc:
            raise ConfigurationError(
                f"LTXQ_METRICS_ADDRESS={address} cannot be listened on: {exc.strerror}.",
                hint="Choose another port, or an address of this machine.",
            ) from exc
        self._server.set_app(answer)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()
        log.info("Metrics are served on %s:%d", address.host, self.port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingWSGIServer):
    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        super().__init__(address, handler)

    def handle_error(self, *_: Any) -> None:
        """Ignore a scraper that disconnects."""
        log.debug("A request for metrics was not answered.", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing for a scrape."""


@contextmanager
def served_metrics(settings: Settings, registry: CollectorRegistry) -> Iterator[None]:
    """Serve `/metrics` with the fleet's metrics, if LTXQ_METRICS_ADDRESS is set.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    if settings.metrics_address is None:
        yield
        return
    with closing(Ledger(settings)) as ledger:
        registry.register(FleetCollector(ledger, default_model=settings.default_model))
        with closing(MetricsServer(settings.metrics_address, registry)):
            yield
