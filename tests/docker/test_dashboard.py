"""Dashboard and alerts against a live Prometheus that scrapes a real gateway and worker after real
jobs: every metric they name exists, and every panel's query has data. No Grafana is needed.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import redis
import yaml

from bench.dashboard import asking, page
from fleet import PATIENCE, SMALL, Fleet, eventually, worker_environment
from gateways import Gateway
from ltxq import Client
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import RedisServer, S3Server, free_port
from prometheus import DOCKER, prometheus
from scrape import Scrape

pytestmark = pytest.mark.extended

DASHBOARD = DOCKER / "grafana" / "dashboards" / "ltxq.json"
NEEDS_A_GPU = {
    "ltxq_worker_gpu_memory_used_bytes",
    "ltxq_worker_gpu_memory_size_bytes",
    "ltxq_worker_gpu_utilization_ratio",
}
NAME = re.compile(r"\bltxq_[a-z0-9_]+")


def panels() -> list[dict[str, Any]]:
    return [p for p in json.loads(DASHBOARD.read_text())["panels"] if p["type"] != "row"]


def queries(*, gpu: bool = False) -> list[tuple[str, str]]:
    """Each query of each panel, with its title; `gpu`: those that nvidia-smi answers too."""
    found = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    return [row for row in found if gpu or not set(NAME.findall(row[1])) & NEEDS_A_GPU]


def alerts() -> list[tuple[str, str]]:
    groups = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"]
    return [(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]


@dataclass(frozen=True)
class Live:
    """A Prometheus with data, and what it scraped."""

    url: str
    gateway: str  # where it is
    ports: dict[str, int]  # of /metrics: gateway, worker

    def ask(self, expr: str) -> list[dict[str, Any]]:
        answer = httpx2.get(f"{self.url}/api/v1/query", params={"query": expr}, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]["result"]


@pytest.fixture(scope="module")
def live(
    redis_server: RedisServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("prometheus")
    url = f"redis://127.0.0.1:{redis_server.port}/14"
    with redis.Redis.from_url(url, socket_timeout=5) as connection:
        connection.flushdb()
    ports = {"gateway": free_port(), "worker": free_port()}
    base = worker_environment(url, s3_server, folder / "spool")
    told = {name: {"LTXQ_METRICS_ADDRESS": f"127.0.0.1:{port}"} for name, port in ports.items()}
    with (
        Fleet(base | told["worker"] | {"LTXQ_INSTANT_SECONDS": "1.5"}) as fleet,
        Gateway(base | told["gateway"]) as gateway,
        prometheus(folder, ports) as address,
    ):
        fleet.wait_until_ready()
        seen = Live(address, gateway.url, ports)
        eventually(lambda: len(seen.ask("ltxq_ledger_up == 1")) == 2)
        _make_jobs(url, gateway)
        eventually(lambda: seen.ask("ltxq_job_seconds_count == 2"))
        eventually(lambda: seen.ask('ltxq_jobs_finished_total{code="timed_out"} == 1'))
        eventually(lambda: _ask_for_none(gateway) and seen.ask(GROWN))
        yield seen


GROWN = 'increase(ltxq_http_request_seconds_count{route="/jobs/{job_id}"}[5m]) > 0'


def _ask_for_none(gateway: Gateway) -> bool:
    return httpx2.get(f"{gateway.api}/jobs/video_0", timeout=PATIENCE).status_code == 404


def _make_jobs(url: str, gateway: Gateway) -> None:
    """Two that succeed, one of them over HTTP, and one that fails."""
    with httpx2.Client(timeout=PATIENCE) as http, Client(settings=Settings(url=url)) as client:
        answer = http.post(f"{gateway.api}/jobs", json={"prompt": "a", "model": "instant", **SMALL})
        assert answer.status_code == 201, answer.text
        late = client.submit("a fox", model="instant", timeout=1, **SMALL)
        other = client.submit("a fox", model="instant", **SMALL)
        client.wait(answer.json()["id"], PATIENCE).result_or_raise()
        client.wait(other.id, PATIENCE).result_or_raise()
        assert client.wait(late.id, PATIENCE).state == "failed"


def families(text: str) -> set[str]:
    """The metrics a `/metrics` describes, by all the names their samples may have."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)", text, re.MULTILINE):
        ends = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        names |= {name + end for end in ends}
    return names


@pytest.mark.parametrize(("title", "expr"), queries())
def test_every_panel_has_data(live: Live, title: str, expr: str) -> None:
    asked = expr.replace("$__rate_interval", "5m").replace("$model", ".*")
    assert "$" not in asked
    values = [float(series["value"][1]) for series in live.ask(asked)]
    assert values, asked
    assert not all(math.isnan(value) for value in values), asked


def test_it_can_be_drawn_without_grafana(live: Live) -> None:
    now = time.time()
    drawn = page(json.loads(DASHBOARD.read_text()), asking(live.url, now - 10, now))
    assert drawn.count("<h3>") == len(panels())
    without = sum(bool(set(NAME.findall(p["targets"][0]["expr"])) & NEEDS_A_GPU) for p in panels())
    assert drawn.count("No data") == without
    assert "succeeded" in drawn
    assert "{{" not in drawn


def test_every_metric_of_dashboard_and_alerts_exists(live: Live) -> None:
    there = {n for port in live.ports.values() for n in families(Scrape.of(port).text)}
    named = {name for _, expr in (*queries(gpu=True), *alerts()) for name in NAME.findall(expr)}
    assert named - there == set()
    assert len(named) > 30
    kinds = re.compile("_(bucket|sum|count)$")
    ours = {kinds.sub("", name) for name in there if name.startswith("ltxq_")}
    assert ours - {kinds.sub("", name) for name in named} == {"ltxq_build_info"}


def test_no_alert_fires_and_each_can_be_asked(live: Live) -> None:
    for name, expr in alerts():
        live.ask(expr)
        assert not live.ask(f'ALERTS{{alertname="{name}",alertstate="firing"}}')
    rules = httpx2.get(f"{live.url}/api/v1/rules", timeout=PATIENCE).json()["data"]["groups"]
    states = {rule["name"]: rule["health"] for group in rules for rule in group["rules"]}
    assert set(states) == {name for name, _ in alerts()}
    assert "err" not in states.values()


def test_what_keda_reads_is_one_figure_of_the_gateways(live: Live) -> None:
    (scaled,) = yaml.safe_load_all((DOCKER / "k8s" / "keda.yaml").read_text())
    where = scaled["spec"]["triggers"][0]["metadata"]["valueLocation"]
    name, model = re.fullmatch(r'(\w+)\{model="([^"]+)"\}', where).groups()  # type: ignore[union-attr]
    assert model == Settings.model_fields["default_model"].default
    told = Scrape.of(live.ports["gateway"])
    assert [dict(held) for n, held in told.samples if n == name] == [{"model": "instant"}]


def test_probes_are_answered(live: Live) -> None:
    text = "".join(file.read_text() for file in (DOCKER / "k8s").glob("*.yaml"))
    asked = set(re.findall(r"path: (/\w+), port: (\w+)", text))
    assert asked == {("/healthz", "http"), ("/healthz", "metrics"), ("/readyz", "metrics")}
    for path, port in asked:
        base = live.gateway if port == "http" else f"http://127.0.0.1:{live.ports['worker']}"
        assert httpx2.get(base + path, timeout=PATIENCE).status_code == 200


def test_the_dashboard_is_one_grafana_can_show() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    source = yaml.safe_load(
        (DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )
    uids = {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]}
    assert uids == {source["datasources"][0]["uid"]}
