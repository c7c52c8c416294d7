"""docker/systemd/: systemd takes the units, what they name is what the code has, and the services
tell systemd how they are.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet import PATIENCE, SMALL, Fleet, wait_until_running, worker_environment
from gateways import Gateway
from ltxq import Client
from ltxq.cli import exit_code
from ltxq.errors import ConfigurationError, ModelUnusable, QueueUnavailable
from ltxq.gateway.serve import FILES_MOST, GRACE_SECONDS
from ltxq.job import VideoRequest
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import S3Server
from ltxq_worker.supervisor.supervisor import STUCK_SECONDS

FOLDER = Path(__file__).parents[2] / "docker" / "systemd"
WORKER, GATEWAY = FOLDER / "ltxq-worker.service", FOLDER / "ltxq-gateway.service"
UNITS = [WORKER, GATEWAY]
PROGRAM = "/opt/ltxq/bin/ltxq"
OURS = {f"LTXQ_{name.upper()}" for name in Settings.model_fields}
FOREIGN = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "HOME",
           "TORCHINDUCTOR_CACHE_DIR"}  # fmt: skip


def settings_of(unit: Path) -> dict[str, list[str]]:
    """The unit's lines, by their names."""
    found: dict[str, list[str]] = {}
    for name, text in re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(text)
    return found


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_the_unit_and_finds_it_hardened(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    text = unit.read_text().replace(PROGRAM, "/bin/true")
    text = text.replace("/usr/bin/nvidia-modprobe", "/bin/true")
    text = re.sub("^(User|Group)=ltxq$", r"\1=daemon", text, flags=re.MULTILINE)
    copy = tmp_path / unit.name
    copy.write_text(text)

    def ran(*command: str) -> subprocess.CompletedProcess[str]:
        command = (analyze, *command, str(copy))
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def complaints() -> list[str]:
        """About this unit: systemd may have some about the units of this machine."""
        return [line for line in ran("verify", "--man=no").stderr.splitlines() if unit.name in line]

    assert complaints() == []
    assert ran("security", "--offline=yes", "--threshold=40").returncode == 0
    copy.write_text(text.replace("Restart=on-failure", "Restart=sometimes"))
    assert any("sometimes" in line for line in complaints())


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_what_a_unit_runs_and_sets_is_there(unit: Path) -> None:
    lines = settings_of(unit)
    program, *words = shlex.split(lines["ExecStart"][0])
    assert program == PROGRAM
    done = subprocess.run(
        [sys.executable, "-m", "ltxq", *words, "--help"], capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    set_there = {line.partition("=")[0] for line in lines.get("Environment", ())}
    assert set_there <= OURS | FOREIGN
    assert lines["EnvironmentFile"] == ["/etc/ltxq/ltxq.env"]
    assert lines["User"] == lines["Group"] == ["ltxq"]


def test_the_settings_file_names_settings() -> None:
    text = (FOLDER / "ltxq.env").read_text()
    names = set(re.findall(r"^(\w+)=", text, re.MULTILINE))
    assert names <= OURS | FOREIGN
    assert {"LTXQ_URL", "LTXQ_S3_BUCKET"} <= names


def test_a_service_has_time_to_stop_and_is_restarted_where_that_helps() -> None:
    worker, gateway = settings_of(WORKER), settings_of(GATEWAY)
    longest = VideoRequest.model_fields["timeout"].default
    assert int(worker["TimeoutStopSec"][0]) > longest + Settings().upload_patience
    assert int(gateway["TimeoutStopSec"][0]) > GRACE_SECONDS
    assert int(gateway["LimitNOFILE"][0]) >= FILES_MOST
    assert int(worker["WatchdogSec"][0]) > STUCK_SECONDS
    for unit in (worker, gateway):
        final = set(map(int, unit["RestartPreventExitStatus"][0].split()))
        assert exit_code(ConfigurationError("")) in final
        assert exit_code(QueueUnavailable("")) not in final
        stopped = {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
        assert set(map(int, unit["SuccessExitStatus"][0].split())) == stopped
    assert str(exit_code(ModelUnusable(""))) in worker["RestartPreventExitStatus"][0].split()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """The socket at which systemd listens, and a service's environment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(PATIENCE)
        yield listener, {"NOTIFY_SOCKET": str(tmp_path / "notify")}


def heard(listener: socket.socket) -> str:
    """The next message that is no sign of life."""
    while (line := listener.recv(4096).decode()) == "WATCHDOG=1":
        pass
    return line


def test_a_worker_is_ready_when_its_model_is_loaded(
    systemd: tuple[socket.socket, dict[str, str]], redis_url: str, s3_server: S3Server,
    tmp_path: Path,
) -> None:  # fmt: skip
    listener, environment = systemd
    own = worker_environment(redis_url, s3_server, tmp_path / "spool")
    with (
        Fleet({**own, **environment, "LTXQ_INSTANT_SECONDS": "1"}) as fleet,
        Client(redis_url) as client,
    ):
        assert listener.recv(4096) == b"WATCHDOG=1"
        assert heard(listener) == "READY=1"
        fleet.wait_until_ready()
        wait_until_running(client, client.submit("a fox", model="instant", **SMALL))
        fleet.supervisor.terminate()
        assert heard(listener) == "STOPPING=1"
        assert fleet.supervisor.wait(PATIENCE) == 0


def test_a_gateway_is_ready_when_it_listens(
    systemd: tuple[socket.socket, dict[str, str]], redis_url: str
) -> None:
    listener, environment = systemd
    with Gateway({"LTXQ_URL": redis_url, **environment}) as gateway:
        assert heard(listener) == "READY=1"
        assert gateway.ask("GET", "/healthz").is_success
        assert gateway.stop() == 0
        assert heard(listener) == "STOPPING=1"


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from ltxq.systemd import Service

    for address in ("", "/nowhere/notify", "@nobody"):
        monkeypatch.setitem(os.environ, "NOTIFY_SOCKET", address)
        service = Service()
        service.ready()
        service.alive()
