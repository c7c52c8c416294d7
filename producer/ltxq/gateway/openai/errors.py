"""Every error as an answer: its status, the envelope, and whether to try again, and when."""

from __future__ import annotations

import logging
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from ltxq import errors
from ltxq.errors import InvalidRequest, LtxqError

log = logging.getLogger("ltxq.gateway")

RETRY_SECONDS = 2  # what clients are asked to wait when the queue or the storage is away
FULL_SECONDS = 10  # and when the queue is full: clips take their time

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}


class Problem(BaseModel):
    """One thing that is wrong with a request."""

    field: str
    reason: str


class ErrorBody(BaseModel):
    """What went wrong, for programs and for people: OpenAI's fields, and ltxq's after them."""

    model_config = ConfigDict(frozen=True)

    message: str = Field(description="What happened and why.")
    type: str = Field(description="OpenAI's class of error.")
    param: str | None = Field(default=None, description="The field that is wrong, if it is one.")
    code: str = Field(description="What happened, for programs.")
    hint: str = Field(default="", description="What to do about it; empty where nothing helps.")
    retryable: bool = Field(default=False, description="The same request may succeed later.")
    idempotency_key: str | None = Field(
        default=None,
        description="Of a submission that may have been accepted all the same: sent again with "
        "this as its Idempotency-Key, it makes no second clip.",
    )
    problems: tuple[Problem, ...] = Field(
        default=(), description="Of an invalid request: every field that is wrong, and why."
    )


class ErrorEnvelope(BaseModel):
    """Every answer that is no success."""

    error: ErrorBody


class Refused(LtxqError):
    """An answer only HTTP has: no key, too large, no such path."""

    def __init__(
        self,
        status: int,
        wire_code: str,
        message: str,
        *,
        hint: str = "",
        param: str | None = None,
        headers: dict[str, str] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.wire_code = wire_code
        self.param = param
        self.headers = headers or {}
        self.retry_after = retry_after


class UnsupportedParameter(InvalidRequest):
    """A field that is not supported, refused by name rather than ignored."""


class _Kind(NamedTuple):
    status: int
    code: str
    retry_after: int | None = None
    private: str = ""  # said instead of the message, which names servers of the operator's


_AWAY = "The queue behind this gateway cannot be reached."
_STORAGE_AWAY = "The storage behind this gateway cannot be reached."
_KINDS: dict[type[LtxqError], _Kind] = {
    UnsupportedParameter: _Kind(400, "unsupported_parameter"),
    errors.InvalidRequest: _Kind(400, "invalid_request"),
    errors.UnknownModel: _Kind(404, "unknown_model"),
    errors.JobNotFound: _Kind(404, "job_not_found"),
    errors.JobNotFinished: _Kind(409, "job_not_finished"),
    errors.JobUnreadable: _Kind(500, "job_unreadable"),
    errors.IdempotencyConflict: _Kind(409, "idempotency_conflict"),
    errors.QueueFull: _Kind(429, "queue_full", FULL_SECONDS),
    errors.QueueUnavailable: _Kind(503, "queue_unavailable", RETRY_SECONDS, _AWAY),
    errors.StorageUnavailable: _Kind(503, "storage_unavailable", RETRY_SECONDS, _STORAGE_AWAY),
    errors.StorageRefused: _Kind(500, "storage_unavailable", None, "The storage refused."),
}
_INTERNAL = _Kind(500, "internal", None, "The gateway met an error it does not know.")
_SEE_LOG = "The gateway's log says why."


def body_of(error: LtxqError) -> tuple[ErrorBody, int, int | None]:
    """The error for a stranger's eyes, its status, and after how many seconds to try again."""
    if isinstance(error, Refused):
        kind = _Kind(error.status, error.wire_code, error.retry_after)
    else:
        kind = next((k for type_, k in _KINDS.items() if isinstance(error, type_)), _INTERNAL)
    message, hint = (kind.private, _SEE_LOG) if kind.private else (error.message, error.hint)
    key = getattr(error, "idempotency_key", None)
    if key is not None:
        lost = errors.QueueUnavailable.of_submission(message, hint=hint, idempotency_key=key)
        message, hint = lost.message, lost.hint
    problems = getattr(error, "problems", ())
    param = getattr(error, "param", None) or (problems[0][0] if problems else None)
    body = ErrorBody(
        message=message,
        type=_TYPES.get(
            kind.status, "invalid_request_error" if kind.status < 500 else "server_error"
        ),
        param=param,
        code=kind.code,
        hint=hint,
        retryable=kind.retry_after is not None,
        idempotency_key=key,
        problems=tuple(Problem(field=field, reason=reason) for field, reason in problems),
    )
    return body, kind.status, kind.retry_after


def answer(error: LtxqError) -> Response:
    """The error as a response."""
    body, status, retry_after = body_of(error)
    if status >= 500:
        log.warning("%d %s: %s", status, body.code, error)
    headers = dict(getattr(error, "headers", {}))
    if retry_after is not None:
        headers["retry-after"] = str(retry_after)
    if status in (409, 500):  # the SDK would try these again, and they stay as they are
        headers["x-should-retry"] = "false"
    envelope = ErrorEnvelope(error=body)
    return Response(envelope.model_dump_json(), status, headers, media_type="application/json")


def not_known(status: int, headers: dict[str, str]) -> Refused:
    """What the routing itself refuses: there is no such path, or not with that method."""
    if status == 405:
        message = "This path does not take that method."
        return Refused(405, "method_not_allowed", message, headers=headers)
    if status == 404:
        return Refused(404, "not_found", "There is nothing at this path.", hint="See /docs.")
    return Refused(status, "invalid_request", "The request cannot be read.", headers=headers)
