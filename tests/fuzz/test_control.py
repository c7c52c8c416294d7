"""Remote control messages forged straight onto Redis: Flower is answered, a job can be cancelled,
and nothing else that is published moves a worker.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from hypothesis import strategies as st

from fleet import PATIENCE, eventually
from generated import count, fuzzed, json_values, mutated, scalars
from hostile_worker import JSON, HostileWorker, message
from ltxq.celery import make_app
from ltxq.ledger import queue_name

WORKER = "cpu0@host"
QUEUE = queue_name("instant")
TOPIC = "/0.celery.pidbox"
REPLIES = "reply.celery.pidbox"
BATCH = 20
NESTED = b"[" * 50_000 + b"]" * 50_000


@pytest.fixture(scope="module")
def flower(hostile: HostileWorker) -> Iterator[Celery]:
    """What Flower, or a plain Celery program, controls workers with."""
    with make_app(hostile.settings) as app:
        yield app


def asked(app: Celery, command: str, **arguments: Any) -> Any:
    """What the worker answers, of one command broadcast to all."""
    answers = app.control.broadcast(
        command, arguments=arguments, reply=True, timeout=PATIENCE, limit=1
    )
    assert isinstance(answers, list)
    (answer,) = answers
    return answer[WORKER]


def control(
    body: Any = None, *, raw: bytes | None = None, content_type: Any = JSON, **properties: Any
) -> bytes:
    """What kombu publishes to a mailbox."""
    text = json.dumps(body if body is not None else {"method": "ping"}).encode()
    envelope = {
        "body": base64.b64encode(raw if raw is not None else text).decode(),
        "content-encoding": "utf-8",
        "content-type": content_type,
        "headers": {"clock": 1, "expires": 0},
        "properties": {
            "delivery_tag": "a-tag",
            "body_encoding": "base64",
            "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
            **properties,
        },
    }
    return json.dumps(envelope).encode()


def test_flower_is_answered(flower: Celery) -> None:
    assert asked(flower, "ping") == {"ok": "pong"}
    assert asked(flower, "stats")["pool"]["max-concurrency"] == 1
    assert asked(flower, "active_queues")[0]["name"] == QUEUE
    assert "ltxq.generate" in asked(flower, "registered", taskinfoitems=["app"])
    assert asked(flower, "conf", with_defaults=False)["accept_content"] == ["json"]
    assert isinstance(asked(flower, "scheduled"), list)
    for command in ("active", "reserved", "revoked"):
        eventually(lambda command=command: asked(flower, command) == [])
    inspect = flower.control.inspect(destination=[WORKER], timeout=PATIENCE)
    assert inspect.ping() == {WORKER: {"ok": "pong"}}
    named = flower.control.broadcast(
        "ping", reply=True, timeout=PATIENCE, limit=1, pattern="cpu*", matcher="glob"
    )
    assert named == [{WORKER: {"ok": "pong"}}]


def test_a_message_that_fails_on_its_way_in_is_not_held_for_ever(
    hostile: HostileWorker, flower: Celery
) -> None:
    for wrong in ({"timelimit": [1, 2, 3]}, {"shadow": {"a": 1}}):
        hostile.put([message(headers={"task": "ltxq.generate", "id": "x", **wrong})])
        hostile.still_works()
    eventually(lambda: asked(flower, "reserved") == asked(flower, "active") == [])


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("shutdown", {}),
        ("pool_shrink", {"n": 9}),
        ("pool_grow", {"n": 10_000}),
        ("pool_restart", {"modules": ["os"], "reload": True}),
        ("autoscale", {"max": 0, "min": 0}),
        ("cancel_consumer", {"queue": QUEUE}),
        ("add_consumer", {"queue": "elsewhere"}),
        ("rate_limit", {"task_name": "ltxq.generate", "rate_limit": "1/h"}),
        ("time_limit", {"task_name": "ltxq.generate", "hard": 0.001}),
        ("disable_events", {}),
        ("election", {"id": "a", "topic": "b"}),
        ("revoke_by_stamped_headers", {"headers": {"a": "b"}, "terminate": True}),
        ("hello", {"from_node": "elsewhere", "revoked": {"an-id": 1}}),
        ("objgraph", {}),
        ("memdump", {}),
        ("nobody_knows", {}),
    ],
)
def test_no_other_command_is_obeyed(
    hostile: HostileWorker, flower: Celery, command: str, arguments: dict[str, Any]
) -> None:
    answer = asked(flower, command, **arguments)
    assert answer == {"error": "ltxq's workers do not take this command."}
    assert asked(flower, "active_queues")[0]["name"] == QUEUE
    assert asked(flower, "stats")["pool"]["max-concurrency"] == 1
    assert asked(flower, "revoked") == []
    hostile.still_works()


def test_revoke_takes_ids_of_jobs_and_not_too_many(hostile: HostileWorker, flower: Celery) -> None:
    assert "ok" in asked(flower, "revoke", task_id="video_1")
    assert "ok" in asked(flower, "revoke", task_id=["video_1"] * 1000, terminate=True)
    for wrong in (5, [5], ["a\nb"], ["video_1"] * 1001, {"a": 1}, [["video_1"]]):
        assert "at most 1000" in asked(flower, "revoke", task_id=wrong)["error"]
    hostile.still_works()


fields = st.fixed_dictionaries(
    {"method": st.sampled_from(["ping", "active", "revoke", "shutdown", "hello"]) | scalars},
    optional={
        "arguments": json_values() | st.fixed_dictionaries({"task_id": json_values()}),
        "destination": st.just([WORKER]) | json_values(),
        "pattern": st.sampled_from([".*", "(a+)+$", "*", "["]) | scalars,
        "matcher": st.sampled_from(["glob", "pcre", "nobody"]) | scalars,
        "reply_to": st.fixed_dictionaries(
            {"exchange": st.sampled_from([REPLIES, "", "celery"]) | scalars, "routing_key": scalars}
        )
        | json_values(),
        "ticket": json_values(),
        "state": json_values(),
    },
)
entries = st.one_of(
    st.binary(min_size=1, max_size=80),
    json_values().map(lambda value: json.dumps(value).encode()),
    mutated(control()),
    st.builds(control, fields | json_values()),
    st.builds(lambda raw: control(raw=raw), st.binary(max_size=40)),
    st.builds(lambda kind: control(content_type=kind), scalars),
    st.builds(
        lambda name, value: control(**{name: value}),
        st.sampled_from(["delivery_tag", "body_encoding", "delivery_info", "reply_to"]),
        json_values(),
    ),
)


@fuzzed(0.02, batch=BATCH, forged=st.lists(entries, min_size=BATCH, max_size=BATCH))
def test_nothing_published_ends_the_worker_or_hides_what_follows(
    hostile: HostileWorker, flower: Celery, forged: list[bytes]
) -> None:
    count(len(forged))
    with hostile.redis.pipeline(transaction=True) as pipe:  # in one piece, and so is what follows
        for entry in forged:
            pipe.publish(TOPIC, entry)
        pipe.execute()
    assert asked(flower, "ping") == {"ok": "pong"}
    assert hostile.fleet.workers() == [hostile.worker], hostile.fleet.log


@pytest.mark.parametrize(
    "forged",
    [
        NESTED,
        control(raw=NESTED),
        control(raw=b'{"method": "ping", "ticket": ' + b"9" * 5000 + b"}"),
        control({"method": "ping", "pattern": "(.*)*" * 12 + "!", "matcher": "pcre"}),
        control({"method": "revoke", "arguments": {"task_id": ["video_1"] * 100_000}}),
        control({"method": ["ping"]}),
        b"\xff" * 100_000,
    ],
    ids=["nested", "nested-body", "number", "pattern", "ids", "method", "bytes"],
)
def test_a_message_made_to_hurt_does_not(
    hostile: HostileWorker, flower: Celery, forged: bytes
) -> None:
    hostile.redis.publish(TOPIC, forged)
    hostile.redis.publish(TOPIC, forged)
    assert asked(flower, "ping") == {"ok": "pong"}
    hostile.still_works()


def test_a_forged_clock_is_not_taken_over(hostile: HostileWorker, flower: Celery) -> None:
    for clock in ("9" * 4300, "1e308", '"late"', "-1"):
        hostile.redis.publish(TOPIC, control().replace(b'"clock": 1', f'"clock": {clock}'.encode()))
    assert asked(flower, "clock")["clock"] < 2**53
    hostile.still_works()


def test_pickle_and_yaml_are_never_loaded(hostile: HostileWorker, flower: Celery) -> None:
    for kind, body in hostile.poisons():
        hostile.redis.publish(TOPIC, control(raw=body, content_type=kind))
    assert asked(flower, "ping") == {"ok": "pong"}
    hostile.still_works()


@pytest.mark.parametrize("kind", ["string", "members"])
def test_garbage_where_replies_are_looked_up_ends_nothing(
    hostile: HostileWorker, flower: Celery, kind: str
) -> None:
    key = f"_kombu.binding.{REPLIES}"
    hostile.redis.delete(key)
    if kind == "string":
        hostile.redis.set(key, "foreign")
    else:
        hostile.redis.sadd(key, "foreign", b"\xff", "a\x06\x16b")
    said = hostile.fleet.log.count("is dropped")
    ping = {"method": "ping", "reply_to": {"exchange": REPLIES, "routing_key": "x"}}
    hostile.redis.publish(TOPIC, control(ping))
    eventually(lambda: hostile.fleet.log.count("is dropped") > said)
    hostile.redis.delete(key)
    assert asked(flower, "ping") == {"ok": "pong"}
    hostile.still_works()
