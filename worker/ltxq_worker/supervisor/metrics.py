"""A supervisor's own metrics, beside those of the fleet: its workers, their stages, spool, GPUs and
failures, and its sweeps. Worker processes report over the control channel (process/stats.py).
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ltxq.errors import LtxqError
from ltxq.ledger import Ledger, WorkerState
from ltxq.ops.metrics import FleetCollector, MetricsServer, new_registry
from ltxq.settings import Settings
from ltxq_worker.gpus import Gpu, read_gpus
from ltxq_worker.supervisor.child import WorkerSlot

log = logging.getLogger("ltxq.supervisor")

# Seconds: the upper ends of the histograms' buckets, from an instant test clip to a long timeout.
STAGE_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 300, 600, 1800)
WAIT_BUCKETS = (0.1, 1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600)
SWEEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
STAGES = ("encode_text", "denoise", "decode", "encode", "upload")

GPU_SECONDS = 10.0  # between two calls of nvidia-smi
GPU_STALE_SECONDS = 60.0  # after which its last answer is left out


class WorkerMetrics:
    """The metrics of the workers on this machine. They go on when a process is replaced."""

    def __init__(self, model: str, slots: Sequence[WorkerSlot], spool_limit: int) -> None:
        self._model = model
        self.registry = registry = new_registry()
        labels = ("worker", "model")

        def gauge(name: str, text: str, *more: str) -> Gauge:
            return Gauge(name, text, (*labels, *more), registry=registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *names: str) -> Histogram:
            return Histogram(name, text, names, buckets=buckets, registry=registry)

        self._ready = gauge("ltxq_worker_ready", "1: its model is loaded and it takes jobs.")
        self._starts = counter("ltxq_worker_starts", "Processes started for this worker.")
        self._gpu_busy = counter(
            "ltxq_worker_gpu_busy_seconds", "Seconds for which a job had the GPU."
        )
        self._jobs = gauge(
            "ltxq_worker_jobs", "Jobs in hand: on the GPU, or encoding or uploading.", "phase"
        )
        self._spool_limit = gauge("ltxq_worker_spool_limit_jobs", "LTXQ_SPOOL_JOBS.")
        self._storage_failures = counter(
            "ltxq_worker_storage_failures", "Failed upload attempts; each is retried."
        )
        self._lease_failures = counter("ltxq_worker_lease_failures", "Failed renewals of a lease.")
        self._stages = histogram(
            "ltxq_stage_seconds", "By stage, of jobs that succeeded.", STAGE_BUCKETS,
            "model", "stage",
        )  # fmt: skip
        self._wait = histogram(
            "ltxq_job_wait_seconds", "From submission to claim.", WAIT_BUCKETS, "model"
        )
        self._gpu = histogram(
            "ltxq_job_gpu_seconds", "From claim to the last frame decoded.", STAGE_BUCKETS, "model"
        )
        self._whole = histogram(
            "ltxq_job_seconds", "From claim to the clip's URL.", STAGE_BUCKETS, "model"
        )
        self._sweeps = Counter("ltxq_sweeps", "By outcome.", ("outcome",), registry=registry)
        self._sweep_seconds = histogram("ltxq_sweep_seconds", "One sweep.", SWEEP_BUCKETS)
        self._create_series(slots, spool_limit)

    def _create_series(self, slots: Sequence[WorkerSlot], spool_limit: int) -> None:
        """Create every series at the start: a counter that appears at 1 has no rate."""
        for slot in slots:
            labels = (slot.name, self._model)
            self._ready.labels(*labels)
            self._spool_limit.labels(*labels).set(spool_limit)
            for counter in (self._starts, self._gpu_busy):
                counter.labels(*labels)
            for counter in (self._storage_failures, self._lease_failures):
                counter.labels(*labels)
            for phase in ("gpu", "spool"):
                self._jobs.labels(*labels, phase)
        for stage in STAGES:
            self._stages.labels(self._model, stage)
        for histogram in (self._wait, self._gpu, self._whole):
            histogram.labels(self._model)
        for outcome in ("done", "failed"):
            self._sweeps.labels(outcome)

    def add(self, slot: WorkerSlot, figures: dict[str, Any]) -> None:
        """Add what a process has measured since its last report."""
        labels = (slot.name, self._model)
        self._gpu_busy.labels(*labels).inc(figures["gpu_busy"])
        self._jobs.labels(*labels, "gpu").set(figures["on_gpu"])
        self._jobs.labels(*labels, "spool").set(figures["spooled"])
        counts = figures["counts"]
        self._storage_failures.labels(*labels).inc(counts.get("storage_failures", 0))
        self._lease_failures.labels(*labels).inc(counts.get("lease_failures", 0))
        for timings in figures["timings"]:
            for stage in STAGES:
                if stage in timings:
                    self._stages.labels(self._model, stage).observe(timings[stage])
            for histogram, name in (
                (self._wait, "queued"),
                (self._gpu, "gpu"),
                (self._whole, "total"),
            ):
                if name in timings:
                    histogram.labels(self._model).observe(timings[name])

    def serve(
        self,
        settings: Settings,
        ledger: Ledger,
        slots: Sequence[WorkerSlot],
        spool: Path,
        *,
        healthy: Callable[[], bool],
        state: Callable[[WorkerSlot], WorkerState],
    ) -> MetricsServer | None:
        """Serve `/metrics` where the settings say so; the caller closes it.

        Args:
            healthy: whether the supervisor still looks after its processes.
            state: the present state of a slot's worker.

        Raises:
            ConfigurationError: the address cannot be listened on.
        """
        if settings.metrics_address is None:
            return None
        for slot in slots:
            ready = partial(_is_ready, state, slot)
            self._ready.labels(slot.name, self._model).set_function(ready)
        self.registry.register(FleetCollector(ledger, default_model=settings.default_model))
        self.registry.register(SpoolCollector(spool))
        gpus = GpuCollector(slots)
        self.registry.register(gpus)
        gpus.start()
        checks = {  # for container orchestrators
            "/healthz": healthy,
            "/readyz": lambda: any(_is_ready(state, slot) for slot in slots),
        }
        return MetricsServer(settings.metrics_address, self.registry, checks)

    def started(self, slot: WorkerSlot) -> None:
        """A process was started for the slot."""
        self._starts.labels(slot.name, self._model).inc()

    @contextmanager
    def sweep(self) -> Iterator[None]:
        """Measure one of this supervisor's sweeps."""
        try:
            with self._sweep_seconds.time():
                yield
        except LtxqError:
            self._sweeps.labels("failed").inc()
            raise
        self._sweeps.labels("done").inc()

    def ended(self, slot: WorkerSlot) -> None:
        """The slot's process has ended and holds no jobs."""
        for phase in ("gpu", "spool"):
            self._jobs.labels(slot.name, self._model, phase).set(0)


class SpoolCollector(Collector):
    """The disk on which finished clips wait for their upload."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def collect(self) -> Iterator[Metric]:
        """Bytes now."""
        try:
            disk = shutil.disk_usage(self._root)
        except OSError:  # it is gone, until the next job
            return
        yield GaugeMetricFamily(
            "ltxq_spool_free_bytes", "Free space of the spool's disk.", disk.free
        )
        yield GaugeMetricFamily("ltxq_spool_size_bytes", "Of the spool's disk.", disk.total)
        used = 0
        for path in self._root.rglob("*"):
            try:
                used += path.stat().st_size
            except FileNotFoundError:  # uploaded meanwhile
                continue
        yield GaugeMetricFamily(
            "ltxq_spool_used_bytes", "Size of the clips that wait for uploading.", used
        )


class GpuCollector(Collector):
    """Memory and load as NVIDIA's driver reports them, also while a process hangs or has ended.

    A separate thread asks the driver, since a broken GPU may delay the answer.
    """

    def __init__(self, slots: Sequence[WorkerSlot]) -> None:
        self._workers = {slot.gpu: slot.name for slot in slots if slot.gpu is not None}
        self._found: list[Gpu] = []
        self._found_at = 0.0

    def start(self) -> None:
        """Ask from now on; does nothing without a GPU."""
        if self._workers:
            threading.Thread(target=self._keep_asking, name="gpus", daemon=True).start()

    def collect(self) -> Iterator[Metric]:
        """The last answer, unless it is old."""
        used = GaugeMetricFamily(
            "ltxq_worker_gpu_memory_used_bytes",
            "Used memory of the worker's GPU.",
            labels=("worker",),
        )
        size = GaugeMetricFamily(
            "ltxq_worker_gpu_memory_size_bytes", "Memory of the worker's GPU.", labels=("worker",)
        )
        load = GaugeMetricFamily(
            "ltxq_worker_gpu_utilization_ratio",
            "Share of the last second or so in which a kernel ran.",
            labels=("worker",),
        )
        if time.monotonic() - self._found_at < GPU_STALE_SECONDS:
            for gpu in self._found:
                figures = (gpu.memory_used, gpu.memory_size, gpu.utilization)
                for family, value in zip((used, size, load), figures, strict=True):
                    if not math.isnan(value):
                        family.add_metric((self._workers[gpu.index],), value)
        yield from (used, size, load)

    def _keep_asking(self) -> None:
        while True:
            if found := [gpu for gpu in read_gpus() if gpu.index in self._workers]:
                self._found, self._found_at = found, time.monotonic()
            time.sleep(GPU_SECONDS)


def _is_ready(state: Callable[[WorkerSlot], WorkerState], slot: WorkerSlot) -> bool:
    return state(slot) == "ready"
