"""ltxq, a queue for LTX-2 video generation: a prompt goes in, an MP4 comes out.

    from ltxq import Client

    with Client() as client:
        job = client.submit("a red fox in the snow", num_frames=121)
        print(client.wait(job.id).result_or_raise().url)

Client, AsyncClient      submit jobs, follow them, get their clips
VideoRequest             what to make
Job, JobPage             a job, and some of them
Progress, VideoResult    how far a job is, and what it made
errors                   everything that can go wrong; LtxqError is the base of all
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltxq import errors as errors
    from ltxq.client import AsyncClient, Client
    from ltxq.errors import JobError, LtxqError
    from ltxq.job import Job, JobPage, Progress, VideoRequest, VideoResult

__all__ = [
    "AsyncClient",
    "Client",
    "Job",
    "JobError",
    "JobPage",
    "LtxqError",
    "Progress",
    "VideoRequest",
    "VideoResult",
    "errors",
]

_HOMES = {
    "ltxq.client": ("AsyncClient", "Client"),
    "ltxq.errors": ("JobError", "LtxqError"),
    "ltxq.job": ("Job", "JobPage", "Progress", "VideoRequest", "VideoResult"),
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use: `import ltxq` alone stays a matter of milliseconds."""
    if name == "errors":
        return importlib.import_module("ltxq.errors")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'ltxq' has no attribute {name!r}")
