"""How ltxq's errors travel over HTTP: what the gateway sends and `HttpTransport` reads.

The form is OpenAI's, `{"error": {message, type, param, code}}`, with ltxq's `hint`, `retryable` and
`problems` beside. Nothing here knows HTTP itself.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ltxq.errors import (
    IdempotencyConflict,
    InvalidRequest,
    JobNotFinished,
    JobNotFound,
    JobUnreadable,
    LtxqError,
    QueueFull,
    QueueUnavailable,
    StorageRefused,
    StorageUnavailable,
    UnknownModel,
)

ERRORS: dict[str, type[LtxqError]] = {
    "invalid_request": InvalidRequest,
    "unknown_model": UnknownModel,
    "job_not_found": JobNotFound,
    "job_not_finished": JobNotFinished,
    "job_unreadable": JobUnreadable,
    "idempotency_conflict": IdempotencyConflict,
    "queue_full": QueueFull,
    "queue_unavailable": QueueUnavailable,
    "storage_unavailable": StorageUnavailable,
    "storage_refused": StorageRefused,
}
"""By the `code` of the envelope. The gateway has codes of its own beside these: unauthorized,
rate_limited, unsupported_parameter, too_large and the like."""


class ErrorBody(BaseModel):
    """What went wrong, for code and for people."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    message: str = Field(description="What happened and why.")
    type: str = Field(description="OpenAI's class of error, as invalid_request_error.")
    param: str | None = Field(default=None, description="The field that is wrong, if it is one.")
    code: str = Field(description="What happened, for programs.")
    hint: str = Field(default="", description="What to do about it; empty where nothing helps.")
    retryable: bool = Field(default=False, description="The same request may succeed later.")
    problems: tuple[tuple[str, str], ...] = Field(
        default=(), description="Of an invalid request: every field that is wrong, and why."
    )


class ErrorEnvelope(BaseModel):
    """Every answer that is no success."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    error: ErrorBody
