"""Clips through a gateway: by redirect, and sent by the gateway itself (`LTXQ_CONTENT=proxy`)."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import psutil
import pytest

from fleet import PATIENCE, SMALL, Fleet, eventually
from gateways import Answer, Gateway
from ltxq import Client, links
from ltxq.celery import make_app
from ltxq.errors import JobError, QueueUnavailable
from ltxq.gateway.access.keys import new_key
from ltxq.job import Job, VideoResult
from ltxq.ledger import Ledger
from ltxq.settings import Settings
from ltxq.storage import Storage
from ltxq_worker.embedded.servers import RedisServer, S3Server
from proxy import Proxy
from receiver import LOOPBACK, SECRET, Receiver
from servers import S3, start_or_skip
from strict_s3 import Hose, StrictS3, refuses

CLIP = bytes(range(256)) * 40
PICTURE = b"\xff\xd8\xff" + bytes(1000)
KEYS = {name: new_key(name) for name in ("alice", "bob")}
MEGABYTE = 2**20
ANY = "0.0.0.0"  # noqa: S104  never listened on


class Shop:
    """Gateways on one Redis and one S3 server, and clips that no worker has made."""

    def __init__(self, url: str, environment: dict[str, str], tmp: Path) -> None:
        self.environment = {"LTXQ_URL": url, "LTXQ_DEFAULT_MODEL": "instant", **environment}
        self.settings = Settings(
            url=url,
            default_model="instant",
            s3_endpoint=environment["LTXQ_S3_ENDPOINT"],
            s3_bucket=environment["LTXQ_S3_BUCKET"],
        )
        self._tmp = tmp
        self.storage = Storage.from_settings(self.settings)
        self.ledger = Ledger(self.settings)

    def start(self, **settings: str) -> Gateway:
        """Another gateway."""
        return Gateway({**self.environment, **settings})

    def clip(
        self,
        prompt: str = "a fox",
        *,
        owner: str | None = None,
        stored: bool = True,
        size: int | None = None,
        **fields: Any,
    ) -> Job:
        """A finished job. `size`: as the record has it."""
        with Client(settings=self.settings, owner=owner) as client:
            job = client.submit(prompt, seed=42, **fields)
            claim = self.ledger.claims.take("instant", "w")
            assert claim is not None
            assert claim.job_id == job.id
            keys = self.storage.clip_keys(claim.objects)
            file = self._tmp / "file"
            for key, content in zip(keys, (CLIP, PICTURE, PICTURE, b"{}"), strict=True):
                file.write_bytes(content)
                if stored:
                    self.storage.put(key, file, "application/octet-stream")
            names = ("url", "poster_url", "spritesheet_url", "sidecar_url")
            made = VideoResult(
                **dict.fromkeys(names, "https://nowhere.example/"),
                key=keys.clip,
                sha256=hashlib.sha256(CLIP).hexdigest(),
                size=len(CLIP) if size is None else size,
                width=64,
                height=64,
                num_frames=9,
                frame_rate=24,
                duration=0.375,
                seed=42,
                model="instant",
                timings={},
                expires_at=None,
            )
            assert self.ledger.claims.finish(claim, made)
            return client.get(job.id)


@pytest.fixture(scope="module")
def shop(
    redis_server: RedisServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    """On rclone's S3 server, which answers 200 to ranges."""
    with (
        start_or_skip(lambda: RedisServer.start(tmp_path_factory.mktemp("redis"))) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, text in s3_server.credentials.items():
            patch.setenv(name, text)
        environment = {
            **s3_server.credentials,
            "LTXQ_S3_ENDPOINT": s3_server.endpoint,
            "LTXQ_S3_BUCKET": s3_server.bucket,
        }
        made = Shop(server.url, environment, tmp_path_factory.mktemp("clips"))
        with closing(made.ledger):
            yield made


@pytest.fixture(scope="module")
def proxy(shop: Shop) -> Iterator[Gateway]:
    """Without API keys."""
    with shop.start(LTXQ_CONTENT="proxy") as running:
        yield running


@pytest.fixture(scope="module")
def locked(shop: Shop) -> Iterator[Gateway]:
    """With keys, for viewers at another address."""
    entries = ",".join(key.entry for key in KEYS.values())
    with shop.start(
        LTXQ_CONTENT="proxy", LTXQ_API_KEYS=entries, LTXQ_PUBLIC_URL="https://clips.example/q"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def clip(shop: Shop, proxy: Gateway) -> Job:
    return shop.clip("A red fox,\n in ../the SNOW")


def content(job: Job, **query: str) -> str:
    return f"/v1/videos/{job.id}/content" + (f"?{urlencode(query)}" if query else "")


def code(answer: Answer) -> str:
    return str(answer.json()["error"]["code"])


# --- the file ------------------------------------------------------------------------------------


def test_the_gateway_sends_the_file_whole(proxy: Gateway, clip: Job) -> None:
    answer = proxy.ask("GET", content(clip))
    assert answer.status_code == 200
    assert answer.content == CLIP
    headers = answer.headers
    assert headers["content-type"] == "video/mp4"
    assert headers["content-length"] == str(len(CLIP))
    assert headers["accept-ranges"] == "bytes"
    assert headers["etag"] == f'"{hashlib.sha256(CLIP).hexdigest()}"'
    assert headers["content-disposition"] == 'inline; filename="A-red-fox-in-the-SNOW-42.mp4"'
    for variant, kind, name in (
        ("thumbnail", "image/jpeg", "-42.jpg"),
        ("spritesheet", "image/jpeg", "-42-spritesheet.jpg"),
        ("sidecar", "application/json", "-42.json"),
    ):
        answer = proxy.ask("GET", content(clip, variant=variant))
        assert answer.content in (PICTURE, b"{}")
        assert answer.headers["content-type"] == kind
        assert name in answer.headers["content-disposition"]


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-", 0, len(CLIP) - 1),
        ("bytes=100-199", 100, 199),
        ("bytes=-100", len(CLIP) - 100, len(CLIP) - 1),
        ("bytes=-999999", 0, len(CLIP) - 1),
        ("bytes=100-999999999999", 100, len(CLIP) - 1),
        (f"bytes={len(CLIP) - 1}-", len(CLIP) - 1, len(CLIP) - 1),
        ("Bytes= 5-6", 5, 6),
    ],
)
def test_a_part_is_206_with_its_place(
    asked: str, first: int, last: int, proxy: Gateway, clip: Job
) -> None:
    answer = proxy.ask("GET", content(clip), headers={"range": asked})
    assert answer.status_code == 206
    assert answer.content == CLIP[first : last + 1]
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(CLIP)}"
    assert answer.headers["content-length"] == str(last - first + 1)


@pytest.mark.parametrize(
    "asked", ["bytes=0-1,5-6", "bytes=9-5", "bytes=a-", "lines=1-2", "x", "bytes=-"]
)
def test_a_range_that_is_no_single_one_is_ignored(asked: str, proxy: Gateway, clip: Job) -> None:
    answer = proxy.ask("GET", content(clip), headers={"range": asked})
    assert (answer.status_code, answer.content) == (200, CLIP)


@pytest.mark.parametrize("asked", [f"bytes={len(CLIP)}-", "bytes=999999999999999999-", "bytes=-0"])
def test_a_range_beyond_the_end_is_416_with_the_size(asked: str, proxy: Gateway, clip: Job) -> None:
    answer = proxy.ask("GET", content(clip), headers={"range": asked})
    assert (answer.status_code, code(answer)) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(CLIP)}"


def test_a_part_of_a_picture(proxy: Gateway, clip: Job) -> None:
    where = content(clip, variant="thumbnail")
    part = proxy.ask("GET", where, headers={"range": "bytes=0-2"})
    assert (part.status_code, part.content) == (206, PICTURE[:3])
    assert part.headers["content-range"] == f"bytes 0-2/{len(PICTURE)}"
    beyond = proxy.ask("GET", where, headers={"range": "bytes=5000-"})
    assert beyond.headers["content-range"] == f"bytes */{len(PICTURE)}"


def test_head_is_get_without_the_file(proxy: Gateway, clip: Job) -> None:
    for variant in ("video", "thumbnail"):
        where = content(clip, variant=variant)
        whole, head = proxy.ask("GET", where), proxy.ask("HEAD", where)
        assert (head.status_code, head.content) == (200, b"")
        same = ("content-length", "content-type", "etag", "accept-ranges", "content-disposition")
        assert all(head.headers[name] == whole.headers[name] for name in same)


def test_a_file_that_the_client_has_is_not_sent_again(proxy: Gateway, clip: Job) -> None:
    etag = proxy.ask("HEAD", content(clip)).headers["etag"]
    for known in (etag, f'"x", W/{etag}', "*"):
        answer = proxy.ask("GET", content(clip), headers={"if-none-match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
        assert "media-src 'self'" in answer.headers["content-security-policy"]
    assert proxy.ask("GET", content(clip), headers={"if-none-match": '"x"'}).status_code == 200
    part = {"range": "bytes=0-1"}
    assert proxy.ask("GET", content(clip), headers={"if-range": etag, **part}).status_code == 206
    for other in ('"x"', f"W/{etag}", "Wed, 21 Oct 2026 07:28:00 GMT"):
        answer = proxy.ask("GET", content(clip), headers={"if-range": other, **part})
        assert (answer.status_code, answer.content) == (200, CLIP)
    answer = proxy.ask("GET", content(clip), headers={"if-match": '"x"'})
    assert (answer.status_code, code(answer)) == (412, "precondition_failed")


def test_what_has_no_file_says_why(shop: Shop, proxy: Gateway) -> None:
    lost = shop.clip(stored=False)
    for headers in ({}, {"range": "bytes=0-1"}):
        answer = proxy.ask("GET", content(lost), headers=headers)
        assert (answer.status_code, code(answer)) == (404, "no_content")
    where = content(lost, variant="thumbnail")
    assert code(proxy.ask("GET", where, headers={"range": "bytes=0-1"})) == "no_content"
    assert proxy.ask("HEAD", content(lost)).status_code == 404
    changed = shop.clip(size=len(CLIP) + 1)
    answer = proxy.ask("GET", content(changed))
    assert (answer.status_code, code(answer)) == (500, "content_changed")
    with Client(settings=shop.settings) as client:
        failed = client.submit("a bear")
        claim = shop.ledger.claims.take("instant", "w")
        assert claim is not None
        shop.ledger.claims.finish(claim, JobError(code="internal", message="x"))
    assert code(proxy.ask("GET", content(failed))) == "no_content"


# --- links ---------------------------------------------------------------------------------------


def test_answers_have_links_that_need_no_key(shop: Shop, locked: Gateway) -> None:
    job = shop.clip(owner="alice")
    alice = KEYS["alice"].key
    as_job = locked.ask("GET", f"/v1/jobs/{job.id}", key=alice).json()["result"]
    as_video = locked.ask("GET", f"/v1/videos/{job.id}", key=alice).json()
    assert as_video["url"] == as_job["url"]
    for url, wanted in (
        (as_job["url"], CLIP),
        (as_job["poster_url"], PICTURE),
        (as_job["spritesheet_url"], PICTURE),
        (as_job["sidecar_url"], b"{}"),
        (as_video["thumbnail_url"], PICTURE),
    ):
        assert url.startswith(f"https://clips.example/q/v1/videos/{job.id}/content?")
        path = url.removeprefix("https://clips.example/q")
        assert locked.ask("GET", path).content == wanted
        assert locked.ask("HEAD", path).status_code == 200
    ends = int(parse_qs(urlsplit(as_job["url"]).query)["expires"][0])
    assert ends == as_video["expires_at"]
    assert 0 <= time.time() + 86400 - ends <= 60 + PATIENCE
    listed = locked.ask("GET", "/v1/jobs?limit=1", key=alice).json()["jobs"][0]
    assert listed["result"]["url"].startswith("https://clips.example/q/")


def test_only_a_whole_link_that_has_not_ended_opens_a_file(
    shop: Shop, locked: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, other = shop.clip(owner="alice"), shop.clip(owner="alice")
    made = links.Links("https://clips.example", shop.ledger.link_secret)
    query = urlsplit(made.urls(job.id, 86400, None)["url"]).query
    right = f"/v1/videos/{job.id}/content?{query}"
    assert locked.ask("GET", right).status_code == 200
    monkeypatch.setattr(links.time, "time", lambda: 1.7e9)
    ended = urlsplit(made.urls(job.id, 86400, None)["url"])
    for wrong in (
        right.replace(job.id, other.id),
        f"{right}&variant=thumbnail",
        right.replace("expires=", "expires=9"),
        right[:-1],
        right[:-1] + "%C3%BC",
        f"{ended.path}?{ended.query}",
    ):
        answer = locked.ask("GET", wrong)
        assert (answer.status_code, code(answer)) == (403, "link_ended")
    half = right.partition("&signature")[0]
    assert locked.ask("GET", half).status_code == 401
    assert locked.ask("GET", content(job), key=KEYS["alice"].key).status_code == 200
    assert locked.ask("GET", content(job), key=KEYS["bob"].key).status_code == 404
    # A link is to files, and to nothing else.
    assert locked.ask("GET", f"/v1/videos/{job.id}?{query}").status_code == 401
    assert locked.ask("DELETE", f"/v1/videos/{job.id}?{query}").status_code == 401


def test_a_link_opens_at_a_gateway_that_redirects_too(shop: Shop, locked: Gateway) -> None:
    job = shop.clip(owner="alice")
    got = locked.ask("GET", f"/v1/jobs/{job.id}", key=KEYS["alice"].key).json()
    link = got["result"]["url"].removeprefix("https://clips.example/q")
    with shop.start(LTXQ_API_KEYS=KEYS["alice"].entry) as gateway:
        answer = gateway.ask("GET", link)
        assert answer.status_code == 302
        assert httpx2.get(answer.headers["location"]).content == CLIP
        assert gateway.ask("GET", link[:-1]).status_code == 403


def test_a_link_ends_with_its_clip(shop: Shop, locked: Gateway) -> None:
    job = shop.clip(owner="alice")
    alice = KEYS["alice"].key
    url = locked.ask("GET", f"/v1/jobs/{job.id}", key=alice).json()["result"]["url"]
    path = url.removeprefix("https://clips.example/q")
    assert locked.ask("DELETE", f"/v1/jobs/{job.id}", key=alice).status_code == 204
    assert locked.ask("GET", path).status_code == 404


def test_links_hold_when_redis_has_lost_their_secret(shop: Shop) -> None:
    """Each gateway reads it again within a minute, and knows the one before."""
    now, secrets = [1000.0], iter(["one", "two", "three"])

    def read() -> str:
        try:
            return next(secrets)
        except StopIteration:
            raise QueueUnavailable("Redis is away.") from None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(links.time, "monotonic", lambda: now[0])
        made = links.Links("http://x", read)
        job = shop.clip()
        query = parse_qs(urlsplit(made.urls(job.id, 86400, None)["url"]).query)
        end, signature = int(query["expires"][0]), query["signature"][0]
        now[0] += 61
        assert made.valid(job.id, "video", end, signature)
        now[0] += 61
        assert not made.valid(job.id, "video", end, signature)
        now[0] += 61
        assert made.urls(job.id, 86400, None)  # Redis is away


def test_the_python_client_gets_links_too(shop: Shop, proxy: Gateway, clip: Job) -> None:
    with Client(proxy.url) as client:
        result = client.get(clip.id).result_or_raise()
    assert result.url.startswith(f"{proxy.url}/v1/videos/{clip.id}/content?")
    assert httpx2.get(result.url, timeout=PATIENCE).content == CLIP


def test_every_way_to_a_clip_gives_links_to_the_gateway(shop: Shop, proxy: Gateway) -> None:
    """A worker's record, Celery's result, a webhook, and a client that knows no bucket."""
    receiver = Receiver()
    own = {"LTXQ_CONTENT": "proxy", "LTXQ_PUBLIC_URL": proxy.url}
    webhooks = {"LTXQ_WEBHOOK_SECRET": SECRET, "LTXQ_WEBHOOK_ALLOW": LOOPBACK}
    settings = Settings(
        url=shop.settings.url, default_model="instant", content="proxy", public_url=proxy.url
    )
    with (
        Fleet({**shop.environment, **own, **webhooks}),
        Client(settings=settings) as client,
        closing(make_app(settings)) as app,
    ):
        job = client.submit("a fox", webhook_url=receiver.url, **SMALL)
        result = app.AsyncResult(job.id).get(timeout=PATIENCE)
        (call, *_) = receiver.wait_for(1)
        seen = client.get(job.id).result_or_raise()
        recorded = shop.ledger.jobs.get(job.id).result_or_raise()
    receiver.stop()
    hook = call.event["data"]["result"]
    for url in (
        recorded.url,
        seen.url,
        *(given[name] for given in (result, hook) for name in ("url", "poster_url")),
    ):
        assert url.startswith(f"{proxy.url}/v1/videos/{job.id}/content?")
        answer = httpx2.get(url, headers={"range": "bytes=0-3"})
        assert (answer.status_code, len(answer.content)) == (206, 4)


# --- redirects -----------------------------------------------------------------------------------


def test_head_is_redirected_to_a_url_that_answers_it(shop: Shop, clip: Job) -> None:
    with shop.start() as gateway:
        for method in ("GET", "HEAD"):
            answer = gateway.ask(method, content(clip))
            assert answer.status_code == 302
            where = answer.headers["location"]
            assert where.startswith(shop.settings.s3_endpoint or "")
            followed = httpx2.request(method, where, timeout=PATIENCE)
            assert followed.status_code == 200
            assert followed.headers["content-length"] == str(len(CLIP))
        assert (
            "response-content-disposition" in gateway.ask("GET", content(clip)).headers["location"]
        )


# --- slow, many, and gone ------------------------------------------------------------------------


@pytest.fixture
def hosed(moto: S3, redis_url: str, tmp_path: Path) -> Iterator[tuple[Shop, StrictS3]]:
    """A shop whose storage is a front."""
    with StrictS3(moto.endpoint) as front:
        environment = {**moto.worker_environment, "LTXQ_S3_ENDPOINT": front.endpoint}
        made = Shop(redis_url, environment, tmp_path)
        with closing(made.ledger):
            yield made, front


@contextmanager
def reading(gateway: Gateway, path: str, *, key: str = "") -> Iterator[socket.socket]:
    """A client that has sent its request and reads nothing yet."""
    parts = urlsplit(gateway.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        head = f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        login = f"Authorization: Bearer {key}\r\n" if key else ""
        client.sendall(f"{head}{login}\r\n".encode())
        yield client


def come_to_rest(hose: Hose) -> int:
    """The bytes that were sent when no more are taken."""
    before = -1
    while hose.sent != before or not hose.open:
        before = hose.sent
        time.sleep(0.5)
    return before


def test_a_slow_client_costs_no_memory_and_one_that_goes_ends_the_reading(
    hosed: tuple[Shop, StrictS3],
) -> None:
    shop, front = hosed
    size = 400 * MEGABYTE
    job = shop.clip(size=size)
    with shop.start(LTXQ_CONTENT="proxy") as gateway:
        front.hose = hose = Hose(size)
        process = psutil.Process(gateway.process.pid)
        with reading(gateway, content(job)):  # the first takes what all have in common
            eventually(lambda: hose.open == 1)
            come_to_rest(hose)
        assert hose.refused.wait(PATIENCE)
        eventually(lambda: hose.open == 0)
        hose.refused.clear()
        before = process.memory_info().rss
        with ExitStack() as clients:
            for _ in range(16):
                clients.enter_context(reading(gateway, content(job)))
            eventually(lambda: hose.open == 16)
            assert come_to_rest(hose) < 16 * 24 * MEGABYTE  # in the kernel's buffers
            assert process.memory_info().rss - before < 16 * MEGABYTE
            assert not [f for f in process.open_files() if "tmp" in f.path]
        assert hose.refused.wait(PATIENCE)
        eventually(lambda: hose.open == 0)


def test_a_key_has_a_bounded_number_of_downloads(hosed: tuple[Shop, StrictS3]) -> None:
    shop, front = hosed
    size = 400 * MEGABYTE
    job = shop.clip(size=size, owner="alice")
    entries = ",".join(key.entry for key in KEYS.values())
    settings = {"LTXQ_API_KEYS": entries, "LTXQ_MAX_STREAMS_PER_KEY": "2"}
    with shop.start(LTXQ_CONTENT="proxy", **settings) as gateway:
        front.hose = hose = Hose(size)
        alice = KEYS["alice"].key
        url = gateway.ask("GET", f"/v1/jobs/{job.id}", key=alice).json()["result"]["url"]
        link = url.removeprefix(gateway.url)
        with reading(gateway, content(job), key=alice):
            with reading(gateway, link):  # by a link it is the owner's all the same
                eventually(lambda: hose.open == 2)
                for answer in (
                    gateway.ask("GET", content(job), key=alice),
                    gateway.ask("GET", link),
                ):
                    assert (answer.status_code, code(answer)) == (429, "too_many_streams")
                    assert "downloads" in answer.json()["error"]["message"]
            eventually(lambda: hose.open == 1)
            with reading(gateway, link):
                eventually(lambda: hose.open == 2)


def test_a_file_that_breaks_off_is_not_taken_for_a_whole_one(
    hosed: tuple[Shop, StrictS3],
) -> None:
    shop, front = hosed
    job = shop.clip(size=3 * MEGABYTE)
    with shop.start(LTXQ_CONTENT="proxy") as gateway:
        front.hose = Hose(3 * MEGABYTE, cut=MEGABYTE)
        with pytest.raises(httpx2.HTTPError):
            gateway.ask("GET", content(job))
        eventually(lambda: f"A file of {job.id} was cut off" in gateway.log)
        assert "Traceback" not in gateway.log
        front.hose = None
        front.rules.append(refuses("GetObject", status=503, code="SlowDown"))
        answer = gateway.ask("GET", content(job))
        assert (answer.status_code, code(answer)) == (503, "storage_unavailable")
        front.rules[:] = [refuses("GetObject")]
        answer = gateway.ask("GET", content(job))
        assert (answer.status_code, code(answer)) == (500, "storage_unavailable")
        eventually(lambda: "Allow s3:GetObject on" in gateway.log)
        front.rules.clear()


def test_what_is_no_object_is_not_sent_for_one(hosed: tuple[Shop, StrictS3]) -> None:
    """A proxy before the storage answers with a login page, or compresses without being asked."""
    shop, front = hosed
    job = shop.clip()
    page = "<!doctype html><p>Log in</p>"
    with shop.start(LTXQ_CONTENT="proxy") as gateway:
        front.rules.append(lambda asked: (200, page) if asked.operation == "GetObject" else None)
        answer = gateway.ask("GET", f"{content(job)}?variant=thumbnail")
        assert (answer.status_code, code(answer)) == (503, "storage_unavailable")
        front.rules.clear()
        front.hose = Hose(len(PICTURE), coding="gzip")
        answer = gateway.ask("GET", f"{content(job)}?variant=thumbnail")
        assert (answer.status_code, code(answer)) == (503, "storage_unavailable")
        assert "sent something else than the object" in gateway.log


def test_a_store_that_knows_no_ranges_is_read_from_the_right_byte(
    hosed: tuple[Shop, StrictS3],
) -> None:
    shop, front = hosed
    job = shop.clip()

    def rule(asked):  # type: ignore[no-untyped-def]
        for name in [name for name in asked.headers if name.lower() == "range"]:
            del asked.headers[name]

    front.rules.append(rule)
    with shop.start(LTXQ_CONTENT="proxy") as gateway:
        answer = gateway.ask("GET", content(job), headers={"range": "bytes=1000-1999"})
    assert (answer.status_code, answer.content) == (206, CLIP[1000:2000])
    assert answer.headers["content-range"] == f"bytes 1000-1999/{len(CLIP)}"


def test_a_connection_that_the_storage_has_closed_is_opened_anew(shop: Shop, clip: Job) -> None:
    port = urlsplit(shop.settings.s3_endpoint or "").port
    assert port is not None
    with Proxy(port) as between:
        endpoint = f"http://127.0.0.1:{between.port}"
        with shop.start(LTXQ_CONTENT="proxy", LTXQ_S3_ENDPOINT=endpoint) as gateway:
            between.lose_the_answer_to(f"{clip.id}/".encode())
            answer = gateway.ask("GET", content(clip))
            assert (answer.status_code, answer.content) == (200, CLIP)
            assert between.lost == 1


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ({"LTXQ_S3_BUCKET": ""}, (), "LTXQ_S3_BUCKET is not set"),
        ({"LTXQ_API_KEYS": KEYS["bob"].entry}, ("--host", ANY), "Set LTXQ_PUBLIC_URL"),
        ({"LTXQ_PUBLIC_URL": "clips.example"}, (), "LTXQ_PUBLIC_URL: must be https://"),
        ({"LTXQ_PUBLIC_URL": "https://clips.example:65536"}, (), "LTXQ_PUBLIC_URL: must be"),
        ({"LTXQ_PUBLIC_URL": "https://clips.example:0"}, (), "LTXQ_PUBLIC_URL: must be https://"),
        ({"LTXQ_CONTENT": "both"}, (), "LTXQ_CONTENT: must be redirect or proxy"),
    ],
)
def test_a_gateway_that_cannot_send_files_does_not_start(
    settings: dict[str, str], options: tuple[str, ...], said: str, shop: Shop
) -> None:
    environment = {**shop.environment, "LTXQ_CONTENT": "proxy", **settings}
    with pytest.raises(AssertionError, match=said), Gateway(environment, *options):
        pass
