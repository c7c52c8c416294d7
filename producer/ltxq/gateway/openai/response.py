"""A `Job` as the video object of OpenAI's SDKs, with ltxq's own fields added."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from ltxq.gateway.openai.errors import public_job
from ltxq.job import Job, JobPage, JobState, Priority, Stage

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]

STATUSES: dict[JobState, Status] = {
    "queued": "queued",
    "running": "in_progress",
    "succeeded": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
}
REMIXED_FROM = "remixed_from_video_id"  # key in the metadata of a remix


class VideoError(BaseModel):
    """Why the video failed or was cancelled."""

    code: str
    message: str


class Video(BaseModel):
    """A video: queued, in progress or finished."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int = Field(description="Percent, 0 to 100; 100 only when completed.")
    created_at: int = Field(description="Unix time in seconds, as all times here.")
    completed_at: int | None = Field(default=None, description="When the status became final.")
    expires_at: int | None = Field(
        default=None, description="When the URLs expire; reading the video again returns new ones."
    )
    size: str = Field(description="WIDTHxHEIGHT of the MP4 in pixels.")
    seconds: str = Field(description="Exact duration of the clip, as decimal text.")
    prompt: str
    error: VideoError | None = None
    remixed_from_video_id: str | None = None
    queue_position: int | None = Field(
        default=None, description="While queued: number of jobs that start before this one."
    )
    eta_seconds: float | None = Field(
        default=None, description="Estimated seconds until it is finished."
    )
    stage: Stage | None = Field(default=None, description="The current step of the work.")
    url: str | None = Field(default=None, description="The MP4. Anyone with this URL can read it.")
    thumbnail_url: str | None = Field(default=None, description="The first frame as JPEG.")
    spritesheet_url: str | None = Field(default=None, description="Frames in a grid as JPEG.")
    sha256: str | None = Field(default=None, description="SHA-256 of the MP4, hexadecimal.")
    seed: int | None = None
    fps: float
    num_frames: int
    priority: Priority = "normal"
    metadata: dict[str, str] = Field(default_factory=dict)
    timings: dict[str, float] | None = Field(default=None, description="Seconds of each stage.")
    attempts: int = Field(default=0, description="How many times a worker started it.")
    worker: str | None = None


class VideoPage(BaseModel):
    """Videos in order of creation."""

    object: Literal["list"] = "list"
    data: tuple[Video, ...]
    first_id: str | None
    last_id: str | None = Field(description="Send it as `after` to read the next page.")
    has_more: bool


class VideoDeleted(BaseModel):
    """The video is gone: neither listed nor found."""

    id: str
    deleted: Literal[True] = True
    object: Literal["video.deleted"] = "video.deleted"


def video_of(job: Job) -> Video:
    """The job as a video object."""
    job = public_job(job)
    request, result = job.request, job.result
    (width, height), duration = request.output_size, request.duration
    error = None
    if job.error is not None:
        text = f"{job.error.message} {job.error.hint}".strip()
        error = VideoError(code=job.error.code, message=text)
    made = {}
    if result is not None:
        width, height, duration = result.width, result.height, result.duration
        made = {
            "url": result.url,
            "thumbnail_url": result.poster_url,
            "spritesheet_url": result.spritesheet_url,
            "sha256": result.sha256,
            "timings": result.timings,
            "expires_at": _seconds(result.expires_at),
        }
    return Video(
        id=job.id,
        model=request.model or "",
        status=STATUSES[job.state],
        progress=_percent(job),
        created_at=int(job.submitted_at.timestamp()),
        completed_at=_seconds(job.finished_at),
        size=f"{width}x{height}",
        seconds=f"{duration:.3f}".rstrip("0").rstrip("."),
        prompt=request.prompt,
        error=error,
        remixed_from_video_id=request.metadata.get(REMIXED_FROM),
        queue_position=job.queue_position,
        eta_seconds=job.eta_seconds,
        stage=job.progress.stage if job.progress else None,
        seed=request.seed,
        fps=request.frame_rate,
        num_frames=request.num_frames,
        priority=request.priority,
        metadata=request.metadata,
        attempts=job.attempts,
        worker=job.worker,
        **made,
    )


def page_of(page: JobPage) -> VideoPage:
    """The jobs as a page of videos."""
    videos = tuple(video_of(job) for job in page.jobs)
    return VideoPage(
        data=videos,
        first_id=videos[0].id if videos else None,
        # `after` even if no record of the page is readable: the next page starts there.
        last_id=page.after or (videos[-1].id if videos else None),
        has_more=page.after is not None,
    )


def _percent(job: Job) -> int:
    if job.state == "succeeded":
        return 100
    # 100 means that the clip can be downloaded.
    return min(int(job.progress.fraction * 100), 99) if job.progress else 0


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
