"""A message is in the words of the door where it is read: over HTTP no variable or command of the
operator's, on the command line its options, in Python neither.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ltxq
from ltxq import errors
from ltxq.cli import main
from ltxq.client import client as client_module
from ltxq.errors import JobError, LtxqError
from ltxq.gateway.openai.errors import body_of, public_job
from ltxq.gateway.openai.request import in_callers_words
from ltxq.gateway.openai.response import video_of
from ltxq.job import Job
from ltxq.ledger import records
from ltxq.ledger.jobs import _refusal, not_found
from ltxq.testing import MemoryTransport

OF_OPERATORS = re.compile(r"LTXQ_[A-Z]|AWS_|`ltxq |\bltxq [a-z]+ |pip install|(^| )--[a-z]")
OF_ONE_DOOR = re.compile(rf"{OF_OPERATORS.pattern}|\bNone\b|\bnull\b|header|retry-after|GET /")

RECORDED = [value for value in vars(records).values() if isinstance(value, JobError)]
TO_OPERATORS = (
    JobError(
        code="storage_unavailable",
        message="The storage at http://10.0.0.5:9000 refuses PutObject.",
        hint="Grant s3:PutObject, or correct LTXQ_S3_BUCKET.",
    ),
    JobError(
        code="out_of_memory",
        message="A clip of 768x512x121 needs about 80 GB.",
        hint="No clip fits. Set LTXQ_QUANTIZATION=fp8, or stop other programs on the device.",
    ),
    JobError(code="internal", message="Run `ltxq doctor`.", hint="pip install 'ltxq[worker]'"),
)


def failed(error: JobError) -> Job:
    queue = MemoryTransport()
    client = client_module.Client(transport=queue)
    job = client.submit("a fox")
    queue.start(job.id)
    return queue.fail(job.id, error)


@pytest.mark.parametrize("error", RECORDED, ids=lambda error: error.code)
def test_what_the_ledger_records_is_read_at_every_door(error: JobError) -> None:
    assert not OF_ONE_DOOR.search(f"{error.message} {error.hint}")


@pytest.mark.parametrize("error", TO_OPERATORS, ids=lambda error: error.code)
def test_a_jobs_owner_is_not_told_what_only_an_operator_can_do(error: JobError) -> None:
    job = failed(error)
    for told in (public_job(job).error, video_of(job).error):
        assert told is not None
        text = f"{told.message} {getattr(told, 'hint', '')}"
        assert not OF_OPERATORS.search(text)
        assert "10.0.0.5" not in text
        assert "operator" in text or "No clip fits." in text
        assert told.code == error.code
    assert job.error == error  # who reads Redis is an operator


def test_what_helps_the_owner_stays() -> None:
    kept = JobError(
        code="out_of_memory", message="Too large.", hint="The largest that fits: 64x64."
    )
    assert public_job(failed(kept)).error == kept


def over_http() -> Iterator[LtxqError]:
    yield _refusal("full", ["5", ""])
    yield _refusal("full", ["5", "alice"])
    yield _refusal("full", ["256", "", "ltxq.3.x"])
    yield _refusal("conflict", ["video_1"])
    yield not_found("video_1")
    yield not_found("?")
    yield records.unreadable("video_1")
    for kind in (errors.QueueUnavailable, errors.StorageUnavailable, errors.StorageRefused):
        yield kind("Redis at 10.0.0.5 refuses.", hint="Correct LTXQ_URL.")
    yield errors.ConfigurationError("LTXQ_URL is wrong.", hint="Correct LTXQ_URL.")
    yield errors.MissingExtra("The gateway", "gateway")


@pytest.mark.parametrize("error", list(over_http()), ids=lambda error: type(error).__name__)
def test_an_error_over_http_is_for_those_who_call(error: LtxqError) -> None:
    body, _, retry_after = body_of(error)
    assert not OF_OPERATORS.search(f"{body.message} {body.hint}")
    assert "10.0.0.5" not in body.message
    assert body.message
    if retry_after:
        assert "retry-after" not in body.hint  # Python and the command line show no headers


def test_no_refusal_of_a_request_names_one_door() -> None:
    """In the source, since each is made in its own case."""
    folder = Path(ltxq.__file__).parent
    for name in ("job.py", "limits.py", "reasons.py"):
        for node in ast.walk(ast.parse((folder / name).read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ValueError":
                for part in ast.walk(node):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        assert not OF_ONE_DOOR.search(part.value), part.value


def test_a_problem_is_told_by_the_field_that_the_caller_sent() -> None:
    refused = errors.InvalidRequest.of(
        ("num_frames", "a"), ("width", "b"), ("frame_rate", "c"), ("audio", "d"), hint="e"
    )
    told = in_callers_words(refused, {"seconds": "9", "size": "64x64"})
    assert [field for field, _ in told.problems] == ["seconds", "size", "fps", "generate_audio"]
    assert told.hint == "e"
    plain = in_callers_words(refused, {"seconds": None, "num_frames": 9, "width": 64})
    assert [field for field, _ in plain.problems] == [
        "num_frames",
        "width",
        "fps",
        "generate_audio",
    ]


def test_the_command_line_names_its_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = MemoryTransport()
    monkeypatch.setattr(client_module, "RedisTransport", lambda settings: queue)
    with client_module.Client(transport=queue) as client:
        job = client.submit("a fox")
    queue.start(job.id)
    queue.fail(job.id, records.TIMED_OUT)
    assert main(["watch", job.id]) == 1
    assert main(["status", job.id]) == 0
    shown = capsys.readouterr()
    for text in (shown.err, shown.out):
        assert "Allow more with --timeout" in text
        assert "`" not in text
