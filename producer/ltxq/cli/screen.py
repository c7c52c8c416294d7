"""What commands show: results on standard output, everything else on standard error.

Text of jobs may be a stranger's, so all output passes `one_line`: no control character reaches the
terminal, and no text adds a line.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel

from ltxq.errors import InvalidRequest, JobFailed, LtxqError, QueueUnavailable
from ltxq.job import Job, Progress, VideoRequest, WebhookState
from ltxq.printable import one_line

if TYPE_CHECKING:
    from ltxq.client import Client
    from ltxq.ops.findings import Finding

_STAGES = {
    "encode_text": "reading the prompt",
    "denoise": "denoising",
    "decode": "decoding",
    "encode": "making the MP4",
    "upload": "uploading",
}


def say(*lines: str) -> None:
    """A result, on standard output, line by line."""
    for line in lines:
        print(one_line(line))  # noqa: T201


def table(rows: Iterable[Sequence[object]]) -> None:
    """Rows in columns, on standard output. No cell is cut off: people copy names and ids."""
    cells = [[one_line(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        say("  ".join(map(str.ljust, row, widths)).rstrip())


def note(*lines: str) -> None:
    """Print lines to standard error, which may be closed."""
    with suppress(OSError):
        for line in lines:
            print(one_line(line), file=sys.stderr)  # noqa: T201


def emit(value: BaseModel | Mapping[str, Any]) -> None:
    """The one JSON object of a command run with --json, on one line."""
    fields = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    print(json.dumps(fields), flush=True)  # noqa: T201


def result(value: BaseModel | Mapping[str, Any], *lines: str, as_json: bool) -> None:
    """A command's result: `value` with --json, else `lines`."""
    if as_json:
        emit(value)
    else:
        say(*lines)


def error_fields(exc: LtxqError) -> dict[str, Any]:
    """`{code, message, hint, retryable}` of an error; `problems` and `idempotency_key` where it
    has some.
    """
    error = exc.error if isinstance(exc, JobFailed) else exc.as_job_error()
    fields = error.model_dump()
    if fields["code"] == "internal" and not isinstance(exc, JobFailed):
        # Errors without a job's code get their type's name: QueueUnavailable → queue_unavailable.
        fields["code"] = re.sub(r"(?<!^)(?=[A-Z])", "_", type(exc).__name__).lower()
    if isinstance(exc, InvalidRequest) and exc.problems:
        fields["problems"] = [{"field": f, "reason": reason} for f, reason in exc.problems]
    if isinstance(exc, QueueUnavailable) and exc.idempotency_key is not None:
        fields["idempotency_key"] = exc.idempotency_key
    return fields


def error(fields: Mapping[str, Any], *, as_json: bool) -> None:
    """An error: one JSON object, or its problems line by line and what to do."""
    whole = {"code": "internal", "message": "", "hint": "", "retryable": False, **fields}
    if as_json:
        emit({"error": whole})
        return
    if "problems" in whole:
        note("The request is invalid:")
        for problem in whole["problems"]:
            note(f"  {_option(problem['field'])}: {_with_options(problem['reason'])}")
    else:
        note(f"Error: {_with_options(whole['message'])}")
    if whole["hint"]:
        note(_with_options(whole["hint"]))
    if "idempotency_key" in whole:
        key = shlex.quote(whole["idempotency_key"])
        note(f"Run the same command again with: --idempotency-key {key}")


def _option(field: str) -> str:
    """A request's field as the option that gives it: num_frames → --num-frames."""
    name, _, key = field.partition(".")
    if name == "prompt":
        return "PROMPT"
    known = name in VideoRequest.model_fields or name == "idempotency_key"
    return f"--{name.replace('_', '-')} {key}".rstrip() if known else field


def _with_options(text: str) -> str:
    """A message for the command line: `num_frames` in backticks is a request's field."""
    return re.sub(r"`([a-z_]+)`", lambda name: _named(name[1]) or name[0], text)


def _named(field: str) -> str:
    return _option(field) if field in VideoRequest.model_fields else ""


def finding(found: Finding) -> None:
    """A line of the doctor's report, and what to do."""
    say(f"{found.status.upper():8} {found.about:11} {found.message}")
    if found.hint:
        say(f"{'':20} → {found.hint}")


class Bar:
    """A progress bar on standard error; without a terminal, a line for each stage."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True)
        self._rich = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._rich.add_task("", total=1.0)
        self._last = ""

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._rich.stop()

    def at(self, stage: str, fraction: float, detail: str = "") -> None:
        """Show that `stage` is going on and `fraction` (0..1) of everything is done."""
        text = one_line(f"{stage} {detail}".strip())
        self._rich.update(self._task, description=text, completed=fraction)
        if self._rich.disable and stage != self._last:
            note(f"{stage} …")
        self._last = stage


def show_progress(bar: Bar, progress: Progress) -> None:
    """A running job's progress on the bar."""
    detail = f"{progress.step}/{progress.steps}" if progress.steps > 1 else ""
    bar.at(_STAGES[progress.stage], progress.fraction, detail)


def follow(client: Client, job_id: str, timeout: float | None = None) -> Job:
    """The job once it is finished, with a progress bar meanwhile.

    Raises:
        WaitTimeout, JobNotFound
    """
    try:
        with Bar() as bar:
            for job in client.watch(job_id, timeout):
                show_job(bar, job)
    except KeyboardInterrupt:
        note(f"The job goes on. Follow it again with: ltxq watch {job_id}")
        raise
    return job


def show_job(bar: Bar, job: Job) -> None:
    """Show the job's state on the bar."""
    if job.state == "queued":
        bar.at(f"queued, waiting for a worker with {job.request.model}", 0)
    elif job.progress is not None:
        show_progress(bar, job.progress)
    elif job.state == "running":
        bar.at("starting", 0)


def job_lines(job: Job) -> Iterable[str]:
    """A job's description for people, line by line."""
    request, result = job.request, job.result
    yield f"{job.id}  {job.state}{' (asked to stop)' if job.cancel_requested else ''}"
    yield f"  prompt     {_shortened(request.prompt, 200)}"
    width, height = request.output_size
    yield (
        f"  clip       {width}×{height}, {request.num_frames} frames at {request.frame_rate:g}/s "
        f"({request.duration:.1f} s), {'with' if request.audio else 'no'} sound"
        f"{', in two stages' if request.stages == 2 else ''}"
    )
    yield f"  model      {request.model}, seed {request.seed}, priority {request.priority}"
    yield f"  submitted  {ago(job.submitted_at)}"
    if job.ready_workers == 0:
        yield f"  waits      no worker is ready for {request.model}"
    if job.started_at:
        again = f", attempt {job.attempts}" if job.attempts > 1 else ""
        yield f"  started    {ago(job.started_at)} on {job.worker}{again}"
    if job.progress and not job.finished:
        yield f"  progress   {_STAGES[job.progress.stage]}, {job.progress.fraction:.0%}"
    if job.finished_at:
        yield f"  finished   {ago(job.finished_at)}"
    if job.retry_of:
        yield f"  retry of   {job.retry_of}"
    if job.webhook:
        yield f"  webhook    {_webhook(job.webhook)}"
    if job.error:
        yield _with_options(f"  {job.error.code}: {job.error.message} {job.error.hint}".rstrip())
    if result:
        yield f"  url        {result.url}"
        if result.expires_at:
            yield f"             until {result.expires_at.astimezone():%Y-%m-%d %H:%M %Z}"


def _webhook(webhook: WebhookState) -> str:
    if webhook.delivered_at:
        return f"delivered {ago(webhook.delivered_at)}, attempt {webhook.attempts}"
    state = "given up" if webhook.state == "failed" else "pending"
    failed = f": {webhook.last_error}" if webhook.last_error else ""
    return f"{state}, attempt {webhook.attempts}{failed}"


def job_row(job: Job) -> str:
    """A job in one line."""
    size = "{}×{}".format(*job.request.output_size)
    return f"{job.id}  {job.state:9}  {ago(job.submitted_at):>10}  {size:>9}  " + _shortened(
        job.request.prompt, 60
    )


def ago(moment: datetime) -> str:
    """'5 s ago', '3 min ago', '2 h ago', and the date beyond a day."""
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    if seconds < 60:
        return f"{seconds} s ago"
    if seconds < 3600:
        return f"{seconds // 60} min ago"
    if seconds < 24 * 3600:
        return f"{seconds // 3600} h ago"
    return f"{moment.astimezone():%Y-%m-%d}"


def _shortened(text: str, most: int) -> str:
    line = one_line(" ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"
