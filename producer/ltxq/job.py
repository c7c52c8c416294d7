"""The contract: what a user asks for, what a job is, and what comes back.

Read this first. Everything else moves these values from one place to another. A change here is
a new version of the contract: raise `CONTRACT` (it is part of the queue's name, so an older
worker never sees a newer job) and say so in CHANGELOG.md.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ltxq.errors import InvalidRequest, JobError, JobFailed
from ltxq.limits import (
    FRAME_STEP,
    MAX_SECONDS,
    MAX_SIDE,
    MIN_SIDE,
    SIDE_STEP,
    either,
    most_frames,
    nearest,
    nearest_frames,
)
from ltxq.printable import one_line
from ltxq.reasons import matching, reason_of

CONTRACT = 3
"""Version of the job contract, in every record and in the queue's name."""

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Order = Literal["asc", "desc"]
FINAL_STATES: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})

Priority = Literal["high", "normal", "low"]
Stage = Literal["encode_text", "denoise", "decode", "encode", "upload"]

MAX_SEED = 2**53 - 1  # the largest integer every JSON reader keeps exact
MAX_WAIT_SECONDS = 30 * 24 * 3600
MAX_URL_SECONDS = 7 * 24 * 3600  # SigV4's bound on a presigned URL

ModelName = Annotated[
    str,
    *matching(
        "[a-z0-9][a-z0-9._-]{0,63}",
        "must be a model's name: at most 64 of a-z 0-9 . _ - and a letter or digit first",
    ),
]

_JOB_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")


def new_job_id() -> str:
    """A fresh job id: `video_` and 32 random hex digits."""
    return f"video_{secrets.token_hex(16)}"


def is_job_id(text: str) -> bool:
    """Whether `text` may name a job. A job sent by a plain Celery producer has Celery's UUID."""
    return _JOB_ID.fullmatch(text) is not None


class VideoRequest(BaseModel):
    """What the user asks for. Immutable; what cannot be made is refused, never adjusted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    if not TYPE_CHECKING:  # a type checker knows the fields from below

        def __init__(self, /, **fields: Any) -> None:
            """Raises `InvalidRequest`, as `parse`."""
            try:
                super().__init__(**fields)
            except ValidationError as exc:
                raise _refusal(exc) from None

        # As in BaseModel: reading a request from JSON does not call it, and stays quick.
        __init__.__pydantic_base_init__ = True

    prompt: str = Field(
        min_length=1,
        max_length=5000,
        description="What the clip shows, 1 to 5,000 characters. More than 1,024 of the model's "
        "tokens fail as invalid_request on the worker, with their count.",
    )
    stages: int = Field(
        default=1,
        ge=1,
        le=2,
        description="1: full size. 2: half size, upscaled and refined, for large clips; sides "
        "are then multiples of 64.",
    )
    height: int = Field(
        default=512, description="Pixels; a multiple of 32 (64 for two stages) from 64 to 2048."
    )
    width: int = Field(default=768, description="Pixels, as `height`.")
    frame_rate: float = Field(default=24.0, description="Frames per second, 1 to 60.")
    num_frames: int = Field(
        default=33,
        validate_default=True,
        description="1, 9, 17, 25, … (8k+1); at most 20 seconds at frame_rate.",
    )
    seed: int | None = Field(
        default=None,
        description="0 to 2^53-1; the same seed makes the same clip. Default: a random "
        "seed, chosen and recorded at submission.",
    )
    audio: bool = Field(default=True, description="With sound.")
    model: ModelName | None = Field(default=None, description="Default: the queue's default model.")
    priority: Priority = "normal"
    timeout: int = Field(
        default=600,
        ge=1,
        le=24 * 3600,
        description="Seconds from a worker's claim to the encoded MP4; uploading is not counted.",
    )
    expires_in: int = Field(
        default=24 * 3600,
        ge=60,
        le=MAX_URL_SECONDS,
        description="Seconds for which the result's URLs are valid; at most 7 days.",
    )
    metadata: dict[str, str] = Field(
        default_factory=dict,
        description="Stored with the job: up to 16 pairs, keys up to 64 characters, values up to "
        "512.",
    )
    webhook_url: str | None = Field(
        default=None,
        max_length=2048,
        description="http(s) URL that gets a signed POST when the job ends.",
    )
    not_before: AwareDatetime | None = Field(
        default=None,
        description="Earliest start, as 2026-12-24T18:00:00Z.",
    )
    start_within: float | None = Field(
        default=None,
        ge=0.001,
        le=MAX_WAIT_SECONDS,
        description="Cancel the job as expired if no worker has taken it within this many seconds "
        "of its submission; at most 30 days.",
    )
    crop_width: int | None = Field(
        default=None,
        description="Crop the MP4 to this width, evenly on both sides: even, and less than 32 (two "
        "stages: 64) pixels below `width`.",
    )
    crop_height: int | None = Field(
        default=None, description="Crop the MP4 to this height, as `crop_width`."
    )

    @field_validator(
        *("stages", "height", "width", "frame_rate", "num_frames", "seed", "timeout", "expires_in"),
        *("start_within", "crop_width", "crop_height"),
        mode="before",
    )
    @classmethod
    def _truth_is_no_number(cls, value: Any) -> Any:
        if isinstance(value, bool):  # which pydantic takes for 0 or 1
            raise ValueError("must be a number")
        return value

    @field_validator("prompt")
    @classmethod
    def _prompt_says_something(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("must not be blank")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ValueError("must be text that UTF-8 can hold (it has a lone surrogate)") from None
        return prompt

    @field_validator("height", "width")
    @classmethod
    def _side_is_allowed(cls, side: int, earlier: ValidationInfo) -> int:
        stages = earlier.data.get("stages", 1)  # missing where it is wrong itself
        step = stages * SIDE_STEP
        if side % step or not MIN_SIDE <= side <= MAX_SIDE:
            near = nearest(side, step=step, low=MIN_SIDE, high=MAX_SIDE)
            raise ValueError(
                f"must be a multiple of {step}{' for two stages' if stages == 2 else ''} "
                f"from {MIN_SIDE} to {MAX_SIDE}{_not(side)}; nearest: {either(near)}"
            )
        return side

    @field_validator("frame_rate")
    @classmethod
    def _frame_rate_is_allowed(cls, rate: float) -> float:
        if not 1 <= rate <= 60:
            raise ValueError(
                f"must be from 1 to 60, not {rate:g}; nearest: {1 if rate < 1 else 60}"
            )
        return rate

    @field_validator("num_frames")
    @classmethod
    def _num_frames_is_allowed(cls, frames: int, earlier: ValidationInfo) -> int:
        rate = earlier.data.get("frame_rate", 24.0)  # missing where it is wrong itself
        near = either(nearest_frames(frames, rate))
        if frames < 1 or frames % FRAME_STEP != 1:
            raise ValueError(f"must be 8k+1{_not(frames)}; nearest: {near}")
        if frames > most_frames(rate):
            raise ValueError(
                f"must last at most {MAX_SECONDS:g} s at {rate:g} frames a second"
                f"{_not(frames)}; nearest: {near}"
            )
        return frames

    @field_validator("seed")
    @classmethod
    def _seed_is_allowed(cls, seed: int | None) -> int | None:
        if seed is not None and not 0 <= seed <= MAX_SEED:
            raise ValueError(
                f"must be from 0 to 2^53-1; nearest: {0 if seed < 0 else MAX_SEED}, "
                "or leave it out for a random seed"
            )
        return seed

    @field_validator("metadata")
    @classmethod
    def _metadata_is_small(cls, metadata: dict[str, str]) -> dict[str, str]:
        if len(metadata) > 16:
            raise ValueError(f"must have at most 16 pairs, not {len(metadata)}")
        for key, value in metadata.items():
            if not 1 <= len(key) <= 64:
                raise ValueError(f"keys must have 1 to 64 characters, {key[:20]!r} has {len(key)}")
            if len(value) > 512:
                raise ValueError(
                    f"values must have at most 512 characters, {key!r} has {len(value)}"
                )
            try:
                (key + value).encode()
            except UnicodeEncodeError:
                raise ValueError(f"{key!a} must be text that UTF-8 can hold") from None
        return metadata

    @field_validator("webhook_url")
    @classmethod
    def _webhook_is_http(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:  # in words of ours: urlsplit's own hold parts of the URL, which may be secret
            parts = urlsplit(url)
            right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            right = False
        if not right or not re.fullmatch(r"https?://\S+", url) or not url.isprintable():
            raise ValueError("must be an http:// or https:// URL")
        if parts.username is not None:
            raise ValueError(
                "must have no user or password in it: none are sent on. A webhook's signature "
                "says who sent it"
            )
        return url

    @model_validator(mode="after")
    def _crop_fits(self) -> VideoRequest:
        step = self.stages * SIDE_STEP
        for field, side in (("crop_width", self.width), ("crop_height", self.height)):
            crop = getattr(self, field)
            if crop is None:
                continue
            if crop % 2 or not side - step < crop <= side:
                near = nearest(crop, step=2, low=side - step + 2, high=side)
                raise ValueError(
                    f"{field}: must be even, from {side - step + 2} to {side}{_not(crop)}; "
                    f"nearest: {either(near)}"
                )
        return self

    @property
    def duration(self) -> float:
        """Seconds the clip plays."""
        return self.num_frames / self.frame_rate

    @property
    def output_size(self) -> tuple[int, int]:
        """Width and height of the MP4 in pixels, after cropping."""
        return self.crop_width or self.width, self.crop_height or self.height

    def settled(self, default_model: str) -> VideoRequest:
        """This request with nothing left open: its model named, its seed drawn."""
        return self.model_copy(
            update={
                "model": self.model or default_model,
                "seed": secrets.randbelow(MAX_SEED + 1) if self.seed is None else self.seed,
            }
        )

    @classmethod
    def parse(cls, fields: Any) -> VideoRequest:
        """Build a request from anything a stranger sent.

        Raises:
            InvalidRequest: with every field that is wrong, why, and the nearest right values.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as exc:
            raise _refusal(exc) from None


def _refusal(exc: ValidationError) -> InvalidRequest:
    return InvalidRequest.of(*(_problem(e, VideoRequest.model_fields) for e in exc.errors()))


def _problem(error: Any, names: Collection[str]) -> tuple[str, str]:
    """One of pydantic's errors as (field, reason), without the input: it may be a secret."""
    reason = reason_of(error, names)
    field = ".".join(str(part) or "''" for part in error["loc"])
    if not field and re.match(r"^[a-z_]+: ", reason):  # from a check over several fields
        field, reason = reason.split(": ", 1)
    return one_line(field[:100]) or "request", reason


def _not(number: int) -> str:
    """', not 500': the number that was given, unless it is too long to be read."""
    return f", not {number}" if abs(number) < 10**12 else ""


class Progress(BaseModel):
    """How far a running job is."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    stage: Stage
    step: int = Field(ge=0, description="Finished steps of this stage.")
    steps: int = Field(ge=1, description="All steps of this stage.")
    fraction: float = Field(ge=0, le=1, description="Share of the whole job, estimated.")


class VideoResult(BaseModel):
    """The finished clip. Its URLs are valid until `expires_at`; reading the job again signs new
    ones.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    url: str = Field(description="The MP4.")
    poster_url: str = Field(description="JPEG, the clip's first frame at full size.")
    spritesheet_url: str = Field(description="JPEG, frames across the clip in a grid.")
    sidecar_url: str = Field(description="JSON: request, seed, model, versions, timings.")
    key: str = Field(
        description="The MP4's key in the bucket, '<prefix><job id>/<claim>/clip.mp4'."
    )
    sha256: str = Field(description="SHA-256 of the MP4, hex.")
    size: int = Field(description="Bytes of the MP4.")
    width: int = Field(description="Pixels.")
    height: int = Field(description="Pixels.")
    num_frames: int
    frame_rate: float = Field(description="Frames per second.")
    duration: float = Field(description="Seconds of picture.")
    seed: int
    model: str
    timings: dict[str, float] = Field(description="Seconds by stage.")
    expires_at: datetime | None = Field(description="When the URLs expire; absent: never.")


class WebhookState(BaseModel):
    """Delivery of the webhook to the request's webhook_url."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: Literal["pending", "delivered", "failed"] = Field(
        description="pending: ltxq retries; failed: given up after a day."
    )
    attempts: int = Field(default=0, description="Attempts so far, a running one included.")
    last_error: str | None = Field(default=None, description="Why the last attempt failed.")
    delivered_at: datetime | None = None


class Job(BaseModel):
    """One job as the ledger knows it. A final state never changes again."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    contract: int = Field(default=CONTRACT, description="Version of the job contract.")
    state: JobState
    request: VideoRequest
    progress: Progress | None = Field(default=None, description="While running.")
    result: VideoResult | None = Field(default=None, description="If it succeeded.")
    error: JobError | None = Field(default=None, description="If it failed or was cancelled.")
    attempts: int = Field(default=0, description="Number of claims.")
    worker: str | None = Field(
        default=None, description="The worker that has the job, or had it last."
    )
    queue_position: int | None = Field(
        default=None, description="While queued: number of jobs ahead."
    )
    eta_seconds: float | None = Field(
        default=None,
        description="Estimated seconds to the result, from recent jobs; absent without recent "
        "jobs or without a worker.",
    )
    ready_workers: int | None = Field(
        default=None,
        description="While queued: number of workers that are ready for the job's model.",
    )
    cancel_requested: bool = Field(
        default=False, description="The job is running and was asked to stop."
    )
    owner: str | None = Field(default=None, description="Name of the API key that submitted it.")
    retry_of: str | None = Field(default=None, description="The job that this job retries.")
    idempotency_key: str | None = None
    submitted_at: datetime
    started_at: datetime | None = Field(default=None, description="Time of the last claim.")
    finished_at: datetime | None = None
    webhook: WebhookState | None = Field(
        default=None, description="Set when the job has ended, if the request has a webhook_url."
    )

    def kept_until(self, retention: float) -> datetime | None:
        """When the record and the clip are removed, `retention` seconds after the end of the job;
        None: it has not finished.
        """
        try:
            return self.finished_at and self.finished_at + timedelta(seconds=retention)
        except OverflowError:  # a record that was written over
            return None

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self.state in FINAL_STATES

    def result_or_raise(self) -> VideoResult:
        """The result of a job that succeeded.

        Raises:
            JobFailed: if it failed or was cancelled; if it has not finished, saying so.
        """
        if self.result is not None:
            return self.result
        raise JobFailed(
            self.error or JobError(code="internal", message=f"The job is still {self.state}."),
            self.id,
        )


class JobPage(BaseModel):
    """Some jobs, newest first."""

    model_config = ConfigDict(frozen=True)

    jobs: tuple[Job, ...]
    after: str | None = Field(description="`after` of the next page; absent on the last one.")
