"""`ltxq batch` on files of any bytes: wrong lines are told by number, right ones go in."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path
from unittest.mock import patch

from hypothesis import strategies as st

from generated import count, fuzzed, json_values, mutated, nested, surrogates, texts
from ltxq.cli import main
from ltxq.cli.batch import MAX_LINE
from ltxq.client import client as client_module
from ltxq.job import VideoRequest
from ltxq.testing import MemoryTransport

LINES = 5
RIGHT = b'{"prompt": "a fox", "num_frames": 9}'

lines = st.one_of(
    st.just(RIGHT),
    mutated(RIGHT),
    st.binary(max_size=60),
    json_values().map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda prompt, key: json.dumps({"prompt": prompt, "idempotency_key": key}).encode(),
        texts,
        json_values() | surrogates,
    ),
    st.sampled_from(
        [
            b'{"prompt": "a", "prompt": "b"}',
            b'{"prompt": "x' + b"y" * MAX_LINE + b'"}',
            b'{"prompt": "\xff\xfe"}',
            b"\0" * 40,
            b'\xef\xbb\xbf{"prompt": "a fox"}',
            b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
            b'{"prompt": "a", "seed": NaN}',
            json.dumps(nested(900)).encode(),
            b"[" * 50_000,
        ]
    ),
).map(lambda line: line.replace(b"\n", b" ").replace(b"\r", b" "))


@fuzzed(0.1, batch=LINES, content=st.lists(lines, min_size=LINES, max_size=LINES))
def test_each_line_goes_in_or_is_told_by_number(content: list[bytes]) -> None:
    count(len(content))
    queue = MemoryTransport()
    out, err = io.StringIO(), io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(client_module, "RedisTransport", lambda settings: queue),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        path = Path(folder) / "requests.jsonl"
        path.write_bytes(b"\n".join([*content, RIGHT]))
        code = main(["batch", str(path), "--json"])
    told = json.loads(out.getvalue())
    assert "Traceback" not in err.getvalue()
    assert all(c.isprintable() or c in "\n\t" for c in err.getvalue())
    assert code == (2 if told["refused"] else 0)
    numbers = [row["line"] for row in [*told["submitted"], *told["refused"]]]
    assert sorted(numbers) == [n for n, line in enumerate([*content, RIGHT], 1) if line.strip()]
    assert all(row["code"] and row["message"] for row in told["refused"])
    taken = {row["line"]: row["id"] for row in told["submitted"]}
    assert LINES + 1 in taken
    for number, job_id in taken.items():
        fields = json.loads([*content, RIGHT][number - 1].decode("utf-8-sig"))
        fields.pop("idempotency_key", None)
        asked = VideoRequest.parse(fields)
        assert queue.get(job_id).request.prompt == asked.prompt
