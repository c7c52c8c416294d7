"""`Client` over a real gateway: lost answers, a restart of the gateway, API keys."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from test_client import Doors, LedgerWorker

from fleet import PATIENCE, eventually
from gateways import Gateway
from ltxq import Client
from ltxq.cli import main
from ltxq.client.transport import LOOK_SECONDS
from ltxq.errors import ConfigurationError
from proxy import Proxy


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    doors = Doors(tmp_path_factory.mktemp("doors"))
    yield doors
    doors.close()


@pytest.fixture
def doors(made: Doors) -> Doors:
    made.empty()
    return made


@pytest.fixture
def worker(doors: Doors) -> Iterator[LedgerWorker]:
    plays = LedgerWorker(doors.settings)
    yield plays
    plays.ledger.close()


def listeners() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "ltxq-events"}


def test_a_call_whose_answer_is_lost_is_done_once(doors: Doors) -> None:
    port = urlsplit(doors.open.url).port
    assert port is not None
    with Proxy(port) as proxy, Client(f"http://127.0.0.1:{proxy.port}") as client:
        proxy.lose_the_answer_to(b"POST /v1/jobs HTTP")
        job = client.submit("a fox", seed=None)
        assert [found.id for found in client.list().jobs] == [job.id]
        proxy.lose_the_answer_to(b"/cancel HTTP")
        assert client.cancel(job.id).state == "cancelled"
        proxy.lose_the_answer_to(b"/retry HTTP")
        again = client.retry(job.id)
        assert {found.id for found in client.list().jobs} == {job.id, again.id}
        proxy.lose_the_answer_to(b"DELETE /v1/jobs")
        client.delete(job.id)
        assert [found.id for found in client.list().jobs] == [again.id]
        assert proxy.lost == 4


def test_a_wait_survives_a_restart_of_the_gateway(doors: Doors, worker: LedgerWorker) -> None:
    environment = {"LTXQ_URL": doors.redis.url, "LTXQ_DEFAULT_MODEL": "instant"}
    with ThreadPoolExecutor(1) as pool, Gateway(environment) as first, Client(first.url) as client:
        job = client.submit("a fox")
        watching = threading.Event()

        def watch() -> str:
            for now in client.watch(job.id, timeout=60):
                watching.set()
                state = now.state
            return state

        waited = pool.submit(watch)
        assert watching.wait(30)
        assert first.stop() == 0
        port = urlsplit(first.url).port
        assert port is not None
        with Gateway(environment, port=port):
            worker.succeed(job.id)
            assert waited.result(30) == "succeeded"


def test_changes_arrive_by_events_not_only_by_polling(doors: Doors, worker: LedgerWorker) -> None:
    with Client(doors.open.url) as client:
        job = client.submit("a fox")
        with client._transport.changes(job.id) as changes:
            eventually(lambda: changes.look_after > LOOK_SECONDS)
            while changes.wait(0.5):  # as it was when we began to listen
                pass
            worker.start(job.id)
            assert changes.wait(PATIENCE)


def test_a_watch_that_stops_closes_its_stream(doors: Doors) -> None:
    before = listeners()  # of other tests, which may still be ending
    with Client(doors.open.url) as client:
        job = client.submit("a fox")
        for _ in client.watch(job.id):
            eventually(lambda: listeners() - before)
            break
        # Not only when the gateway next says something, which it does every 15 seconds.
        eventually(lambda: not listeners() - before, within=12)


def test_an_unknown_key_is_a_clear_error_and_shown_nowhere(doors: Doors) -> None:
    with Client(doors.locked.url, api_key="ltxq_Pl4nted") as client:
        with pytest.raises(ConfigurationError, match="Correct LTXQ_API_KEY") as refused:
            client.submit("a fox")
        with pytest.raises(ConfigurationError, match="LTXQ_API_KEY"):
            client.wait("video_1")
    assert "Pl4nted" not in repr(refused.value) + doors.locked.log


def test_the_command_line_works_over_http(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LTXQ_URL", doors.locked.url)

    def run(*words: str) -> tuple[int, str]:
        code = main([*words, "--json"])
        return code, capsys.readouterr().out

    code, out = run("list")
    assert code == 2
    assert json.loads(out)["error"]["hint"] == "Correct LTXQ_API_KEY."
    monkeypatch.setenv("LTXQ_API_KEY", doors.keys["alice"].key)
    job = json.loads(run("submit", "a fox")[1])
    assert (job["owner"], job["request"]["model"]) == ("alice", "instant")
    assert run("status", "video_unknown")[0] == 3
    assert json.loads(run("cancel", job["id"])[1])["state"] == "cancelled"
    again = json.loads(run("retry", job["id"])[1])
    assert again["retry_of"] == job["id"]
    assert [one["id"] for one in json.loads(run("list")[1])["jobs"]] == [again["id"], job["id"]]
    assert run("delete", again["id"])[0] == 0  # though it is queued
    assert run("status", again["id"])[0] == 3
    assert run("delete", job["id"])[0] == 0


def test_a_batch_goes_over_http_and_its_keys_make_each_line_once(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LTXQ_URL", doors.open.url)
    lines = tmp_path / "lines.jsonl"
    lines.write_text(
        "".join(
            json.dumps({"prompt": "a fox", "idempotency_key": f"fox-{number}"}) + "\n"
            for number in (1, 2, 1)
        )
    )
    assert main(["batch", str(lines)]) == 0
    with Client(doors.open.url) as client:
        assert len(client.list().jobs) == 2
