"""Storage on two real S3 servers: rclone's over a folder, and moto's."""

from __future__ import annotations

import secrets
import socket
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from ltxq.errors import (
    ConfigurationError,
    InvalidRequest,
    StorageRefused,
    StorageUnavailable,
)
from ltxq.settings import Settings
from ltxq.storage import Storage, deletion, signing
from ltxq.storage import client as boto
from ltxq.storage import s3 as storage
from servers import S3, exists

pytest.importorskip("boto3")


@pytest.fixture
def own_s3(s3: S3) -> S3:
    """rclone's server with a bucket for this test alone."""
    import boto3

    bucket = f"test-{secrets.token_hex(8)}"
    with closing(boto3.Session().client("s3", endpoint_url=s3.endpoint)) as client:
        client.create_bucket(Bucket=bucket)
    return replace(s3, bucket=bucket)


@pytest.fixture(params=["own_s3", "moto"])
def server(request: pytest.FixtureRequest) -> S3:
    return request.getfixturevalue(request.param)


@pytest.fixture
def bucket(server: S3) -> Iterator[Storage]:
    bucket = Storage.from_settings(server.settings())
    yield bucket
    bucket.delete(bucket.list(""))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(range(256)) * 4)
    return path


def fetch(url: str, **headers: str) -> Any:
    """What a viewer's browser does."""
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)  # noqa: S310


def test_what_is_put_is_fetched_by_its_url(bucket: Storage, clip: Path) -> None:
    key = bucket.clip_keys(f"video_1/{2:016x}").clip
    assert not exists(bucket, key)
    bucket.put(key, clip, "video/mp4")
    assert exists(bucket, key)
    url, expires_at = bucket.url(key, 60)
    with fetch(url) as answer:
        assert answer.read() == clip.read_bytes()
        assert answer.headers["Content-Type"] == "video/mp4"
    assert expires_at is not None
    left = expires_at - datetime.now(UTC)
    assert timedelta(seconds=55) < left <= timedelta(seconds=60)


def test_a_player_can_seek(bucket: Storage, clip: Path) -> None:
    bucket.put("a/clip.mp4", clip, "video/mp4")
    url, _ = bucket.url("a/clip.mp4", 60)
    with fetch(url, Range="bytes=16-31") as answer:
        # rclone's status is 200, which players take too: they go by this header.
        assert answer.headers["Content-Range"] == "bytes 16-31/1024"
        assert answer.read() == clip.read_bytes()[16:32]


def test_a_url_ends_when_it_says(s3: S3, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Storage.from_settings(s3.settings())
    bucket.put("a/clip.mp4", clip, "video/mp4")
    import botocore.auth

    # Signed as it would have been a minute and a half ago: no test waits a minute.
    earlier = datetime.now(UTC) - timedelta(seconds=90)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda **_: earlier)
    live, _ = bucket.url("a/clip.mp4", 120)
    ended, _ = bucket.url("a/clip.mp4", 60)
    monkeypatch.undo()
    with fetch(live) as answer:
        assert answer.status == 200
    with pytest.raises(HTTPError) as caught:
        fetch(ended)
    caught.value.close()
    assert caught.value.code in (400, 403)  # rclone says 400


def test_a_url_longer_than_signatures_live_is_refused(bucket: Storage) -> None:
    with pytest.raises(InvalidRequest, match="7 days"):
        bucket.url("a", 7 * 24 * 3600 + 1)


def test_urls_are_signed_for_the_host_viewers_use(server: S3, clip: Path) -> None:
    port = server.endpoint.rpartition(":")[2]
    public = f"http://localhost:{port}"
    bucket = Storage.from_settings(server.settings(s3_public_endpoint=public))
    bucket.put("a/clip.mp4", clip, "video/mp4")
    url, _ = bucket.url("a/clip.mp4", 60)
    assert url.startswith(public)
    with fetch(url) as answer:
        assert answer.read() == clip.read_bytes()


def test_a_clip_has_urls_for_all_its_files(server: S3, clip: Path) -> None:
    bucket = Storage.from_settings(server.settings())
    keys = bucket.clip_keys(f"video_1/{3:016x}")
    for key in keys:
        clip.write_text(key)
        bucket.put(key, clip, "text/plain")
    urls = bucket.clip_urls(keys.clip, 60)
    assert urls.pop("expires_at") is not None
    names = ("url", "poster_url", "spritesheet_url", "sidecar_url")
    for name, key in zip(names, keys, strict=True):
        with fetch(urls.pop(name)) as answer:
            assert answer.read().decode() == key
    assert not urls


def test_a_clips_urls_are_signed_anew_before_much_of_their_life_is_over(
    moto: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Storage.from_settings(moto.settings())
    keys, other = bucket.clip_keys(f"video_1/{1:016x}"), bucket.clip_keys(f"video_1/{2:016x}")
    now = [1000.0]
    monkeypatch.setattr(signing.time, "monotonic", lambda: now[0])

    def url(clip: str, expires_in: int) -> str:
        # Another key each time, so that a signature of this moment is seen to be one.
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secrets.token_hex(8))
        bucket.signer._calls = Storage.from_settings(moto.settings())._calls
        return str(bucket.clip_urls(clip, expires_in)["url"])

    first, long = url(keys.clip, 60), url(keys.clip, 86400)
    assert first != long
    assert url(other.clip, 60).partition("?")[0] != first.partition("?")[0]
    now[0] += 5.9
    assert url(keys.clip, 60) == first
    now[0] += 0.2
    assert url(keys.clip, 60) != first  # a tenth of its minute is over
    assert url(keys.clip, 86400) == long
    now[0] += 54
    assert url(keys.clip, 86400) != long


def test_the_urls_kept_are_bounded(moto: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "SIGNED_MOST", 3)
    bucket = Storage.from_settings(moto.settings())
    for claim in range(1, 6):
        bucket.clip_urls(bucket.clip_keys(f"video_1/{claim:016x}").clip, 60)
    assert len(bucket.signer._signed) == 3


def test_a_public_bucket_has_plain_urls_that_end_with_the_clip(moto: S3) -> None:
    bucket = Storage.from_settings(moto.settings(s3_public_base_url="https://cdn.example/v/"))
    assert bucket.url("a b/ü.mp4", 60) == ("https://cdn.example/v/a%20b/%C3%BC.mp4", None)
    until = datetime.now(UTC) + timedelta(days=7)
    clip = bucket.clip_keys(f"video_1/{1:016x}").clip
    assert bucket.clip_urls(clip, 60, until=until)["expires_at"] == until


def test_any_unicode_key_comes_back(bucket: Storage, clip: Path) -> None:
    key = "ltxq/видео/ü 影 +&?#%.mp4"
    bucket.put(key, clip, "video/mp4")
    assert list(bucket.list("видео/")) == [key]
    with fetch(bucket.url(key, 60)[0]) as answer:
        assert answer.read() == clip.read_bytes()
    bucket.delete([key])
    assert not exists(bucket, key)


def test_a_large_file_goes_up_in_parts(bucket: Storage, tmp_path: Path) -> None:
    path = tmp_path / "large.mp4"
    path.write_bytes(bytes(range(256)) * (2 * storage.PART // 256) + b"the end")
    bucket.put("large.mp4", path, "video/mp4")
    with fetch(bucket.url("large.mp4", 60)[0]) as answer:
        assert answer.read() == path.read_bytes()
        assert answer.headers["Content-Type"] == "video/mp4"


def test_lists_and_deletes_go_on_past_one_page(
    bucket: Storage, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (storage, deletion):
        monkeypatch.setattr(module, "PAGE", 2)
    keys = [f"ltxq/pages/{job}/{claim}/clip.mp4" for job in "ab" for claim in (1, 2, 3)]
    for key in keys:
        bucket.put(key, clip, "video/mp4")
    assert list(bucket.list("pages/a/")) == keys[:3]
    assert list(bucket.list("pages/")) == keys
    bucket.delete([*keys[:5], "ltxq/never/was"])
    assert list(bucket.list("pages/")) == keys[5:]


def test_check_leaves_nothing_behind_and_can_be_repeated(bucket: Storage) -> None:
    bucket.check()
    bucket.check()
    assert list(bucket.list("")) == []


def test_wrong_keys_are_refused_and_never_shown(
    s3: S3, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    bucket = Storage.from_settings(s3.settings())
    for attempt in (bucket.check, lambda: bucket.put("a", clip, "video/mp4")):
        with pytest.raises(StorageRefused, match="AWS_SECRET_ACCESS_KEY") as caught:
            attempt()
        assert "not-the-secret" not in str(caught.value)


def test_no_keys_are_refused(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StorageRefused, match="AWS_ACCESS_KEY_ID"):
        Storage.from_settings(s3.settings()).check()


def test_a_missing_bucket_is_refused_by_name(server: S3, clip: Path) -> None:
    bucket = Storage.from_settings(Settings(s3_endpoint=server.endpoint, s3_bucket="nowhere"))
    for attempt in (bucket.check, lambda: bucket.put("a", clip, "video/mp4")):
        with pytest.raises(StorageRefused, match=r"'nowhere'.*LTXQ_S3_BUCKET"):
            attempt()


def test_a_bucket_must_be_named() -> None:
    with pytest.raises(ConfigurationError, match="LTXQ_S3_BUCKET"):
        Storage.from_settings(Settings())


@pytest.mark.parametrize("field", ["s3_endpoint", "s3_public_endpoint"])
def test_an_endpoint_must_be_a_url(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"LTXQ_{field.upper()}", "localhost:9000")
    with pytest.raises(ConfigurationError, match=f"LTXQ_{field.upper()}: must be a URL"):
        Settings.read()


def test_a_server_away_is_unavailable(moto: S3, clip: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        bucket = Storage.from_settings(Settings(s3_endpoint=endpoint, s3_bucket="clips"))
        with pytest.raises(StorageUnavailable, match="cannot be reached"):
            bucket.put("a", clip, "video/mp4")


def test_a_silent_server_is_unavailable(moto: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boto, "READ_TIMEOUT", 0.2)
    monkeypatch.setattr(boto, "ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        bucket = Storage.from_settings(Settings(s3_endpoint=endpoint, s3_bucket="clips"))
        with pytest.raises(StorageUnavailable, match="ReadTimeout"):
            bucket.mark("a")


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [((503, 503, 200), None), ((500,), StorageUnavailable), ((507,), StorageUnavailable)],
    ids=["busy-twice", "broken", "disk-full"],
)
def test_a_server_in_trouble_is_tried_again(
    answers: tuple[int, ...], outcome: type[Exception] | None, moto: S3, clip: Path
) -> None:
    with _answering(answers) as (endpoint, asked):
        bucket = Storage.from_settings(Settings(s3_endpoint=endpoint, s3_bucket="clips"))
        if outcome is None:
            bucket.put("a", clip, "video/mp4")
            assert asked == [clip.stat().st_size] * 3  # the whole body each time
        else:
            with pytest.raises(outcome):
                bucket.put("a", clip, "video/mp4")


class _answering:
    """A server that gives these HTTP statuses, the last one for ever, and notes body sizes."""

    def __init__(self, statuses: tuple[int, ...]) -> None:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        left, asked = list(statuses), []

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                asked.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(left.pop(0) if len(left) > 1 else left[0])
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._asked = asked
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> tuple[str, list[int]]:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}", self._asked

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


def test_many_workers_may_check_at_once(own_s3: S3) -> None:
    storage = Storage.from_settings(own_s3.settings())
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: storage.check(), range(64)):
            pass
    assert list(storage.list()) == []
