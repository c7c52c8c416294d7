"""A real gateway takes jobs for models that are served, and for the default one, by every route."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from test_gateway import ALICE, error

from gateways import Answer, Gateway
from ltxq import Client
from ltxq.errors import InvalidRequest, UnknownModel
from ltxq.gateway.models import AGAIN_SECONDS, FRESH_SECONDS, ServedModels
from ltxq.job import VideoRequest, new_job_id
from ltxq.ledger import PREFIX, Ledger
from ltxq.limits import ModelLimits, ServedModel
from ltxq.reasons import NAMED_MOST
from ltxq.settings import Settings

ROUTES = ("/v1/jobs", "/v1/videos")


@pytest.fixture
def gateway(redis_url: str) -> Iterator[Gateway]:
    """Its default model is `instant`."""
    keys = {"LTXQ_API_KEYS": ALICE.entry, "LTXQ_RATE_LIMIT": "100000/minute"}
    with Gateway({"LTXQ_URL": redis_url, "LTXQ_DEFAULT_MODEL": "instant", **keys}) as running:
        yield running


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=30) as connection:
        yield connection


@pytest.fixture
def ledger(redis_url: str) -> Iterator[Ledger]:
    made = Ledger(Settings(url=redis_url))
    yield made
    made.close()


def ask(gateway: Gateway, path: str, **fields: Any) -> Answer:
    return gateway.ask("POST", path, json={"prompt": "a fox", **fields}, key=ALICE.key)


def asked(server: redis.Redis, *steps: str) -> Iterator[str]:
    """The steps of the ledger that are run until `server.echo("end")`, of those named."""
    with server.monitor() as monitor:
        yield "listening"
        for command in monitor.listen():
            words = command["command"].split()
            if words[0] == "ECHO":
                return
            if words[0] == "EVALSHA":
                yield from (step for step in steps if step in words)


@pytest.mark.parametrize("path", ROUTES)
def test_names_that_a_stranger_makes_up_become_no_queues(
    gateway: Gateway, server: redis.Redis, path: str
) -> None:
    for number in range(50):
        told = error(ask(gateway, path, model=f"made-up-{number}"), 404, "unknown_model")
        assert f"'made-up-{number}'" in told["message"]
        assert told["hint"] == "Served are: instant."
    assert server.smembers(f"{PREFIX}queues") == set()
    assert ask(gateway, path).is_success
    assert ask(gateway, path, model="instant").is_success
    assert len(server.smembers(f"{PREFIX}queues")) == 1


def test_a_model_that_is_served_is_known_at_once(gateway: Gateway, ledger: Ledger) -> None:
    for path in ROUTES:
        assert ask(gateway, path, model="instant").is_success
    ledger.fleet.heartbeat("other", "host", {"gpu0@host": "ready"})
    for path in ROUTES:
        assert ask(gateway, path, model="other").is_success


@pytest.mark.parametrize("model", ["sora-2", "Wan-AI/Wan2.2", "x" * 1000, "\x1b[2J\u202e\n"])
def test_openais_routes_name_the_models_there_are(
    gateway: Gateway, ledger: Ledger, model: str
) -> None:
    ledger.fleet.heartbeat("other", "host", {"gpu0@host": "ready"})
    told = error(ask(gateway, "/v1/videos", model=model), 404, "unknown_model")
    assert told["hint"] == "Served are: instant, other."
    assert told["message"].isprintable()
    assert len(told["message"]) < 500
    listed = gateway.ask("GET", "/v1/models", key=ALICE.key).json()
    assert listed["object"] == "list"
    assert {m["id"]: m["ready_workers"] for m in listed["data"]} == {"instant": 0, "other": 1}


def test_a_typing_error_in_a_models_name_is_told_with_the_right_name(
    gateway: Gateway, ledger: Ledger
) -> None:
    ledger.fleet.heartbeat("ltx-2-19b", "host", {"gpu0@host": "ready"})
    told = error(ask(gateway, "/v1/jobs", model="ltx2-19b"), 404, "unknown_model")
    assert told["hint"] == "Did you mean ltx-2-19b? Served are: instant, ltx-2-19b."


@pytest.mark.parametrize("door", ["redis", "http"])
def test_a_job_that_no_worker_takes_is_told_at_once(
    gateway: Gateway, redis_url: str, ledger: Ledger, door: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.fleet.heartbeat("ltx-2-19b", "host", {"gpu0@host": "ready"})
    ledger.fleet.heartbeat("loading", "host", {"gpu1@host": "loading"})
    settings = Settings(url=redis_url, default_model="instant")
    there = Client(gateway.url, api_key=ALICE.key) if door == "http" else Client(settings=settings)
    with there as client:
        known = client.submit("a fox", model="ltx-2-19b")
        assert (known.ready_workers, client.get(known.id).ready_workers) == (1, 1)
        assert client.submit("a fox").ready_workers == 0  # the default: its worker may come
        assert not caplog.messages
        if door == "redis":
            waits = client.submit("a fox", model="ltx2-19b")
            assert waits.ready_workers == 0
            (told,) = caplog.messages
            assert told.startswith("No worker has served the model ltx2-19b within a week.")
            assert waits.id in told
            assert "Did you mean ltx-2-19b?" in told
            client.submit("a fox", model="ltx2-19b")
            assert len(caplog.messages) == 1  # once, or a batch would fill the log
        for model in ("ltx2-19b", "loading", "instant"):
            with pytest.raises(UnknownModel, match=f"No worker is ready for the model {model}"):
                client.submit("a fox", model=model, require_worker=True)
        assert len(client.list(state="queued").jobs) == (4 if door == "redis" else 2)
        assert client.submit("a fox", model="ltx-2-19b", require_worker=True).state == "queued"


def test_a_clip_its_model_cannot_make_is_refused(gateway: Gateway, ledger: Ledger) -> None:
    one_stage = ModelLimits(stages=(1,), max_seconds=5, num_inference_steps=8)
    for model in ("instant", "other"):  # the default model, and a named model
        ledger.fleet.heartbeat(model, "host", {f"{model}@host": "ready"}, limits=one_stage)
    for path, fields in (
        ("/v1/videos", {}),
        ("/v1/videos", {"model": "other"}),
        ("/v1/jobs", {"model": "other"}),
    ):
        assert ask(gateway, path, **fields).is_success
        told = error(ask(gateway, path, stages=2, num_frames=161, **fields), 400, "invalid_request")
        assert told["message"] == (
            "stages: must be 1 for this model, not 2; "
            "num_frames: 6.7 s are more than this model's 5 s"
        )
    with Client(gateway.url, api_key=ALICE.key) as client:
        with pytest.raises(InvalidRequest, match="stages: must be 1"):
            client.submit("a fox", stages=2)
        served = client.models()["other"]
        assert (served.ready_workers, served.limits) == (1, one_stage)


def test_a_retry_and_a_remix_are_refused_too(
    gateway: Gateway, ledger: Ledger, server: redis.Redis
) -> None:
    request = VideoRequest.parse({"prompt": "a fox", "model": "forgotten", "seed": 1})
    old = ledger.jobs.submit(new_job_id(), request, owner="alice")
    error(ask(gateway, f"/v1/videos/{old.id}/remix"), 404, "unknown_model")
    retry = gateway.ask("POST", f"/v1/jobs/{old.id}/retry", key=ALICE.key)
    error(retry, 404, "unknown_model")
    with Client(gateway.url, api_key=ALICE.key) as client:
        with pytest.raises(UnknownModel, match=r"'forgotten'.*Served are: instant"):
            client.retry(old.id)
        with pytest.raises(UnknownModel):
            client.submit("a fox", model="forgotten")
        assert [job.id for job in client.list().jobs] == [old.id]


def test_a_submission_costs_no_look_at_the_models(
    gateway: Gateway, ledger: Ledger, server: redis.Redis
) -> None:
    ledger.fleet.heartbeat("other", "host", {"gpu0@host": "ready"})
    steps = asked(server, "served", "submit")
    assert next(steps) == "listening"
    began = time.monotonic()
    with Client(gateway.url, api_key=ALICE.key) as client:
        for _ in range(40):
            client.submit("a fox", model="other")
            with pytest.raises(UnknownModel):
                client.submit("a fox", model="made-up")
    ledger._script.redis.echo("end")
    seen = list(steps)
    assert seen.count("submit") == 40
    assert 1 <= seen.count("served") <= 3 + (time.monotonic() - began) / AGAIN_SECONDS


class Asked:
    """What is served, by a clock of the test's."""

    def __init__(self, *names: str) -> None:
        self.names: tuple[str, ...] = names
        self.now = 0.0
        self.times = 0
        self.served = ServedModels(self._ask, default="instant", clock=lambda: self.now)

    def _ask(self) -> dict[str, ServedModel]:
        self.times += 1
        if not self.names:
            raise ConnectionError
        return {name: ServedModel(ready_workers=1) for name in self.names}

    def knows(self, model: str | None) -> bool:
        try:
            self.served.check(model)
        except UnknownModel:
            return False
        return True


def test_the_default_model_is_not_asked_for() -> None:
    asked = Asked("other")
    assert asked.knows("instant")
    assert asked.knows(None)
    assert asked.times == 0


def test_what_is_served_is_asked_for_now_and_then() -> None:
    asked = Asked("other")
    for _ in range(100):
        assert asked.knows("other")
        assert not asked.knows("made-up")
    assert asked.times == 2  # once for what is served, once for a name that is not
    asked.names = ("other", "new")
    assert not asked.knows("new")  # within a second
    asked.now += AGAIN_SECONDS
    assert asked.knows("new")
    assert asked.times == 3
    asked.names = ("new",)
    asked.now += FRESH_SECONDS - 0.1
    assert asked.knows("other")
    asked.now += 0.1
    assert not asked.knows("other")
    assert asked.times == 4


def test_a_queue_that_is_away_makes_no_model_unknown() -> None:
    asked = Asked()
    for _ in range(2):
        with pytest.raises(ConnectionError):
            asked.knows("other")
    asked.names = ("other",)
    assert asked.knows("other")
    assert asked.times == 3


def test_a_refusal_names_some_of_many_models() -> None:
    many = [f"model-{number:03}" for number in range(300)]
    with pytest.raises(UnknownModel) as refused:
        Asked(*many).served.check("made-up")
    assert refused.value.hint.endswith(f"{many[NAMED_MOST - 2]} and {301 - NAMED_MOST} more.")
    assert refused.value.hint.count(", ") + 1 == NAMED_MOST
