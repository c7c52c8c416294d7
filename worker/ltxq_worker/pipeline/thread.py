"""The thread that drives the device: loading, warming up and making clips all happen on it.

cuDNN keeps its plans and cuBLAS its workspaces for each thread, so on several threads the same work
is planned several times. And torch (2.11, seen on a CPU) crashes where a thread compiles after the
thread that compiled first has ended: so there is one, as long as its process. Encoding, uploading
and waiting are other threads' work. Knows no torch.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


class GpuThread:
    """Runs one piece of work after the other, always on the same thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu")

    def run(self, work: Callable[[], T]) -> T:
        """Run `work` on the GPU thread and wait for its result; its errors are raised here.

        `work` sees the caller's context variables, such as the job that log lines belong to.
        """
        return self._thread.submit(copy_context().run, _done, work).result()


def _done(work: Callable[[], T]) -> T:
    try:
        return work()
    except BaseException as exc:
        # The tensors in its frames' variables are let go before the next job starts.
        traceback.clear_frames(exc.__traceback__)
        raise
