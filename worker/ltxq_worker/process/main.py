"""The worker process: it loads a model onto one GPU, then takes messages from Celery. The
supervisor starts it with `python -m ltxq_worker.process.main`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.platforms import SecurityWarning

from ltxq.celery import make_app
from ltxq.celery.flower import show_outcome
from ltxq.errors import LtxqError, OutOfMemory, QueueUnavailable
from ltxq.ledger import TASK, Ledger, queue_name
from ltxq.logs import set_up_logging
from ltxq.settings import Settings
from ltxq.storage import Storage
from ltxq_worker.consumer.admission import admit, is_wakeup
from ltxq_worker.consumer.message_guard import Pool, bound_decompression, message_guard_step
from ltxq_worker.consumer.reconnect import reconnect_step
from ltxq_worker.consumer.remote_control import control_step
from ltxq_worker.pipeline import DeviceBroken, Pipeline
from ltxq_worker.pipeline.registry import family_of, model_folder
from ltxq_worker.pipeline.thread import GpuThread
from ltxq_worker.process.ending import Ending
from ltxq_worker.process.job_events import CeleryJobEvents
from ltxq_worker.process.runner import Runner
from ltxq_worker.process.supervisor_link import SupervisorLink


def load_pipeline(
    model: str, settings: Settings, device: str, supervisor: SupervisorLink
) -> Pipeline:
    """The pipeline of `model`, loaded and warm. Raises what `Family.load` raises."""
    return family_of(model).load(
        model_folder(settings, model),
        settings,
        device,
        lambda what, fraction: supervisor.send(loading=what, fraction=fraction),
    )


def consume(app: Celery, runner: Runner) -> None:
    """Give a Celery app the task, and the bootsteps that guard its consumer."""
    ledger, model, worker = runner.ledger, runner.pipeline.model, runner.worker
    app.conf.worker_disable_prefetch = True  # a message is taken when the GPU is free
    app.conf.worker_enable_remote_control = False  # Celery's own would obey any command
    app.steps["consumer"].update(
        (
            reconnect_step(ledger),
            message_guard_step(
                lambda message: admit(app, ledger, model, message),
                queue_name(model),
                ledger.claims.taken_key(worker),
            ),
            control_step(app, ledger),
        )
    )

    # Celery's events would name the job of the message, but the claimed job may be another.
    @app.task(name=TASK, ignore_result=True, send_events=False)
    def generate(*args: Any, **kwargs: Any) -> None:
        if is_wakeup(args, kwargs):
            named = args[0]
            if runner.take_turn() != named:
                show_why_not(app, ledger, named, worker)


def show_why_not(app: Celery, ledger: Ledger, job_id: str, worker: str) -> None:
    """Show the outcome of the job that a message names, if it ended without a worker, for example
    cancelled while it was queued: Flower does not know of that yet.
    """
    try:
        job = ledger.jobs.get(job_id)
    except LtxqError:
        return  # there is no such job, or Redis is away
    if job.finished and job.worker is None:
        show_outcome(app, job, worker)


def main() -> None:
    """Run the process."""
    options = _options()
    supervisor = SupervisorLink(options.control_channel)
    ending = Ending(supervisor, options.spool)
    try:
        settings = Settings.read()
        _set_up_logging(settings, options.name)
        runner, app = _prepare(options, settings, supervisor)
        ending.finish_first(runner)
    except LtxqError as exc:
        # The memory may belong to a process that is still ending.
        later = exc.retryable or isinstance(exc, OutOfMemory)
        supervisor.send(failed=str(exc), retryable=later)
        sys.exit(1)
    except DeviceBroken as exc:
        supervisor.send(failed=f"The GPU refuses all work: {exc}", retryable=True)
        sys.exit(1)
    ended = threading.Event()
    threading.Thread(target=runner.listen, args=(ended,), name="cancellations", daemon=True).start()
    reports = threading.Thread(
        target=runner.stats.keep_reporting,
        args=(lambda figures: supervisor.try_to_send(figures=figures), ended),
        name="figures",
        daemon=True,
    )
    reports.start()

    @signals.worker_ready.connect(weak=False)
    def on_ready(**_: Any) -> None:
        supervisor.send(ready=True)

    bound_decompression()
    worker = app.Worker(
        hostname=options.name,
        queues=[queue_name(options.model)],
        pool=Pool,
        concurrency=1,
        quiet=True,
        task_events=True,
        without_gossip=True,
        without_mingle=True,
    )
    worker.install_platform_tweaks = lambda _: None  # Celery's signal handlers
    worker.start()
    runner.join()
    ended.set()
    reports.join()
    sys.exit(worker.exitcode)


def _set_up_logging(settings: Settings, name: str) -> None:
    set_up_logging(settings.log, name)
    signals.setup_logging.connect(lambda **_: None, weak=False)  # keeps Celery's handlers away
    # Celery warns of pickle when run as root; ltxq's workers read JSON only.
    warnings.filterwarnings("ignore", category=SecurityWarning)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--device", required=True, choices=["cpu", "cuda"])
    parser.add_argument("--spool", required=True, type=Path)
    parser.add_argument("--control-channel", required=True, type=int)
    return parser.parse_args()


def _prepare(
    options: argparse.Namespace, settings: Settings, supervisor: SupervisorLink
) -> tuple[Runner, Celery]:
    shutil.rmtree(options.spool, ignore_errors=True)  # a process that died may have left files
    options.spool.mkdir(parents=True)
    ledger, app = Ledger(settings, "worker"), make_app(settings)
    with suppress(QueueUnavailable):  # it takes no messages until Redis is back
        ledger.check()
    storage = Storage.from_settings(settings)
    storage.check()
    gpu = GpuThread()
    runner = Runner(
        ledger=ledger,
        storage=storage,
        pipeline=gpu.run(
            lambda: load_pipeline(options.model, settings, options.device, supervisor)
        ),
        gpu=gpu,
        settings=settings,
        worker=options.name,
        spool=options.spool,
        events=CeleryJobEvents(app, ledger, options.name),
    )
    consume(app, runner)
    return runner, app


if __name__ == "__main__":
    main()
