"""The gateway's metrics: its requests, and the fleet's metrics without a worker. Not public."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from fleet import PATIENCE, eventually, worker_environment
from gateways import Gateway
from ltxq_worker.embedded.servers import S3Server, free_port
from scrape import Scrape


@pytest.fixture
def environment(redis_url: str, s3_server: S3Server, tmp_path: Path) -> dict[str, str]:
    return worker_environment(redis_url, s3_server, tmp_path / "spool")


def test_the_queue_depth_is_exported_without_any_worker(environment: dict[str, str]) -> None:
    port = free_port()
    told = environment | {"LTXQ_METRICS_ADDRESS": f"127.0.0.1:{port}"}
    with Gateway(told) as gateway, httpx2.Client(timeout=PATIENCE) as http:
        assert Scrape.of(port).value("ltxq_unfinished_jobs", model="instant") == 0
        for _ in range(3):
            answer = http.post(f"{gateway.api}/jobs", json={"prompt": "a fox", "model": "instant"})
            assert answer.status_code < 300, answer.text
        now = Scrape.of(port)
        assert now.value("ltxq_queue_depth", model="instant", priority="normal") == 3
        assert now.value("ltxq_unfinished_jobs", model="instant") == 3
        assert now.value("ltxq_workers") == 0

        job = answer.json()["id"]
        assert http.get(f"{gateway.api}/jobs/{job}").status_code == 200
        for path in ("/v1/jobs/video_0", "/no/such/path", "/v1/jobs/video_1"):
            assert http.get(f"{gateway.url}{path}").status_code == 404
        assert http.get(f"{gateway.url}/metrics").status_code == 404
        eventually(lambda: (Scrape.of(port).value("ltxq_http_requests_total") or 0) >= 8)
        now = Scrape.of(port)
        routes = now.labels("ltxq_http_requests_total", "route")
        assert routes == {"/jobs", "/jobs/{job_id}", "unknown"}
        of_jobs = {"method": "GET", "route": "/jobs/{job_id}"}
        assert now.value("ltxq_http_requests_total", status="200", **of_jobs) == 1
        assert now.value("ltxq_http_requests_total", status="404", **of_jobs) == 2
        assert now.value("ltxq_http_request_seconds_count", **of_jobs) == 3
        assert now.value("ltxq_http_open_requests") == 0


def test_json_logs_name_the_gateway(environment: dict[str, str]) -> None:
    port = free_port()
    told = {"LTXQ_METRICS_ADDRESS": f"127.0.0.1:{port}", "LTXQ_LOG": "json"}
    with Gateway(environment | told) as gateway:
        eventually(lambda: '"part": "gateway"' in gateway.log)
