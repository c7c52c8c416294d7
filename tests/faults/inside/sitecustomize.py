"""Loaded by Python at the start of every worker process that has this folder on its PYTHONPATH:
a job whose prompt says so misbehaves inside the real worker, where no signal could be timed so.

    "hold STAGE"    its first attempt stays in that stage for ever ("finish": before the last write;
                    "tell": after it, before Celery is told)
    "wait STAGE"    its first attempt stays there until the file $LTXQ_TEST_GO is there
    "die"           every attempt kills its process while it denoises
    "hang"          every attempt waits for a GPU that never answers
"""

import os
import signal
import threading
import time
from contextvars import ContextVar
from pathlib import Path

import ltxq_worker.process.runner
import ltxq_worker.supervisor.supervisor
from ltxq.ledger.claims import Claims
from ltxq.ledger.jobs import JobStore
from ltxq.storage import Storage
from ltxq_worker.pipeline.instant import InstantPipeline
from ltxq_worker.process.attempt import Attempt
from ltxq_worker.process.runner import Runner

ltxq_worker.supervisor.supervisor.HUNG_SECONDS = 1.0
if "LTXQ_TEST_FULL_DISK_SECONDS" in os.environ:
    ltxq_worker.process.runner.FULL_DISK_SECONDS = float(os.environ["LTXQ_TEST_FULL_DISK_SECONDS"])
now = ContextVar("claim", default=None)  # what this thread works on, or has the GPU's work on


def misbehave(stage):
    claim = now.get()
    if claim is None:
        return
    if claim.request.prompt == "die" and stage == "denoise":
        os.kill(os.getpid(), signal.SIGKILL)
    if claim.attempt > 1:
        return
    if claim.request.prompt == f"hold {stage}":
        threading.Event().wait()
    if claim.request.prompt == f"wait {stage}":
        while not Path(os.environ["LTXQ_TEST_GO"]).exists():
            time.sleep(0.02)


def before(cls, name, act):
    original = getattr(cls, name)

    def wrapped(self, *args, **kwargs):
        act(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    setattr(cls, name, wrapped)


report = Attempt.report


def report_and_misbehave(self, stage, step, steps):
    report(self, stage, step, steps)
    if stage != "upload":  # there the storage is asked, below
        misbehave(stage)


def hang(self, request, report):
    if request.prompt == "hang":
        threading.Event().wait()


Attempt.report = report_and_misbehave
before(Runner, "_outcome", lambda self, attempt, *_: now.set(attempt.claim))
before(Storage, "put", lambda *_, **__: misbehave("upload"))
before(Claims, "finish", lambda *_, **__: misbehave("finish"))
before(JobStore, "get", lambda *_: misbehave("tell"))
before(InstantPipeline, "generate", hang)
