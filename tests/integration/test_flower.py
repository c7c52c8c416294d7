"""The real Flower, as `ltxq up` starts it, on a real worker: what it shows of jobs, over its HTTP
API and in a browser, and that its buttons cancel in the ledger.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from browser import chromium
from fleet import PATIENCE, SMALL, eventually, wait_until_running
from ltxq import Client
from ltxq.celery.flower import describe
from ltxq.job import Job, VideoRequest
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import rclone_binary, redis_binary
from servers import start_or_skip

STRANGE = [
    "\x1b[2J\x07\0", "a\r\nINFO forged", "\u202eright to left\u202c", "שלום עולם", "مرحبا",
    "👩‍👩‍👧‍👦🦊", "\ufeff.", "a\u2028b", "%s%n{0}{x}", "x" * 5000,
    "🦊" * 5000, "e" + "\u0301" * 4999,
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "'\"><b>{{7*7}}", "]]></pre>",
]  # fmt: skip
PROMPT = "a red fox trots through fresh snow"


@dataclass(frozen=True)
class Up:
    """A running `ltxq up` with Flower."""

    flower: str  # its address, with user and password
    environment: dict[str, str]  # for clients
    log: Path

    def ask(self, path: str, *, post: bool = False) -> Any:
        """Flower's answer, as JSON; None where it has none."""
        answer = httpx2.request("POST" if post else "GET", self.flower + path, timeout=PATIENCE)
        return answer.json() if answer.status_code == 200 else None

    def task(self, job: Job) -> dict[str, Any]:
        """What Flower knows of a job."""
        return self.ask(f"/api/task/info/{job.id}") or {}

    def until(self, job: Job, seen: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """What Flower shows, as soon as that is `seen`."""
        shown: dict[str, Any] = {}

        def look() -> Any:
            shown.clear()
            shown.update(self.task(job))
            return shown and seen(shown)

        try:
            eventually(look)
        except AssertionError:
            raise AssertionError(f"Flower shows {shown}") from None
        return shown


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    for binary in (redis_binary, rclone_binary):
        start_or_skip(binary)
    folder = tmp_path_factory.mktemp("up")
    ports = [f"--{name}-port=0" for name in ("redis", "s3", "http", "flower")]
    command = [sys.executable, "-m", "ltxq", "up", "--model", "instant", "--json", *ports]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LTXQ_", "AWS_"))}
    log = folder / "log"
    with (
        log.open("w") as said,
        subprocess.Popen(
            [*command, "--data", str(folder / "data")],
            env={**environment, "LTXQ_INSTANT_SECONDS": "3"},
            stdout=subprocess.PIPE,
            stderr=said,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            about = json.loads(process.stdout.readline())
            lines = subprocess.run(
                ["sh", "-c", f". '{about['environment_file']}' && env -0"],
                env=environment, capture_output=True, check=True,
            ).stdout.decode()  # fmt: skip
            client = dict(line.split("=", 1) for line in lines.split("\0") if "=" in line)
            yield _ready(Up(about["flower"], client, log))
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def _ready(up: Up) -> Up:
    """Once Flower hears of the worker: events sent before are not kept for it."""

    def is_there() -> bool:
        try:
            return bool(up.ask("/api/workers?status=true"))
        except httpx2.TransportError:
            return False

    eventually(is_there)
    return up


@pytest.fixture
def client(up: Up, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    for name, value in up.environment.items():
        if name.startswith(("LTXQ_", "AWS_")):
            monkeypatch.setenv(name, value)
    with Client() as made:
        yield made


@pytest.mark.extended
def test_it_asks_for_the_password_that_up_printed(up: Up) -> None:
    address = urlsplit(up.flower)
    bare = f"http://127.0.0.1:{address.port}/workers"
    assert httpx2.get(bare, timeout=PATIENCE).status_code == 401
    assert httpx2.get(f"{up.flower}/workers", timeout=PATIENCE).status_code == 200


def test_workers_are_shown_by_their_gpu(up: Up) -> None:
    assert up.ask("/api/workers?status=true") == {"cpu0@local": True}


def test_a_job_is_shown_from_waiting_to_its_clip(up: Up, client: Client) -> None:
    first = client.submit("another", **SMALL)
    job = client.submit(PROMPT, **SMALL)
    waiting = up.until(job, lambda shown: shown["state"] == "PENDING")
    assert waiting["name"] == "ltxq.generate"
    assert waiting["args"] == f"64x64, 9 frames, '{PROMPT}', {job.id}"
    progress = up.until(job, lambda shown: "denoise" in str(shown["result"]))
    assert progress["state"] == "STARTED"
    assert progress["result"].endswith("in all")
    done = up.until(job, lambda shown: shown["state"] == "SUCCESS")
    result = client.get(job.id).result_or_raise()
    assert done["result"] == f"{result.size:,} bytes, {result.key}"
    assert done["worker"] == "cpu0@local"
    assert done["runtime"] == pytest.approx(result.timings["total"])
    assert done["args"] == waiting["args"]
    assert up.task(first)["state"] == "SUCCESS"


def test_what_waits_is_counted_over_all_priorities(up: Up, client: Client) -> None:
    running = client.submit(PROMPT, **SMALL)
    wait_until_running(client, running)
    waiting = [client.submit(PROMPT, priority=p, **SMALL) for p in ("high", "normal", "low")]
    (queue,) = up.ask("/api/queues/length")["active_queues"]
    assert (queue["name"], queue["messages"]) == ("ltxq.3.instant", 3)
    for job in (*waiting, running):
        client.cancel(job.id)
        client.wait(job.id, PATIENCE)


def test_revoke_cancels_a_queued_job_in_the_ledger(up: Up, client: Client) -> None:
    before = [client.submit(PROMPT, **SMALL) for _ in range(4)]
    wait_until_running(client, before[0])
    queued = client.submit(PROMPT, **SMALL)
    up.until(queued, lambda shown: shown["state"] == "PENDING")
    assert up.ask(f"/api/task/revoke/{queued.id}", post=True) is not None
    assert client.wait(queued.id, PATIENCE).state == "cancelled"
    up.until(queued, lambda shown: shown["state"] == "REVOKED")
    assert client.get(before[-1].id).state == "queued"  # so nobody took its message yet
    for job in before:
        client.cancel(job.id)
        client.wait(job.id, PATIENCE)


def test_terminate_stops_a_running_job_and_not_its_worker(up: Up, client: Client) -> None:
    running = client.submit(PROMPT, **SMALL)
    wait_until_running(client, running)
    assert up.ask(f"/api/task/revoke/{running.id}?terminate=true", post=True) is not None
    assert client.wait(running.id, PATIENCE).state == "cancelled"
    up.until(running, lambda shown: shown["state"] == "REVOKED")
    assert client.wait(client.submit(PROMPT, **SMALL).id, PATIENCE).state == "succeeded"
    assert "ended (" not in up.log.read_text()


def test_a_job_cancelled_elsewhere_while_it_waits_is_shown_as_such(up: Up, client: Client) -> None:
    running = client.submit(PROMPT, **SMALL)
    wait_until_running(client, running)
    queued = client.submit(PROMPT, **SMALL)
    client.cancel(queued.id)
    client.cancel(running.id)
    up.until(queued, lambda shown: shown["state"] == "REVOKED")
    up.until(running, lambda shown: shown["state"] == "REVOKED")
    assert up.ask("/api/workers?status=true") == {"cpu0@local": True}  # and no client among them


def test_a_failed_job_says_why(up: Up, client: Client) -> None:
    job = client.submit(PROMPT, timeout=1, **SMALL)
    shown = up.until(job, lambda shown: shown["state"] == "FAILURE")
    assert shown["exception"].startswith("timed_out: The job took longer")
    assert shown["result"] == "timed_out"


@pytest.mark.extended
def test_no_prompt_breaks_a_page(up: Up, client: Client, tmp_path: Path) -> None:
    jobs = [client.submit(prompt, **SMALL) for prompt in STRANGE]
    up.until(jobs[-1], lambda shown: shown["state"] == "PENDING")
    complaints: list[str] = []
    address = urlsplit(up.flower)
    with chromium() as browser:
        context = browser.new_context(
            http_credentials={"username": "flower", "password": address.password or ""},
            viewport={"width": 1400, "height": 900},
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        base = f"http://127.0.0.1:{address.port}"
        page.goto(f"{base}/tasks")
        page.wait_for_selector("#tasks-table tbody tr td:has-text('frames')")
        page.select_option(".dt-length select, [name=tasks-table_length]", index=2)
        for job in jobs:
            page.wait_for_selector(f"#tasks-table tbody tr:has-text('{job.id}')")
        page.screenshot(path=tmp_path / "tasks.png")
        for job in jobs:
            answer = page.goto(f"{base}/task/{job.id}")
            assert answer is not None
            assert answer.ok, job.request.prompt
            shown = page.inner_text("#task-page")
            assert shown.isprintable() or all(c.isprintable() or c.isspace() for c in shown)
            assert "64x64, 9 frames, '" in shown
        page.goto(f"{base}/worker/cpu0@local")
        page.screenshot(path=tmp_path / "worker.png")
        context.close()
    for job in reversed(jobs):
        client.cancel(job.id)
    assert complaints == []


@pytest.mark.parametrize("prompt", STRANGE)
def test_a_description_is_one_short_line_of_what_can_be_seen(prompt: str) -> None:
    text = describe("video_1", VideoRequest(seed=42, prompt=prompt))
    assert text.isprintable()
    assert len(text) < 120
    assert text.startswith("768x512, 33 frames, '")
    assert text.endswith("', video_1")


def test_prompts_can_be_kept_out(up: Up, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    request = VideoRequest(seed=42, prompt=PROMPT)
    assert describe("video_1", request, prompt=False) == "768x512, 33 frames, video_1"
    monkeypatch.setenv("LTXQ_SHOW_PROMPTS", "false")
    with Client(settings=Settings.read()) as discreet:
        job = discreet.submit(PROMPT, **SMALL)
    shown = up.until(job, lambda shown: shown["args"])
    assert shown["args"] == f"64x64, 9 frames, {job.id}"
    client.cancel(job.id)
