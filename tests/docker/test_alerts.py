"""The alert rules, by promtool: which fire when, and that each says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
RULES = HERE.parents[1] / "docker" / "prometheus" / "alerts.yml"
SCENARIOS = HERE / "alerts_test.yml"


def rules() -> list[dict[str, Any]]:
    return [r for g in yaml.safe_load(RULES.read_text())["groups"] for r in g["rules"]]


def promtool(*words: str | Path) -> None:
    found = shutil.which("promtool")
    if found is None:
        if os.environ.get("CI"):
            raise AssertionError("promtool is not installed: apt-get install prometheus")
        pytest.skip("promtool is not installed")
    done = subprocess.run([found, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", SCENARIOS)


def test_prometheus_takes_its_configuration() -> None:
    promtool("check", "config", RULES.with_name("prometheus.yml"))


def test_every_alert_fires_in_some_scenario_and_none_in_a_healthy_fleet() -> None:
    scenarios = yaml.safe_load(SCENARIOS.read_text())["tests"]
    fired = {
        sample["labels"].split('"')[1]
        for scenario in scenarios
        for check in scenario["promql_expr_test"]
        for sample in check["exp_samples"]
    }
    assert fired == {rule["alert"] for rule in rules()}
    assert scenarios[0]["name"] == "a healthy fleet with work to do"
    assert scenarios[0]["promql_expr_test"][0]["exp_samples"] == []


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_can_be_read_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    for note in ("summary", "runbook"):
        text = rule["annotations"][note]
        assert text[0].isupper() or text[0] in "{`"
        assert text.endswith(".")
        assert len(text) < 250
