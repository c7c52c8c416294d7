"""The blocks of README and of users' documents run as they are, in a shell with `ltxq up` beside
it. Blocks that set up a machine, or need a GPU or a token, are only parsed: test_documents.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ltxq_worker.embedded.servers import rclone_binary, redis_binary
from servers import start_or_skip

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/web.md", "docs/cli.md", "docs/webhooks.md")
TEXT = "\n".join((ROOT / name).read_text() for name in DOCUMENTS)
NOT_HERE = re.compile(  # sets up a machine, wants its GPU, a token, or all of the test's time
    r"^(make|pip|export|ltxq (up|worker|demo|model download))\b", re.MULTILINE
)
FETCHED = """
import urllib.request
answer = urllib.request.urlopen(url, timeout=30)
assert answer.headers["Content-Type"] == "video/mp4"
assert answer.read(8)[4:] == b"ftyp"
"""
BACKEND_IS_USED = f"""
browser = app.test_client()
job_id = browser.post("/videos", json={{"prompt": "a red fox"}}).json["id"]
queue.wait(job_id, timeout=60)
shown = browser.get(f"/videos/{{job_id}}").json
assert shown["state"] == "succeeded", shown
url = shown["url"]
{FETCHED}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


RUN_HERE = [block for block in blocks("sh") if not NOT_HERE.search(block)]


@dataclass(frozen=True)
class Shell:
    """A folder with `ltxq` on the PATH, and `ltxq-data` of a running `ltxq up` in it."""

    folder: Path
    environment: dict[str, str]
    url: str  # of the gateway

    def run(self, script: str) -> str:
        """Standard output of a script that must end well; of the gateway it says the usual URL."""
        script = script.replace("http://127.0.0.1:8080", self.url)
        done = subprocess.run(
            ["sh", "-eu", "-c", script],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """As a reader has it after `make demo` and `ltxq up`; the instant pipeline plays the model."""
    start_or_skip(redis_binary)
    start_or_skip(rclone_binary)
    folder = tmp_path_factory.mktemp("clone")
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "ltxq").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ltxq "$@"\n')
    (programs / "ltxq").chmod(0o755)
    (programs / "activate").write_text(f"PATH='{programs}':$PATH\n")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("LTXQ_", "AWS_"))},
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "LTXQ_MODEL_DIR": str(folder / "models"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        "ltxq",
        "up",
        "--model",
        "instant",
        "--redis-port",
        "0",
        "--s3-port",
        "0",
        "--http-port",
        "0",
        "--flower-port",
        "0",
        "--json",
    ]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, executable=programs / "ltxq"
    ) as up:
        try:
            assert up.stdout is not None
            about = json.loads(up.stdout.readline())
            assert about["data"] == str(folder / "ltxq-data")
            yield Shell(folder, environment, about["url"])
        finally:
            up.send_signal(signal.SIGTERM)
            try:
                up.wait(60)
            finally:
                up.kill()


def test_most_blocks_are_run() -> None:
    assert len(RUN_HERE) >= 3
    assert {"submit", "status", "watch", "cancel", "retry", "delete", "list", "batch"} <= set(
        re.findall(r"ltxq (\w+)", "".join(RUN_HERE))
    )


@pytest.mark.parametrize("block", RUN_HERE, ids=lambda block: block.splitlines()[-1][:40])
def test_a_shell_block_does_what_it_says(shell: Shell, block: str) -> None:
    if "model tiny" in block:
        pytest.importorskip("torch")
    out = shell.run(block if "env.sh" in block else f". ltxq-data/env.sh\n{block}")
    if block.rstrip().endswith("--wait"):
        shell.run(f"{sys.executable} -c 'url = \"{out.strip()}\"\n{FETCHED}'")
    for file in re.findall(r"-o (\S+)", block):
        assert (shell.folder / file).read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.splitlines()[-1][:40])
def test_a_python_block_does_what_it_says(shell: Shell, block: str) -> None:
    program = block.replace("ltxq.3.ltx-2-19b-distilled", "ltxq.3.instant")
    program = program.replace("http://127.0.0.1:8080", shell.url)
    if "Flask(" in block:
        program += BACKEND_IS_USED
    (shell.folder / "program.py").write_text(program)
    out = shell.run(f". ltxq-data/env.sh\n{sys.executable} program.py")
    for said in re.findall(r"print\(.*\)  # (.*)", block):
        assert said in out.splitlines()
    if "url" in block and "Flask(" not in block:
        (url,) = re.findall(r"^http\S+$", out, re.MULTILINE)
        (shell.folder / "program.py").write_text(f"url = {url!r}\n{FETCHED}")
        shell.run(f"{sys.executable} program.py")
