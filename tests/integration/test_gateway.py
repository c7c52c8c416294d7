"""A real gateway over a real Redis: requests, errors, API keys, limits and browsers."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx2
import pytest
import redis

from fleet import PATIENCE
from foreign_words import WRONG, foreign
from gateways import Answer, Gateway, has_ipv6
from ltxq import cli
from ltxq.client.http_errors import refusal
from ltxq.gateway.access.http_limits import HEAD_MOST
from ltxq.gateway.access.keys import new_key
from ltxq.gateway.openai.errors import _KINDS, Refused, UnsupportedParameter, body_of
from ltxq_worker.embedded.servers import RedisServer

FOX = {"prompt": "a fox"}
ALICE, BOB = new_key("alice"), new_key("bob")


@pytest.fixture(scope="module")
def url(redis_server: RedisServer) -> str:
    """A Redis database only for this module."""
    url = f"redis://127.0.0.1:{redis_server.port}/14"
    with redis.Redis.from_url(url, socket_timeout=5) as connection:
        connection.flushdb()
    return url


@pytest.fixture(scope="module")
def gateway(url: str) -> Iterator[Gateway]:
    """Without API keys."""
    environment = {
        "LTXQ_URL": url,
        "LTXQ_DEFAULT_MODEL": "instant",
        "LTXQ_CORS_ORIGINS": "https://app.example.com",
    }
    with Gateway(environment) as running:
        yield running


@pytest.fixture(scope="module")
def locked(url: str) -> Iterator[Gateway]:
    """With keys for Alice and Bob; each may have three jobs queued."""
    environment = {
        "LTXQ_URL": url,
        "LTXQ_DEFAULT_MODEL": "instant",
        "LTXQ_API_KEYS": f"{ALICE.entry},{BOB.entry}",
        "LTXQ_MAX_QUEUED_PER_KEY": "3",
    }
    with Gateway(environment) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(url: str) -> None:
    with redis.Redis.from_url(url, socket_timeout=5) as connection:
        connection.flushdb()


def error(answer: Answer, status: int, code: str) -> dict[str, Any]:
    """The envelope's error; checks status and code."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert {"message", "type", "param", "code", "hint", "retryable"} <= set(body["error"])
    assert body["error"]["code"] == code
    return body["error"]


# --- requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["json", "multipart", "urlencoded"])
def test_a_request_may_be_json_or_a_form(gateway: Gateway, how: str) -> None:
    fields = {"prompt": "ein Füchslein 🦊", "size": "1280x720", "seconds": "4", "seed": "7"}
    what: dict[str, Any] = {
        "json": {"json": {**fields, "metadata": {"order": "7"}}},
        "multipart": {
            "files": {name: (None, text) for name, text in fields.items()}
            | {"metadata[order]": (None, "7")}
        },
        "urlencoded": {"data": {**fields, "metadata": '{"order": "7"}'}},
    }[how]
    video = gateway.ask("POST", "/v1/videos", **what).json()
    assert (video["prompt"], video["size"], video["seconds"], video["seed"]) == (
        "ein Füchslein 🦊", "1280x720", "4.042", 7,
    )  # fmt: skip
    assert (video["status"], video["model"]) == ("queued", "instant")
    assert video["metadata"] == {"order": "7"}
    assert gateway.ask("GET", f"/v1/videos/{video['id']}").json() == video


@pytest.mark.parametrize("seed", [{}, {"seed": None}])
def test_without_a_seed_one_is_drawn_and_told(gateway: Gateway, seed: dict[str, None]) -> None:
    for path in ("/v1/videos", "/v1/jobs"):
        made = [gateway.ask("POST", path, json={**FOX, **seed}).json() for _ in range(3)]
        drawn = [video.get("seed", video.get("request", {}).get("seed")) for video in made]
        assert all(isinstance(number, int) for number in drawn)
        assert len(set(drawn)) == 3


def test_a_wrong_seed_is_told_in_words_that_are_true(gateway: Gateway) -> None:
    said = error(
        gateway.ask("POST", "/v1/videos", json={**FOX, "seed": -1}), 400, "invalid_request"
    )
    assert said["message"] == (
        "seed: must be from 0 to 2^53-1; nearest: 0, or leave it out for a random seed"
    )


def test_no_answer_repeats_a_librarys_words(gateway: Gateway) -> None:
    """Every parameter of every route, with values of every wrong kind."""
    texts = [text for text in WRONG if isinstance(text, str) and text.isprintable()]
    texts = [text for text in texts if text == text.strip()][:12]
    paths = gateway.ask("GET", "/openapi.json").json()["paths"]
    tried = 0
    for path, operations in paths.items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", []):
                name, place = parameter["name"], parameter["in"]
                for text in texts if place != "path" else ():
                    what = {"query": {"params": {name: text}}, "header": {"headers": {name: text}}}
                    url = path.replace("{video_id}", "x").replace("{job_id}", "x")
                    answer = gateway.ask(method.upper(), url, **what[place])
                    assert not foreign(answer.text), (method, path, name, text, answer.text)
                    tried += answer.status_code == 400
    assert tried > 30
    for text in ("{", "[]", '{"prompt": 1}', '{"prompt": "a", "x": 1}', '{"prompt": "a"', "\0"):
        for path in ("/v1/videos", "/v1/jobs", "/v1/videos/x/remix"):
            answer = gateway.ask("POST", path, content=text)
            assert answer.status_code == 400
            assert not foreign(answer.text), (path, text, answer.text)


@pytest.mark.parametrize("size", [10, 5_000_000, 25_000_000])
def test_a_file_is_refused_by_name_however_large(gateway: Gateway, size: int) -> None:
    picture = ("fox.png", b"x" * size, "image/png")
    for _ in range(5):
        answer = gateway.ask("POST", "/v1/videos", data=FOX, files={"input_reference": picture})
        assert error(answer, 400, "unsupported_parameter")["param"] == "input_reference"
        if (
            size > 10
        ):  # the gateway answers before it has all: the client must not reuse this connection
            assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"negative_prompt": "blurry"}, "negative_prompt"),
        ({"input_reference[image_url]": "https://example.com/fox.png"}, "input_reference"),
        ({"lora[][path]": "x"}, "lora"),
        ({"resolution": "720p"}, "resolution"),
    ],
)
def test_an_unsupported_field_is_refused_by_name(
    gateway: Gateway, fields: dict[str, str], param: str
) -> None:
    answer = gateway.ask("POST", "/v1/videos", data={**FOX, **fields})
    assert error(answer, 400, "unsupported_parameter")["param"] == param


def test_every_wrong_field_is_reported(gateway: Gateway) -> None:
    wrong = {"prompt": " ", "num_frames": 100}
    told = error(gateway.ask("POST", "/v1/videos", json=wrong), 400, "invalid_request")
    assert told["type"] == "invalid_request_error"
    assert told["param"] == "prompt"
    assert {problem["field"] for problem in told["problems"]} == {"prompt", "num_frames"}
    assert "97 or 105" in told["message"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b'{"prompt": NaN}', "application/json"),
        (b'{"prompt": "a", "prompt": "b"}', "application/json"),
        (b'{"prompt": "\\ud800"}', "application/json"),
        (b"\xff", "application/json"),
        (b"[" * 200_000, "application/json"),
        (b"prompt=a&prompt=b", "application/x-www-form-urlencoded"),
        (b"prompt=%ff", "application/x-www-form-urlencoded"),
        (b"", "multipart/form-data"),
        (b"", "multipart/form-data; boundary="),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"--x\r\n\r\nfox\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na fox\r\n',
         "multipart/form-data; boundary=x"),
        (b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--x--\r\n',
         "multipart/form-data; boundary=x"),
    ],
)  # fmt: skip
def test_a_broken_body_is_refused(gateway: Gateway, body: bytes, kind: str) -> None:
    answer = gateway.ask("POST", "/v1/videos", content=body, headers={"content-type": kind})
    error(answer, 400, "invalid_request")


def test_another_media_type_is_refused_with_the_supported_ones(gateway: Gateway) -> None:
    answer = gateway.ask(
        "POST", "/v1/videos", content=b"<a/>", headers={"content-type": "text/xml"}
    )
    assert "application/json" in error(answer, 415, "unsupported_media_type")["message"]


@pytest.mark.parametrize(
    ("body", "kind", "wanted"),
    [
        (b'{"prompt": "a fox"}', "application/x-www-form-urlencoded", "application/json"),
        (b' {"prompt": "a=fox&b"}', "multipart/form-data; boundary=x", "application/json"),
        (b"--x\r\n", "application/json", "multipart/form-data"),
        (b"--x\r\n", "", "multipart/form-data"),
    ],
)
def test_a_body_of_another_kind_than_its_header_says_is_told(
    gateway: Gateway, body: bytes, kind: str, wanted: str
) -> None:
    """`curl -d` calls everything a form."""
    headers = {"content-type": kind} if kind else {}
    answer = gateway.ask("POST", "/v1/videos", content=body, headers=headers)
    assert f"content-type: {wanted}" in error(answer, 415, "unsupported_media_type")["hint"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "it is empty"),
        (b"{'prompt': 'a fox'}", "character 2 is wrong"),
        (b'{"prompt": "a fox",}', "character "),
        (b'{"prompt": "\xff"}', "it is not UTF-8"),
        (b'{"fps": Infinity}', "it has no number Infinity"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "a number in it is too long"),
        (b"[" * 200_000, "it is nested too deeply"),
    ],
)
def test_a_body_that_is_not_json_is_told_why(gateway: Gateway, body: bytes, why: str) -> None:
    for path in ("/v1/videos", "/v1/jobs"):
        answer = gateway.ask("POST", path, content=body)
        assert why in error(answer, 400, "invalid_request")["message"]


def test_a_field_without_a_name_is_shown_as_such(gateway: Gateway) -> None:
    videos = gateway.ask("POST", "/v1/videos", json={**FOX, "": 1})
    assert error(videos, 400, "unsupported_parameter")["message"].startswith("'' is not")
    jobs = gateway.ask("POST", "/v1/jobs", json={**FOX, "": 1})
    assert error(jobs, 400, "invalid_request")["param"] == "''"


@pytest.mark.parametrize(
    "line",
    [
        b"BREW /healthz HTTP/1.1",
        b"GET /healthz HTTP/9.9",
        b"GET healthz HTTP/1.1",
        b"GET /healthz HTTP/1.1\r\nhost : localhost",
        b"POST /v1/jobs HTTP/1.1\r\ncontent-length: x",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET /healthz HTTP/1.1\r\nx-long: " + b"x" * HEAD_MOST,
    ],
)
def test_what_is_not_http_gets_the_envelope(gateway: Gateway, line: bytes) -> None:
    head, _, body = raw(gateway, line + b"\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert {b"content-type: application/json", b"connection: close"} <= set(head.split(b"\r\n"))
    assert f"content-length: {len(body)}".encode() in head
    told = json.loads(body)["error"]
    assert told["code"] == "invalid_request"
    assert told["message"].startswith("The ")
    assert told["hint"]


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/jobs"])
def test_a_body_that_is_too_large_is_refused_before_it_is_read(gateway: Gateway, path: str) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += 65_536
            yield b" " * 65_536

    answer = gateway.ask("POST", path, content=b'{"prompt": "' + b"x" * 300_000 + b'"}')
    error(answer, 413, "too_large")
    try:
        answer = gateway.ask("POST", path, content=endless())
    except OSError:  # it hung up, before we read what it said
        pass
    else:
        error(answer, 413, "too_large")
    assert sent < 60_000_000
    longest = {"prompt": "🦊" * 5000, "metadata": {f"{i:064}": "é" * 512 for i in range(16)}}
    body = json.dumps(longest).encode()
    headers = {"content-type": "application/json"}
    assert gateway.ask("POST", path, content=body, headers=headers).is_success


def raw(gateway: Gateway, *parts: bytes) -> bytes:
    """The gateway's whole answer to these bytes, sent part by part, until it disconnects."""
    said = b""
    port = int(gateway.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            while data := connection.recv(65_536):
                said += data
        except ConnectionError:  # it hung up before it had read all
            pass
    return said


def head(size: int, *, request: str = "GET /healthz", more: str = "connection: close") -> bytes:
    """A request head of exactly that many bytes."""
    begun = f"{request} HTTP/1.1\r\nhost: localhost\r\n{more}\r\nx-long: "
    return begun.encode() + b"x" * (size - len(begun) - 4) + b"\r\n\r\n"


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", answers)]


def test_a_head_that_is_too_long_is_refused(gateway: Gateway) -> None:
    answer = gateway.ask("GET", "/healthz", headers={"x-long": "x" * 20_000})
    assert answer.status_code == 200
    for rest in (b"x" * 100_000, b"x-a: b\r\n" * 10_000):
        said = raw(gateway, b"GET /healthz HTTP/1.1\r\nx-long: " + rest)
        assert statuses(said) == [400]


@pytest.mark.parametrize("pieces", [1, 2, 50])
def test_the_limit_of_a_head_does_not_depend_on_its_pieces(gateway: Gateway, pieces: int) -> None:
    for size in (200, HEAD_MOST, HEAD_MOST + 1, 40_000):
        sent = head(size)
        step = size // pieces + 1
        parts = [sent[start : start + step] for start in range(0, size, step)]
        said = raw(gateway, *parts)
        if size <= HEAD_MOST:
            assert statuses(said) == [200]
        else:
            assert said == b"" or b"head of the request is too long" in said


def test_the_limit_of_a_head_holds_for_later_requests_of_a_connection(gateway: Gateway) -> None:
    asked = head(200, more="x: y")
    posted = head(200, request="POST /v1/jobs", more="content-length: 5") + b"{...}"
    assert statuses(raw(gateway, asked + head(20_000))) == [200, 200]
    assert statuses(raw(gateway, posted + head(20_000))) == [400, 200]
    for earlier in (asked, posted):
        said = raw(gateway, earlier + head(40_000))
        assert len(statuses(said)) < 2 or b"head of the request is too long" in said


def test_trailers_and_chunk_framing_are_limited_too(gateway: Gateway) -> None:
    begun = head(200, request="POST /v1/jobs", more="transfer-encoding: chunked")
    for endless in (b"x-trailer: y\r\n" * 5000, b"1;" + b"x" * 60_000 + b"\r\n \r\n"):
        sent, port = 0, int(gateway.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(begun + (b"0\r\n" if b"trailer" in endless else b""))
            with suppress(ConnectionError):
                while sent < 100_000_000:
                    connection.sendall(endless)
                    sent += len(endless)
        assert sent < 50_000_000  # it hung up; most of it is in the buffers of the two sockets


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/videos/", 404, "not_found"),
        ("PUT", "/v1/videos", 405, "method_not_allowed"),
        ("PATCH", "/v1/jobs/video_1", 405, "method_not_allowed"),
        ("GET", "/v1/videos/video_1", 404, "job_not_found"),
        ("GET", "/v1/videos/%00%ff", 404, "job_not_found"),
        ("DELETE", "/v1/videos/video_1", 404, "job_not_found"),
        ("POST", "/v1/videos/video_1/cancel", 404, "job_not_found"),
        ("GET", "/v1/videos/video_1/events", 404, "job_not_found"),
        ("GET", "/v1/videos/video_1/content", 404, "job_not_found"),
        ("GET", "/v1/videos?after=video_1", 404, "job_not_found"),
        ("GET", "/v1/videos?limit=0", 400, "invalid_request"),
        ("GET", "/v1/videos?limit=many", 400, "invalid_request"),
        ("GET", "/v1/videos?order=up", 400, "invalid_request"),
        ("GET", "/v1/videos/video_1/content?variant=gif", 400, "invalid_request"),
        ("GET", "/v1/jobs?state=done", 400, "invalid_request"),
        ("POST", "/v1/jobs/video_1/retry", 404, "job_not_found"),
    ],
)
def test_every_error_is_the_envelope(
    gateway: Gateway, method: str, path: str, status: int, code: str
) -> None:
    answer = gateway.ask(method, path)
    error(answer, status, code)
    if status == 405:
        assert answer.headers["allow"]


def test_the_python_client_raises_the_error_that_the_gateway_sent() -> None:
    for kind in _KINDS.keys() - {UnsupportedParameter}:  # no call of Client can raise that
        sent, status, _ = body_of(kind("what", hint="how"))
        body = json.dumps({"error": sent.model_dump(mode="json")}).encode()
        read = refusal("host", status, {}, body)
        assert isinstance(read, kind)
    assert isinstance(body_of(Refused(401, "x", "y"))[1], int)


# --- once and only once ------------------------------------------------------------------------


def test_an_idempotency_key_makes_one_clip(gateway: Gateway) -> None:
    key = {"Idempotency-Key": "order-7"}
    first = gateway.ask("POST", "/v1/videos", json=FOX, headers=key).json()
    assert gateway.ask("POST", "/v1/videos", json=FOX, headers=key).json()["id"] == first["id"]
    other = gateway.ask("POST", "/v1/videos", json={"prompt": "a bear"}, headers=key)
    error(other, 409, "idempotency_conflict")
    assert other.headers["x-should-retry"] == "false"
    long = {"Idempotency-Key": "x" * 256}
    error(gateway.ask("POST", "/v1/videos", json=FOX, headers=long), 400, "invalid_request")


@pytest.mark.parametrize(
    ("path", "header", "first", "again"),
    [
        ("/v1/videos", "x-stainless-retry-count", "0", "1"),
        ("/v1/jobs", "ltxq-resent", "false", "true"),
    ],
)
def test_a_submission_sent_again_makes_one_clip(
    gateway: Gateway, path: str, header: str, first: str, again: str
) -> None:
    def submitted(count: str | None) -> str:
        headers = {} if count is None else {header: count}
        return str(gateway.ask("POST", path, json=FOX, headers=headers).json()["id"])

    one = submitted(first)
    assert submitted(again) == one
    two = submitted(first)
    assert two != one  # another click
    assert submitted(again) == two
    assert submitted(None) not in (one, two)


def test_a_remix_sent_again_makes_one_clip(gateway: Gateway) -> None:
    source = gateway.ask("POST", "/v1/videos", json=FOX).json()["id"]
    ids = [
        gateway.ask(
            "POST", f"/v1/videos/{source}/remix", json={"prompt": "a bear"},
            headers={"x-stainless-retry-count": count},
        ).json()["id"]
        for count in ("0", "1", "2")
    ]  # fmt: skip
    assert len(set(ids)) == 1


# --- a job's life over HTTP --------------------------------------------------------------------


def test_a_poll_says_when_to_ask_again(gateway: Gateway) -> None:
    made = gateway.ask("POST", "/v1/videos", json=FOX)
    asked = gateway.ask("GET", f"/v1/videos/{made.json()['id']}")
    for answer in (made, asked):
        assert 500 <= int(answer.headers["openai-poll-after-ms"]) <= 5000
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["videos", "jobs"])
def test_what_is_deleted_is_gone_finished_or_not(gateway: Gateway, path: str) -> None:
    video = gateway.ask("POST", f"/v1/{path}", json=FOX).json()
    gone = gateway.ask("DELETE", f"/v1/{path}/{video['id']}")
    if path == "videos":
        assert gone.json() == {"id": video["id"], "deleted": True, "object": "video.deleted"}
    assert gone.is_success
    error(gateway.ask("GET", f"/v1/videos/{video['id']}"), 404, "job_not_found")
    error(gateway.ask("DELETE", f"/v1/videos/{video['id']}"), 404, "job_not_found")
    for listed, name in (("videos", "data"), ("jobs", "jobs")):
        assert not gateway.ask("GET", f"/v1/{listed}").json()[name]


def test_a_cancelled_clip_has_no_content(gateway: Gateway) -> None:
    video = gateway.ask("POST", "/v1/videos", json=FOX).json()
    content = f"/v1/videos/{video['id']}/content"
    early = gateway.ask("GET", content)
    error(early, 409, "job_not_finished")
    assert early.headers["x-should-retry"] == "false"
    cancelled = gateway.ask("POST", f"/v1/videos/{video['id']}/cancel").json()
    assert cancelled["status"] == "cancelled"
    error(gateway.ask("GET", content), 404, "no_content")


def test_jobs_are_listed_by_their_ids(gateway: Gateway) -> None:
    ids = [gateway.ask("POST", "/v1/jobs", json=FOX).json()["id"] for _ in range(2)]
    asked = [("id", ids[1]), ("id", "video_none"), ("id", ids[0])]
    page = gateway.ask("GET", "/v1/jobs", params=asked).json()
    assert [job["id"] for job in page["jobs"]] == [ids[1], ids[0]]
    many = [("id", f"video_{number}") for number in range(101)]
    error(gateway.ask("GET", "/v1/jobs", params=many), 400, "invalid_request")


def test_an_unreadable_record_is_a_clear_error(gateway: Gateway, url: str) -> None:
    good = gateway.ask("POST", "/v1/videos", json=FOX).json()["id"]
    bad = gateway.ask("POST", "/v1/videos", json=FOX).json()["id"]
    with redis.Redis.from_url(url, socket_timeout=5) as connection:
        connection.hset(f"ltxq:3:job:{bad}", "request", "{")
    answer = gateway.ask("GET", f"/v1/videos/{bad}")
    error(answer, 500, "job_unreadable")
    assert answer.headers["x-should-retry"] == "false"
    listed = gateway.ask("GET", "/v1/videos").json()
    assert [video["id"] for video in listed["data"]] == [good]


# --- keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer"}, {"Authorization": "Bearer ltxq_wrong"},
     {"Authorization": f"Basic {ALICE.key}"}, {"Authorization": ALICE.key},
     {"Authorization": f"Bearer {ALICE.entry}"}, {"Authorization": f"Bearer {ALICE.key}x"},
     {"X-Api-Key": ALICE.key}],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/videos"), ("POST", "/v1/videos"), ("GET", "/v1/videos/video_1"),
     ("DELETE", "/v1/videos/video_1"), ("GET", "/v1/videos/video_1/content"),
     ("GET", "/v1/videos/video_1/events"), ("POST", "/v1/jobs"), ("GET", "/v1/jobs"),
     ("GET", "/v1/models")],
)  # fmt: skip
def test_an_unknown_key_is_refused_everywhere(
    locked: Gateway, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = locked.ask(method, path, headers=headers)
    error(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_page_description_and_probes_need_no_key(locked: Gateway) -> None:
    for path in ("/", "/docs", "/openapi.json", "/healthz"):
        assert locked.ask("GET", path).status_code == 200


def test_a_key_sees_only_its_own_jobs(locked: Gateway) -> None:
    mine = locked.ask("POST", "/v1/videos", json=FOX, key=ALICE.key).json()["id"]
    for method, path in (
        ("GET", f"/v1/videos/{mine}"), ("GET", f"/v1/videos/{mine}/content"),
        ("GET", f"/v1/videos/{mine}/events"), ("DELETE", f"/v1/videos/{mine}"),
        ("POST", f"/v1/videos/{mine}/cancel"), ("GET", f"/v1/videos?after={mine}"),
        ("GET", f"/v1/jobs/{mine}"), ("GET", f"/v1/jobs/{mine}/events"),
        ("DELETE", f"/v1/jobs/{mine}"), ("POST", f"/v1/jobs/{mine}/cancel"),
        ("POST", f"/v1/jobs/{mine}/retry"), ("GET", f"/v1/jobs?after={mine}"),
    ):  # fmt: skip
        error(locked.ask(method, path, key=BOB.key), 404, "job_not_found")
    remix = locked.ask("POST", f"/v1/videos/{mine}/remix", json=FOX, key=BOB.key)
    error(remix, 404, "job_not_found")
    assert locked.ask("GET", f"/v1/jobs?id={mine}", key=BOB.key).json()["jobs"] == []
    assert locked.ask("GET", "/v1/videos", key=BOB.key).json()["data"] == []
    assert locked.ask("GET", f"/v1/videos/{mine}", key=ALICE.key).json()["status"] == "queued"


def test_concurrent_reads_of_two_keys_stay_separate(locked: Gateway) -> None:
    """Concurrent reads become one call to Redis: the answers must not mix."""
    from concurrent.futures import ThreadPoolExecutor

    mine = locked.ask("POST", "/v1/videos", json=FOX, key=ALICE.key).json()["id"]
    with ThreadPoolExecutor(8) as pool:
        asked = [
            (key, pool.submit(locked.ask, "GET", f"/v1/videos/{mine}", key=key.key))
            for _ in range(20)
            for key in (ALICE, BOB)
        ]
        for key, answer in asked:
            assert answer.result().status_code == (200 if key is ALICE else 404)


def test_one_key_cannot_fill_the_queue(locked: Gateway) -> None:
    for _ in range(3):
        assert locked.ask("POST", "/v1/videos", json=FOX, key=ALICE.key).is_success
    full = locked.ask("POST", "/v1/videos", json=FOX, key=ALICE.key)
    told = error(full, 429, "queue_full")
    assert (told["retryable"], int(full.headers["retry-after"]) > 0) == (True, True)
    assert locked.ask("POST", "/v1/videos", json=FOX, key=BOB.key).is_success


def refused_to_start(
    capsys: pytest.CaptureFixture[str], *options: str, **settings: str
) -> dict[str, Any]:
    """The error of `ltxq gateway`, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, text in settings.items():
            patch.setenv(name, text)
        assert cli.main(["gateway", "--port", "0", "--json", *options]) == 2
    said: dict[str, Any] = json.loads(capsys.readouterr().out)["error"]
    return said


def test_without_keys_it_listens_only_on_this_machine(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1"):  # noqa: S104
        said = refused_to_start(capsys, "--host", host, LTXQ_URL=url)
        assert f"only on this machine, not on {host}" in said["message"]
        assert "ltxq key NAME" in said["hint"]
    keys = {"LTXQ_URL": url, "LTXQ_API_KEYS": ALICE.entry}
    with Gateway(keys, "--host", "0.0.0.0") as running:  # noqa: S104
        assert running.url.startswith("http://0.0.0.0:")


def test_it_listens_on_both_addresses_of_localhost(gateway: Gateway) -> None:
    port = gateway.url.removeprefix("http://localhost:")
    for address in ("127.0.0.1", "[::1]") if has_ipv6() else ("127.0.0.1",):
        assert httpx2.get(f"http://{address}:{port}/healthz", timeout=PATIENCE).is_success


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("LTXQ_API_KEYS", "alice=s3cret", "LTXQ_API_KEYS: entry 1"),
        ("LTXQ_RATE_LIMIT", "often", "LTXQ_RATE_LIMIT is no rate limit"),
        ("LTXQ_READ_LIMIT", "9/second;0/minute", "LTXQ_READ_LIMIT is no rate limit"),
        ("LTXQ_CORS_ORIGINS", "*", "LTXQ_CORS_ORIGINS: entry 1"),
        ("LTXQ_URL", "https://gateway.example.com", "a gateway needs Redis itself"),
    ],
)
def test_a_wrong_setting_is_an_error_at_the_start(
    url: str, capsys: pytest.CaptureFixture[str], name: str, text: str, message: str
) -> None:
    said = refused_to_start(capsys, **{"LTXQ_URL": url, name: text})
    assert message in said["message"]
    assert "s3cret" not in str(said)


def test_a_taken_port_is_a_clear_error(
    gateway: Gateway, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = gateway.url.rpartition(":")[2]
    said = refused_to_start(capsys, "--port", port, LTXQ_URL=url)
    assert f"cannot listen on 127.0.0.1, port {port}" in said["message"]


# --- browsers ----------------------------------------------------------------------------------


def test_without_keys_another_sites_page_is_refused(gateway: Gateway) -> None:
    for origin in ("https://evil.example.com", "null", "http://localhost:1"):
        answer = gateway.ask("POST", "/v1/videos", data=FOX, headers={"Origin": origin})
        error(answer, 403, "wrong_origin")
    own = {"Origin": gateway.url}
    assert gateway.ask("POST", "/v1/videos", json=FOX, headers=own).is_success


def test_the_gateways_own_page_is_known_behind_a_proxy_that_changes_the_host(
    gateway: Gateway,
) -> None:
    """By what the browser says of the request; no page can say it itself."""
    here, elsewhere = {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "same-site"}
    for origin, site, allowed in (
        ("http://localhost:8081", here, True),
        ("https://[::1]:8081", here, True),
        ("http://localhost:8081", elsewhere, False),
        ("http://localhost:8081", {}, False),
        ("http://evil.example.com:8081", here, False),  # its name may lead to this machine
        ("null", here, False),
    ):
        headers = {"Origin": origin, **site, "Host": "localhost"}
        answer = gateway.ask("POST", "/v1/videos", json=FOX, headers=headers)
        assert answer.is_success == allowed, (origin, site)


def test_files_of_the_page_load_whatever_the_origin(gateway: Gateway) -> None:
    headers = {"Origin": "https://evil.example.com"}
    assert gateway.ask("GET", "/page/app.js", headers=headers).is_success
    error(gateway.ask("GET", "/v1/models", headers=headers), 403, "wrong_origin")


@pytest.mark.parametrize(
    ("origin", "is_here"),
    [
        ("https://a.example", False),  # with its Host passed on, it would be a wrong Host
        ("http://localhost:3000", True),
        ("http://[", False),
        ("null", False),
    ],
)
def test_a_refused_page_is_told_host_origin_and_what_to_set(
    gateway: Gateway, origin: str, is_here: bool
) -> None:
    headers = {"Origin": origin, "Host": "localhost:1"}
    said = error(gateway.ask("GET", "/v1/models", headers=headers), 403, "wrong_origin")
    for part in (origin, "localhost:1"):
        assert part in said["message"]
    for part in ("LTXQ_CORS_ORIGINS", "ltxq key NAME"):
        assert part in said["hint"]
    assert ("proxy_set_header Host $http_host;" in said["hint"]) == is_here


def test_a_refused_host_is_told(gateway: Gateway) -> None:
    said = error(
        gateway.ask("GET", "/v1/models", headers={"Host": "clips.example.com"}), 403, "wrong_host"
    )
    assert "clips.example.com" in said["message"]
    assert "ltxq key NAME" in said["hint"]


def test_without_keys_a_foreign_host_header_is_refused(gateway: Gateway) -> None:
    for host in ("evil.example.com", "localhost.evil.com:8080", "10.0.0.1"):
        error(gateway.ask("GET", "/v1/videos", headers={"Host": host}), 403, "wrong_host")
    for host in ("localhost:1", "app.localhost", "127.0.0.1", "[::1]:8080"):
        assert gateway.ask("GET", "/v1/videos", headers={"Host": host}).is_success


def test_with_keys_any_host_header_is_accepted(locked: Gateway) -> None:
    headers = {"Host": "api.example.com", "Origin": "https://app.example.com"}
    assert locked.ask("GET", "/v1/videos", key=ALICE.key, headers=headers).is_success


def test_cors_allows_only_the_origins_in_the_settings(gateway: Gateway, locked: Gateway) -> None:
    wish = {
        "Origin": "https://app.example.com",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
    }
    leave = gateway.ask("OPTIONS", "/v1/videos", headers=wish)
    assert leave.headers["access-control-allow-origin"] == "https://app.example.com"
    made = gateway.ask("POST", "/v1/videos", json=FOX, headers={"Origin": wish["Origin"]})
    assert made.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "access-control-allow-credentials" not in made.headers
    for door in (gateway, locked):
        refused = door.ask(
            "OPTIONS", "/v1/videos", headers={**wish, "Origin": "https://evil.example.com"}
        )
        assert not refused.is_success
        assert "access-control-allow-origin" not in refused.headers
    off = locked.ask("GET", "/v1/videos", key=ALICE.key, headers={"Origin": wish["Origin"]})
    assert "access-control-allow-origin" not in off.headers


def test_every_answer_has_security_headers(gateway: Gateway) -> None:
    for path in ("/v1/videos", "/v1/videos/video_1", "/docs", "/", "/nothing"):
        headers = gateway.ask("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "server" not in headers


def test_page_and_description_load_nothing_from_other_hosts(gateway: Gateway) -> None:
    for path in ("/", "/docs"):
        html = gateway.ask("GET", path).text
        assert not [word for word in ('src="http', 'href="http', "cdn") if word in html]
    assert b"SwaggerUIBundle" in gateway.ask("GET", "/docs/static/swagger-ui-bundle.js").content
