"""The OpenAPI description is complete, and schemathesis finds no answer that differs from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import checks

from gateways import Gateway
from ltxq_worker.embedded.servers import RedisServer

# No check that valid requests succeed: the schema cannot express steps of sides and 8k+1 frames.
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.allow_header_conformance,
    checks.unsupported_method,
]
EXAMPLES = 25  # for each route
EXPECTED_503 = ("/readyz",)  # without a worker; `not_a_server_error` would report it


@pytest.fixture(scope="module")
def gateway(redis_server: RedisServer) -> Iterator[Gateway]:
    url = f"redis://127.0.0.1:{redis_server.port}/12"
    with redis.Redis.from_url(url, socket_timeout=5) as connection:
        connection.flushdb()
    with Gateway({"LTXQ_URL": url, "LTXQ_DEFAULT_MODEL": "instant"}) as running:
        yield running


def cancelled(gateway: Gateway) -> str:
    """The id of a cancelled job, whose events end."""
    job_id = str(gateway.ask("POST", "/v1/videos", json={"prompt": "a fox"}).json()["id"])
    assert gateway.ask("POST", f"/v1/videos/{job_id}/cancel").is_success
    return job_id


def test_every_answer_matches_the_description(gateway: Gateway) -> None:
    spec = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    operations = [found.ok() for found in spec.get_all_operations()]
    assert len(operations) == 19
    for operation in operations:
        if operation.path in EXPECTED_503:
            continue

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        @given(case=operation.as_strategy(), real=st.booleans())
        def holds(case: Any, real: bool) -> None:
            for name in {"video_id", "job_id"} & set(case.path_parameters or {}):
                if real:
                    case.path_parameters[name] = cancelled(gateway)
            case.call_and_validate(base_url=gateway.url, checks=CHECKS, timeout=30)

        holds()
        assert gateway.process.poll() is None


def test_the_description_is_in_the_words_of_http(gateway: Gateway) -> None:
    """Its texts are also those of Python's classes and of the command line's options."""
    elsewhere = re.compile(
        r"LTXQ_[A-Z]|`ltxq |pip install|(^| )--[a-z]|\bNone\b|`(list|submit)\(|`Client\."
    )

    def texts(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            for name, value in part.items():
                if name in ("description", "summary") and isinstance(value, str):
                    yield value
                else:
                    yield from texts(value)
        elif isinstance(part, list):
            for value in part:
                yield from texts(value)

    described = list(texts(gateway.ask("GET", "/openapi.json").json()))
    assert len(described) > 50
    assert [text for text in described if elsewhere.search(text)] == []


def test_every_route_is_described_with_its_errors(gateway: Gateway) -> None:
    described = gateway.ask("GET", "/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }
    assert {path for path in operations if path.startswith(("POST", "DELETE"))} == {
        "POST /v1/videos", "POST /v1/videos/{video_id}/cancel", "POST /v1/videos/{video_id}/remix",
        "DELETE /v1/videos/{video_id}", "POST /v1/jobs", "POST /v1/jobs/{job_id}/cancel",
        "POST /v1/jobs/{job_id}/retry", "DELETE /v1/jobs/{job_id}",
    }  # fmt: skip
    for name, operation in operations.items():
        assert operation["description"], name
        assert "422" not in operation["responses"], name
        if "/v1/" in name:
            assert {"400", "401", "429", "503"} <= set(operation["responses"]), name
            assert operation["security"], name
    assert described["servers"] == [{"url": "."}]  # the paths' prefix is the description's own
    # Generated clients have methods of these names: a change breaks their users.
    assert sorted(operation["operationId"] for operation in operations.values()) == sorted(
        (
            *("createVideo", "listVideos", "getVideo", "deleteVideo", "cancelVideo", "remixVideo"),
            *("getVideoContent", "followVideo", "createJob", "listJobs", "getJob", "cancelJob"),
            *("retryJob", "deleteJob", "followJob", "listModels", "getHealth", "getReadiness"),
            "headVideoContent",
        )
    )
    body = operations["POST /v1/videos"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    assert body["application/json"]["schema"]["example"]["prompt"]
    assert "HTTPValidationError" not in described["components"]["schemas"]
