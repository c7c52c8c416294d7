"""Errors as HTTP answers: status, envelope, and when to retry."""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

from pydantic import BaseModel, Field
from starlette.responses import Response

from ltxq import errors
from ltxq.errors import InvalidRequest, LtxqError
from ltxq.job import Job

log = logging.getLogger("ltxq.gateway")

RETRY_SECONDS = 2  # `retry-after` while the queue or the storage cannot be reached
FULL_SECONDS = 10  # `retry-after` while the queue is full

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class Problem(BaseModel):
    """A wrong field of a request."""

    field: str
    reason: str


class ErrorBody(BaseModel):
    """An error, for programs and for people. OpenAI's fields come first, then ltxq's."""

    message: str = Field(description="What happened and why.")
    type: str = Field(description="The error's class, by OpenAI's names.")
    param: str | None = Field(default=None, description="The first wrong field.")
    code: str = Field(description="What happened, as a constant for programs.")
    hint: str = Field(default="", description="What to do next; may be empty.")
    retryable: bool = Field(
        default=False, description="Whether the same request may succeed later."
    )
    idempotency_key: str | None = Field(
        default=None,
        description="Set if the submission may have been accepted. Send it again with this "
        "Idempotency-Key: that makes no second clip.",
    )
    problems: tuple[Problem, ...] = Field(
        default=(), description="Every wrong field of an invalid request, with the reason."
    )


class ErrorEnvelope(BaseModel):
    """The body of every error."""

    error: ErrorBody


class Refused(LtxqError):
    """An error that only HTTP has: API key, size of a body, path."""

    def __init__(
        self,
        status: int,
        wire_code: str,
        message: str,
        *,
        hint: str = "",
        headers: dict[str, str] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.wire_code = wire_code
        self.headers = headers or {}
        self.retry_after = retry_after


class UnsupportedParameter(InvalidRequest):
    """The request has a field that ltxq does not support."""

    def __init__(
        self, field: str, message: str, *, hint: str = "Remove it from the request."
    ) -> None:
        super().__init__(message, hint=hint, problems=((field, "not supported"),))


class _Kind(NamedTuple):
    status: int
    code: str
    retry_after: int | None = None
    public_message: str = ""  # replaces a message that may name the operator's servers


_AWAY = "The gateway cannot reach its queue."
_STORAGE_AWAY = "The gateway cannot reach its storage."
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
    errors.ClipKept: _Kind(
        500,
        "clip_kept",
        None,
        "The video is deleted, but the storage refuses to delete its files. ltxq tries again.",
    ),
    errors.StorageRefused: _Kind(
        500, "storage_unavailable", None, "The storage refused the gateway's request."
    ),
}
_INTERNAL = _Kind(500, "internal", None, "Internal error of the gateway.")
_ASK_OPERATOR = "The operator finds the reason in the gateway's log."
# Sentences for operators name their variables, commands and files.
_OPERATORS = re.compile(r"LTXQ_[A-Z]|AWS_|`ltxq |pip install|dmesg|~/")


def body_of(error: LtxqError) -> tuple[ErrorBody, int, int | None]:
    """The error without private details, its HTTP status, and `retry-after` in seconds."""
    if isinstance(error, Refused):
        kind = _Kind(error.status, error.wire_code, error.retry_after)
    else:
        kind = next((k for type_, k in _KINDS.items() if isinstance(error, type_)), _INTERNAL)
    message, hint = error.message, error.hint
    if kind.public_message:
        again = f"Try again in {kind.retry_after} s. " if kind.retry_after is not None else ""
        message, hint = kind.public_message, f"{again}{_ASK_OPERATOR}"
    elif not isinstance(error, Refused):
        message, hint = _for_callers(message), _for_callers(hint)
    key = getattr(error, "idempotency_key", None)
    if key is not None:
        lost = errors.QueueUnavailable.of_submission(message, hint=hint, idempotency_key=key)
        message, hint = lost.message, lost.hint
    problems = getattr(error, "problems", ())
    other = "invalid_request_error" if kind.status < 500 else "server_error"
    body = ErrorBody(
        message=message,
        type=_TYPES.get(kind.status, other),
        param=problems[0][0] if problems else None,
        code=kind.code,
        hint=hint,
        retryable=kind.retry_after is not None,
        idempotency_key=key,
        problems=tuple(Problem(field=field, reason=reason) for field, reason in problems),
    )
    return body, kind.status, kind.retry_after


def public_job(job: Job) -> Job:
    """The job as its owner may read it: its error without what only an operator can use."""
    error = job.error
    if error is None:
        return job
    message, hint = _for_callers(error.message), _for_callers(error.hint)
    if error.code == "storage_unavailable":  # it may name the operator's servers
        message, hint = "The worker could not store the clip.", ""
    if not message:
        message = "The worker failed."
    if not hint and (message, hint) != (error.message, error.hint):
        hint = "The operator finds the reason in the worker's log."
    public = error.model_copy(update={"message": message, "hint": hint})
    return job.model_copy(update={"error": public})


def _for_callers(text: str) -> str:
    """The sentences that a caller can use."""
    sentences = re.split(r"(?<=[.!?]) +", text)
    return " ".join(one for one in sentences if not _OPERATORS.search(one))


def answer(error: LtxqError) -> Response:
    """The error as a response."""
    body, status, retry_after = body_of(error)
    if status >= 500:
        log.warning("%d %s: %s", status, body.code, error)
    headers = dict(getattr(error, "headers", {}))
    if retry_after is not None:
        headers["retry-after"] = str(retry_after)
    if status in (409, 500):  # OpenAI's SDK would retry these without success
        headers["x-should-retry"] = "false"
    envelope = ErrorEnvelope(error=body)
    return Response(envelope.model_dump_json(), status, headers, media_type="application/json")


def routing_error(status: int, headers: dict[str, str]) -> Refused:
    """The error of a request that no route takes."""
    if status == 405:
        message = "This path does not support the method."
        hint = "The allow header lists the methods."
        return Refused(405, "method_not_allowed", message, hint=hint, headers=headers)
    if status == 404:
        return Refused(404, "not_found", "This path does not exist.", hint="/docs lists all paths.")
    return Refused(
        status, "invalid_request", "The gateway cannot read this request.", headers=headers
    )
