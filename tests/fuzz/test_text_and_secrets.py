"""Through a real worker: any text arrives unchanged and breaks no log line, and no password, key
or token is shown by anything.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import redis
import urllib3
from celery import Celery

from fleet import PATIENCE, Fleet, eventually, worker_environment
from generated import NASTY
from ltxq import Client
from ltxq.cli import main
from ltxq.ledger import queue_name
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import RedisServer, S3Server
from servers import start_or_skip

SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_frames": 9, "audio": False}
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ")
HF_TOKEN = "hf_Pl4ntedHubToken"
WEBHOOK_SECRET = "UGw0bnRlZFdlYmhvb2tTZWNyZXRTaXh0ZWVu"  # after whsec_
HOOK_TOKEN = "Pl4ntedHookToken"
HOOK = f"http://127.0.0.1:9/{HOOK_TOKEN}?token={HOOK_TOKEN}"


@pytest.fixture(scope="module")
def guarded_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that asks for a password."""
    folder = tmp_path_factory.mktemp("redis")
    with start_or_skip(lambda: RedisServer.start(folder, password="Pl4ntedRedisWord")) as server:
        yield server


@pytest.fixture(scope="module")
def environment(
    guarded_redis: RedisServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("worker")
    url = f"redis://:{guarded_redis.password}@127.0.0.1:{guarded_redis.port}/0"
    return worker_environment(url, s3_server, folder / "spool") | {
        "HF_TOKEN": HF_TOKEN,
        "LTXQ_WEBHOOK_SECRET": f"whsec_{WEBHOOK_SECRET}",
    }


@pytest.fixture(scope="module")
def fleet(environment: dict[str, str]) -> Iterator[Fleet]:
    with Fleet(environment) as running:
        yield running.wait_until_ready()


class Watcher:
    """Hears what Flower hears: all of Celery's events."""

    def __init__(self, url: str) -> None:
        self.heard: list[dict[str, Any]] = []
        self._app = Celery(broker=url)
        self._connection = self._app.connection_for_read()
        self._receiver = self._app.events.Receiver(self._connection, handlers={"*": self._hear})
        self._thread = threading.Thread(
            target=self._receiver.capture, kwargs={"limit": None, "timeout": None, "wakeup": False}
        )
        self._thread.start()
        with self._app.events.default_dispatcher() as dispatcher:
            eventually(lambda: dispatcher.send("test-begins") or self.heard)

    def _hear(self, event: dict[str, Any]) -> None:
        self.heard.append(event)

    def of(self, job_id: str, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.heard if e["type"] == kind and e.get("uuid") == job_id]

    def stop(self) -> None:
        self._receiver.should_stop = True
        self._thread.join(PATIENCE)
        self._connection.release()
        self._app.close()


@pytest.fixture(scope="module")
def watcher(environment: dict[str, str]) -> Iterator[Watcher]:
    made = Watcher(environment["LTXQ_URL"])
    yield made
    made.stop()


@pytest.fixture
def client(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with Client() as made:
        yield made


def test_any_text_arrives_unchanged_and_breaks_no_log_line(
    fleet: Fleet, client: Client, watcher: Watcher
) -> None:
    prompts = [text for text in NASTY if text.strip()]
    metadata = {f"{n} {text[:40]}": text[:512] for n, text in enumerate(NASTY[:16])}
    jobs = [client.submit(prompt, metadata=metadata, **SMALL) for prompt in prompts]
    for job, prompt in zip(jobs, prompts, strict=True):
        result = client.wait(job.id, PATIENCE).result_or_raise()
        answer = urllib3.request("GET", result.sidecar_url, timeout=PATIENCE)
        told = json.loads(answer.data)["request"]
        assert (told["prompt"], told["metadata"]) == (prompt, metadata)
        assert "\r" not in str(answer.headers)
    for job in jobs:
        eventually(lambda job=job: watcher.of(job.id, "task-succeeded"))
        (sent,) = watcher.of(job.id, "task-sent")
        assert sent["args"].endswith(job.id)
        assert len(sent["args"]) < 300
    for event in watcher.heard:
        assert all(value.isprintable() for value in event.values() if isinstance(value, str)), event
    for line in fleet.log.splitlines():
        assert LOG_LINE.match(line), line
        assert line.isprintable(), line


def test_a_refused_requests_names_break_no_log_line(fleet: Fleet, client: Client) -> None:
    from ltxq.celery import make_app
    from ltxq.ledger import TASK

    app = make_app(Settings.read())
    for number, text in enumerate(NASTY):
        fields = {"prompt": "a", text: 1, "metadata": {text: 5}, "model": text}
        app.send_task(
            TASK, kwargs={"request": fields}, task_id=f"refused-{number}{text[:80]}",
            queue=queue_name("instant"), priority=1,
        )  # fmt: skip
    fleet.wait_for("is refused", times=len(NASTY))
    app.close()
    for line in fleet.log.splitlines():
        assert LOG_LINE.match(line), line
        assert line.isprintable(), line


def test_a_plain_producers_message_is_shown_by_little(
    client: Client, watcher: Watcher, environment: dict[str, str]
) -> None:
    with Celery(broker=environment["LTXQ_URL"]) as plain:
        fields = {"prompt": "a fox", "webhook_url": HOOK, **SMALL}
        sent = plain.send_task(
            "ltxq.generate", kwargs={"request": fields}, argsrepr=f"\x1b[2J{'x' * 9000}",
            queue=queue_name("instant"),
        )  # fmt: skip
    eventually(lambda: watcher.of(sent.id, "task-succeeded"))
    assert client.get(sent.id).request.webhook_url == HOOK
    heard = repr([event for event in watcher.heard if event.get("uuid") == sent.id])
    assert "[2J" not in heard
    assert "xxx" not in heard
    assert HOOK_TOKEN not in repr(watcher.heard)


def said(*words: str, code: int, **environment: str) -> str:
    """Both outputs of `ltxq …`, which must end with that exit code."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, environment),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        ended = main(words)
    assert ended == code, out.getvalue() + err.getvalue()
    return out.getvalue() + err.getvalue()


def refused_worker(environment: dict[str, str]) -> str:
    """The log of a worker that cannot start, since it has no bucket."""
    with Fleet({**environment, "LTXQ_S3_BUCKET": "no-such-bucket"}, name="b") as fleet:
        fleet.wait_for("cannot start")
        return fleet.log


def test_nothing_shows_a_password_a_key_or_a_token(
    fleet: Fleet, environment: dict[str, str], client: Client, guarded_redis: RedisServer,
    watcher: Watcher,
) -> None:  # fmt: skip
    from ltxq.storage import Storage

    url, password = environment["LTXQ_URL"], str(guarded_redis.password)
    key = environment["AWS_SECRET_ACCESS_KEY"]
    settings = Settings.read()
    made = client.wait(client.submit("a fox", webhook_url=HOOK, **SMALL).id, PATIENCE)
    shown = [
        fleet.log,
        *(
            repr(thing) + str(thing)
            for thing in (settings, client, Storage.from_settings(settings))
        ),
        said("submit", "a fox", "--num-frames", "9", code=0),
        said("list", "--json", code=0).replace(HOOK, ""),  # the caller's own
        said("status", made.id, code=0),
        said("list", code=2, LTXQ_URL=url.replace(password, password + "-wrong")),
        said("list", code=2, LTXQ_URL=f"{url}?nobody=knows"),
        said("list", code=2, LTXQ_URL=url.replace("127", "[")),
        said("list", code=2, LTXQ_URL=f"redis://:ab@{password}/zz@127.0.0.1:6379/0"),
        said("doctor", code=2, LTXQ_URL=f"sentinel://:{password}#@127.0.0.1:6379/clips"),
        said("generate", "a fox", "--model", "instant", "-o", "/no/such/x.mp4", code=2),
        refused_worker(environment),
    ]
    assert made.result is not None
    sidecar = urllib3.request("GET", made.result.sidecar_url, timeout=PATIENCE).data.decode()
    with redis.Redis.from_url(url, decode_responses=True) as connection:
        kept = [
            str(
                connection.hgetall(name)
                if connection.type(name) == "hash"
                else connection.get(name)
            )
            for name in connection.scan_iter()
            if connection.type(name) in ("hash", "string")
        ]
    eventually(lambda: watcher.of(made.id, "task-succeeded"))
    with Celery(broker=url, backend=url) as plain:
        inspect = plain.control.inspect(timeout=PATIENCE, limit=1)
        shown += [repr(ask()) for ask in (inspect.conf, inspect.stats, inspect.report)]
    shown += [repr(watcher.heard), said("doctor", "--json", code=0)]
    for secret in (password, key, HF_TOKEN, WEBHOOK_SECRET):
        for text in (*shown, *kept, sidecar):
            assert secret not in text, text
    for text in (*shown, sidecar, str(fleet.log)):
        assert HOOK_TOKEN not in text, text
