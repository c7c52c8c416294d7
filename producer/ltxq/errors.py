"""Every error of ltxq, as types for code and as data for a job's record.

After a `PermanentError` the same call fails again; after a `RetryableError` it may succeed later.
A job that fails keeps a `JobError`: {code, message, hint, retryable}. Foreign errors (redis,
botocore, huggingface_hub, torch) become one of these once, where ltxq calls the library.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

ErrorCode = Literal[
    "invalid_request",
    "unknown_model",
    "out_of_memory",
    "input_unreachable",
    "storage_unavailable",
    "timed_out",
    "worker_lost",
    "cancelled",
    "expired",
    "internal",
]


class JobError(BaseModel):
    """Why a job failed or was cancelled, as kept on its record."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: ErrorCode
    message: str = Field(description="What happened and why, for a person.")
    hint: str = Field(default="", description="What to do about it; empty where nothing helps.")
    retryable: bool = Field(default=False, description="The same request may succeed later.")


class LtxqError(Exception):
    """Base of every error ltxq raises. `str()` gives the message and, after it, the hint."""

    code: ClassVar[ErrorCode] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def as_job_error(self) -> JobError:
        """This error as the data a job's record keeps."""
        return JobError(
            code=self.code, message=self.message, hint=self.hint, retryable=self.retryable
        )


class PermanentError(LtxqError):
    """Asking again the same way fails the same way."""


class RetryableError(LtxqError):
    """May succeed later, unchanged."""

    retryable = True


class InvalidRequest(PermanentError, ValueError):
    """The request cannot be made. `problems` has one (field, reason) for each thing wrong."""

    code = "invalid_request"

    def __init__(
        self, message: str, *, hint: str = "", problems: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems

    @classmethod
    def of(cls, *problems: tuple[str, str], hint: str = "") -> Self:
        """The error of (field, reason) pairs, which also make its message."""
        message = "; ".join(f"{field}: {reason}" for field, reason in problems)
        return cls(message, hint=hint, problems=problems)


class UnknownModel(PermanentError):
    """No model of that name is known here."""

    code = "unknown_model"


class OutOfMemory(PermanentError):
    """The card cannot hold a clip of that size."""

    code = "out_of_memory"


class InputUnreachable(PermanentError):
    """An input named by the request could not be fetched."""

    code = "input_unreachable"


class StorageRefused(PermanentError):
    """The storage answered no: wrong credentials, no permission, no such bucket."""

    code = "storage_unavailable"


class ClipKept(StorageRefused):
    """The job is deleted, and the storage refuses to delete its clip."""


class BucketShared(PermanentError):
    """Another queue shares this bucket, so orphaned objects cannot be identified."""


class TimedOut(PermanentError):
    """The job took longer than its `timeout`."""

    code = "timed_out"


class JobNotFound(PermanentError, KeyError):
    """No job of that id: never submitted, deleted, or past its retention."""

    # KeyError's own str() shows the repr of its argument.
    __str__ = LtxqError.__str__


class JobNotFinished(PermanentError):
    """The job is still queued or running; cancel it first."""


class JobUnreadable(PermanentError):
    """The job's record cannot be read: damaged in Redis, or written by a newer ltxq."""


class JobFailed(PermanentError):
    """The job failed or was cancelled; `error` says why."""

    def __init__(self, error: JobError, job_id: str) -> None:
        super().__init__(f"{job_id} {error.code}: {error.message}", hint=error.hint)
        self.error = error
        self.job_id = job_id


class IdempotencyConflict(PermanentError):
    """The idempotency key was used before, for another request."""


class ModelUnusable(PermanentError):
    """A model folder is incomplete, damaged, or made for another version."""


class ConfigurationError(PermanentError):
    """A setting is missing or wrong."""


class NameTaken(ConfigurationError):
    """Another supervisor's worker has this name. `silent`: seconds since its last heartbeat."""

    def __init__(self, name: str, silent: float) -> None:
        super().__init__(
            f"A worker named {name} belongs to another supervisor.",
            hint="Give each machine a name of its own: --name, or LTXQ_HOST with compose.",
        )
        self.silent = silent


class MissingExtra(PermanentError, ImportError):
    """A part of ltxq was used whose optional packages are not installed."""

    def __init__(self, what: str, extra: str, missing: str = "") -> None:
        super().__init__(
            f"{what} needs packages that are not installed{missing and f': {missing}'}.",
            hint=f"Install them with: pip install 'ltxq[{extra}]'",
        )
        self.extra = extra


class QueueUnavailable(RetryableError):
    """Redis cannot be reached, is loading, is full or takes no writes; or a gateway is busy.

    `idempotency_key`: of a submission that ended so, which may have been accepted all the same: the
    same request with this key makes no second job. None: no job was being submitted, or none was
    accepted.
    """

    sent = True  # False: the request did not get as far as the queue

    def __init__(self, message: str, *, hint: str = "", idempotency_key: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.idempotency_key = idempotency_key

    @classmethod
    def of_submission(cls, message: str, *, hint: str, idempotency_key: str) -> Self:
        """The error of a submission whose answer did not come."""
        return cls(
            f"{message} The job may have been accepted all the same.",
            hint=f"{hint} To submit it again without making a second one, use the idempotency key "
            f"{idempotency_key!r}.".lstrip(),
            idempotency_key=idempotency_key,
        )


class QueueFull(RetryableError):
    """The queue holds as many jobs as `LTXQ_MAX_QUEUED` allows."""


class StorageUnavailable(RetryableError):
    """The storage cannot be reached, is slow or is full."""

    code = "storage_unavailable"


class WaitTimeout(RetryableError, TimeoutError):
    """The job did not reach a final state in the time given; it goes on."""
