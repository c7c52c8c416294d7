"""A gateway's error answers as ltxq's errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ltxq.errors import (
    ClipKept,
    ConfigurationError,
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

LONGEST_TEXT = 2000  # characters of a message or a hint; the server may not be a gateway

_KINDS: dict[str, type[LtxqError]] = {
    "clip_kept": ClipKept,
    "idempotency_conflict": IdempotencyConflict,
    "job_not_finished": JobNotFinished,
    "job_not_found": JobNotFound,
    "job_unreadable": JobUnreadable,
    "queue_full": QueueFull,
    "queue_unavailable": QueueUnavailable,
    "unknown_model": UnknownModel,
}


def refusal(where: str, status: int, headers: Mapping[str, str], body: bytes) -> LtxqError:
    """The error for an answer other than 2xx.

    Args:
        where: host and port, for messages.
    """
    fields = _fields(body)
    message, hint = _text(fields, "message"), _text(fields, "hint")
    code = fields.get("code")
    if status == 401:
        return ConfigurationError(
            f"The gateway at {where} refuses the API key, or needs one.",
            hint="Correct LTXQ_API_KEY.",
        )
    if 300 <= status < 400:
        target = headers.get("location", "another URL")[:200]
        return ConfigurationError(
            f"The server at {where} redirects to {target}.",
            hint="Set LTXQ_URL to the gateway itself: redirects are not followed.",
        )
    if code == "not_found":  # each path of a client is one of a gateway
        return ConfigurationError(
            f"The gateway at {where} has no such path.",
            hint="Set LTXQ_URL to the address of the gateway's page, without /v1.",
        )
    if isinstance(code, str) and message:
        return _ours(code, message, hint, fields)
    if status == 413:
        return InvalidRequest(
            f"A proxy in front of the gateway at {where} refuses a request this large (HTTP 413).",
            hint="Shorten the prompt or the metadata, or raise the proxy's limit (nginx: "
            "client_max_body_size).",
        )
    if status in (429, 502, 503, 504):
        return QueueUnavailable(
            f"The gateway at {where} is not available (HTTP {status}).", hint="Try again later."
        )
    return ConfigurationError(
        f"The server at {where} is not an ltxq gateway (HTTP {status}).",
        hint="Check LTXQ_URL with its path, and any proxy in front of the gateway.",
    )


def _ours(code: str, message: str, hint: str, fields: Mapping[str, Any]) -> LtxqError:
    retryable = bool(fields.get("retryable"))
    if code == "invalid_request":
        return InvalidRequest(message, hint=hint, problems=_problems(fields))
    if code == "storage_unavailable":
        return (StorageUnavailable if retryable else StorageRefused)(message, hint=hint)
    # Rate limits and overload too: `watch` and `wait` survive them as they survive an outage.
    kind = _KINDS.get(code) or (QueueUnavailable if retryable else LtxqError)
    if kind is QueueUnavailable:
        key = _text(fields, "idempotency_key") or None
        return QueueUnavailable(message, hint=hint, idempotency_key=key)
    return kind(message, hint=hint)


def _fields(body: bytes) -> Mapping[str, Any]:
    """`error` of the answer, or nothing: the body may be a proxy's page."""
    try:
        fields = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value[:LONGEST_TEXT] if isinstance(value, str) else ""


def _problems(fields: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """(field, reason) of each wrong field, as `InvalidRequest` has them."""
    listed = fields.get("problems")
    if not isinstance(listed, list):
        return ()
    found = [(p.get("field"), p.get("reason")) for p in listed if isinstance(p, dict)]
    return tuple((str(field)[:100], str(reason)[:LONGEST_TEXT]) for field, reason in found)
