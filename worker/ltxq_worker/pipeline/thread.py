"""The thread that drives the device: it loads the model, warms it up and makes all clips.

cuDNN caches its plans and cuBLAS its workspaces per thread, so several threads would plan the same
work several times. And torch (2.11, seen on a CPU) crashes if a thread compiles after the thread
that compiled first has ended; so one thread lives as long as the process. Other threads encode,
upload and wait. Imports no torch.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


class GpuThread:
    """Runs calls one after another, always on the same thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu")

    def run(self, work: Callable[[], T]) -> T:
        """Run `work` on the GPU thread and return its result or raise its error.

        `work` sees the caller's context variables, such as the job that log lines belong to.
        """
        return self._thread.submit(copy_context().run, _run, work).result()


def _run(work: Callable[[], T]) -> T:
    try:
        return work()
    except BaseException as exc:
        # The traceback's local variables hold tensors, which must be freed before the next job.
        traceback.clear_frames(exc.__traceback__)
        raise
