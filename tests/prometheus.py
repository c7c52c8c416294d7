"""A real Prometheus for the tests, with the configuration of docker/."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import yaml

from fleet import PATIENCE, eventually
from ltxq_worker.embedded.servers import free_port

DOCKER = Path(__file__).parents[1] / "docker"


@contextmanager
def prometheus(folder: Path, ports: Mapping[str, int]) -> Iterator[str]:
    """Its address. It runs with our own configuration, but for where its targets are and how often.

    Args:
        ports: of /metrics on this machine, by the name of the service in the configuration.
    """
    binary = shutil.which("prometheus")
    if binary is None:
        if os.environ.get("CI"):
            raise AssertionError("prometheus is not installed: apt-get install prometheus")
        pytest.skip("prometheus is not installed")
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for scrape in config["scrape_configs"]:
        (found,) = scrape.pop("dns_sd_configs")
        target = f"127.0.0.1:{ports[found['names'][0]]}"
        scrape["static_configs"] = [{"targets": [target]}]
    shutil.copy(DOCKER / "prometheus" / "alerts.yml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        *(binary, "--config.file", "prometheus.yml", "--storage.tsdb.path", "data"),
        *("--web.listen-address", f"127.0.0.1:{port}", "--log.level", "warn"),
    ]
    with subprocess.Popen(command, cwd=folder) as process:
        try:
            eventually(lambda: _answers(f"http://127.0.0.1:{port}/-/ready"))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=PATIENCE).status_code == 200
    except httpx2.TransportError:
        return False
