"""Messages forged straight onto Redis: whatever lies on the queue, the worker lives on and the
next job is made.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import pytest
from hypothesis import strategies as st

from generated import count, fuzzed, json_values, mutated, scalars, surrogates, texts
from hostile_worker import QUEUE, HostileWorker, message

BATCH = 20


headers = st.one_of(
    json_values(),
    st.fixed_dictionaries(
        {
            "task": st.just("ltxq.generate") | st.sampled_from(["nobody.knows"]) | scalars,
            "id": texts | surrogates | scalars | st.just("i" * 100_000),
        },
        optional={
            name: json_values()
            for name in ("eta", "expires", "timelimit", "retries", "group", "root_id", "parent_id",
                         "argsrepr", "kwargsrepr", "origin", "ignore_result", "stamps", "args",
                         "stamped_headers", "properties", "delivery_info", "lang", "shadow",
                         "headers")
        },
    ),
)  # fmt: skip
embedded = st.one_of(
    st.none(),
    json_values(),
    st.dictionaries(
        st.sampled_from(["callbacks", "errbacks", "chain", "chord", "properties", "id", "args"]),
        json_values(),
        max_size=3,
    ),
)
arguments = st.one_of(
    json_values(),
    st.tuples(texts, scalars, scalars).map(list),
    st.tuples(st.just("video_" + "0" * 32), st.booleans() | st.integers(0, 5), st.integers()),
)
keywords = st.one_of(
    st.just({}), json_values(), st.builds(lambda value: {"request": value}, json_values())
)
bodies = st.one_of(
    st.builds(lambda *parts: json.dumps(parts).encode(), arguments, keywords, embedded),
    json_values().map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
)
entries = st.one_of(
    st.binary(max_size=80),
    json_values().map(lambda value: json.dumps(value).encode()),
    mutated(message()),
    st.builds(message, bodies),
    st.builds(lambda given: message(headers=given), headers),
    st.builds(lambda body, kind: message(body, content_type=kind), bodies, scalars | texts),
    st.builds(
        lambda name, value: message(properties={name: value}),
        st.sampled_from(
            ["delivery_tag", "body_encoding", "delivery_info", "correlation_id", "reply_to"]
        ),
        json_values(),
    ),
)


@fuzzed(0.05, batch=BATCH, forged=st.lists(entries, min_size=BATCH, max_size=BATCH))
def test_nothing_put_on_the_queue_ends_the_worker(
    hostile: HostileWorker, forged: list[bytes]
) -> None:
    count(len(forged))
    hostile.put(forged)
    hostile.still_works()


def test_pickle_and_yaml_are_never_loaded(hostile: HostileWorker) -> None:
    hostile.put([message(body, content_type=kind) for kind, body in hostile.poisons()])
    hostile.still_works()


@pytest.mark.parametrize(
    "forged",
    [
        message(headers={"task": "ltxq.generate", "id": "later", "eta": "2999-01-01T00:00:00"}),
        message(b'[[], {}, {"properties": {}}]'),
        message(b'[[], {}, {"properties": {"delivery_tag": "other"}}]'),
        message(b"[[], {}, 5]"),
        message(headers={"task": "ltxq.generate", "id": "x", "timelimit": [1, 2, 3]}),
        message(headers={"task": ["ltxq.generate"], "id": "x"}),
        message(headers={"task": "ltxq.generate", "id": "x", "shadow": {"a": 1}}),
        message(properties={"delivery_tag": None}),
        message(properties={"delivery_tag": ["a"]}),
        b"{}",
        b"\xff",
    ],
    ids=["eta", "no-delivery", "other-delivery", "embed", "limits", "task", "shadow",
         "no-tag", "tags", "empty", "bytes"],
)  # fmt: skip
def test_many_of_one_kind_keep_no_slot(hostile: HostileWorker, forged: bytes) -> None:
    for _ in range(12):
        hostile.redis.lpush(QUEUE, forged)
    hostile.still_works()


def test_a_message_that_unpacks_to_much_is_dropped(hostile: HostileWorker) -> None:
    def peak() -> int:
        """Bytes of memory that the worker ever had."""
        status = Path(f"/proc/{hostile.worker.pid}/status").read_text("ascii")
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])

    before = peak()
    headers = {"task": "ltxq.generate", "id": "forged", "compression": "application/x-gzip"}
    hostile.put([message(zlib.compress(b" " * 200 * 2**20), headers=headers)])
    hostile.still_works()
    assert peak() - before < 50 * 2**20
