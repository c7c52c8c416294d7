"""The unchanged `openai` SDK against a real gateway, Redis, S3 server and worker."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import redis

from fleet import Fleet, fetch, worker_environment
from gateways import Gateway
from ltxq_worker.embedded.servers import RedisServer, S3Server
from proxy import Proxy

pytestmark = pytest.mark.filterwarnings("ignore:.*Sora API.*:DeprecationWarning")

SMALL = {"size": "64x64", "seconds": "0.4"}


@pytest.fixture(scope="module")
def gateway(
    redis_server: RedisServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A gateway and an instant worker for this module's tests."""
    url = f"redis://127.0.0.1:{redis_server.port}/15"
    with redis.Redis.from_url(url, socket_timeout=5) as connection:
        connection.flushdb()
    environment = worker_environment(url, s3_server, tmp_path_factory.mktemp("spool"))
    with Fleet(environment) as fleet, Gateway(environment) as running:
        fleet.wait_until_ready()
        yield running


@pytest.fixture
def sdk(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.api, api_key="unused", timeout=60) as client:
        yield client


def test_a_clip_is_created_polled_and_downloaded_in_each_variant(sdk: openai.OpenAI) -> None:
    video = sdk.videos.create_and_poll(prompt="a fox", **SMALL)
    assert (video.status, video.progress, video.size) == ("completed", 100, "64x64")
    clip = sdk.videos.download_content(video.id).content
    assert clip[4:8] == b"ftyp"
    assert hashlib.sha256(clip).hexdigest() == video.sha256
    for variant in ("thumbnail", "spritesheet"):
        picture = sdk.videos.download_content(video.id, variant=variant).content
        assert picture[:3] == b"\xff\xd8\xff"
    assert fetch(video.url) == clip


@pytest.mark.parametrize("size", ["720x1280", "1280x720", "1024x1792", "1792x1024"])
def test_openais_sizes_are_exact_to_the_pixel(
    sdk: openai.OpenAI, size: str, tmp_path: Path
) -> None:
    video = sdk.videos.create_and_poll(prompt="a fox", size=size, seconds="0.1")
    assert (video.status, video.size) == ("completed", size)
    import av

    (tmp_path / "clip.mp4").write_bytes(sdk.videos.download_content(video.id).content)
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        stream = clip.streams.video[0]
        assert f"{stream.width}x{stream.height}" == size


def test_the_sdk_pages_through_a_list(sdk: openai.OpenAI) -> None:
    created = [sdk.videos.create(prompt=f"fox {i}", **SMALL).id for i in range(5)]
    listed = [video.id for video in sdk.videos.list(limit=2)]
    assert listed[:5] == created[::-1]
    assert [video.id for video in sdk.videos.list(limit=2, order="asc")] == listed[::-1]


def test_a_remix_is_the_same_clip_of_another_prompt(sdk: openai.OpenAI) -> None:
    source = sdk.videos.create(prompt="a fox", extra_body={"seed": 7}, **SMALL)
    remix = sdk.videos.remix(source.id, prompt="a bear")
    assert (remix.prompt, remix.size, remix.seconds, remix.seed) == (
        "a bear", source.size, source.seconds, 7,
    )  # fmt: skip
    assert remix.remixed_from_video_id == source.id
    assert sdk.videos.poll(remix.id).status == "completed"


def test_a_deleted_clip_is_gone(sdk: openai.OpenAI) -> None:
    video = sdk.videos.create_and_poll(prompt="a fox", **SMALL)
    gone = sdk.videos.delete(video.id)
    assert (gone.id, gone.deleted, gone.object) == (video.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.videos.retrieve(video.id)
    assert caught.value.code == "job_not_found"


def test_a_retry_of_the_sdk_makes_no_second_clip(gateway: Gateway, sdk: openai.OpenAI) -> None:
    prompt = "a fox whose answer is lost"
    with Proxy(int(gateway.url.rpartition(":")[2])) as proxy:
        base_url = f"http://127.0.0.1:{proxy.port}/v1"
        with openai.OpenAI(base_url=base_url, api_key="unused", timeout=60) as client:
            proxy.lose_the_answer_to(b'name="prompt"')
            video = client.videos.create(prompt=prompt, **SMALL)
            assert proxy.lost == 1
    made = [listed.id for listed in sdk.videos.list() if listed.prompt == prompt]
    assert made == [video.id]


def test_an_error_is_the_sdks_own_exception_with_its_code(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.videos.create(prompt="a fox", extra_body={"negative_prompt": "blurry"})
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "negative_prompt")
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.videos.create(prompt="a fox", model="sora-2")
    assert unknown.value.code == "unknown_model"
    with pytest.raises(openai.BadRequestError) as reference:
        sdk.videos.create(prompt="a fox", input_reference=("fox.png", b"\x89PNG" * 100_000))
    assert reference.value.param == "input_reference"


def test_the_sdks_extra_fields_arrive_as_they_are(sdk: openai.OpenAI) -> None:
    extra = {"fps": 25, "num_frames": 9, "seed": 7, "generate_audio": False,
             "metadata": {"order": "7"}, "priority": "low"}  # fmt: skip
    video = sdk.videos.create(prompt="a fox", size="64x64", extra_body=extra)
    told = {name: getattr(video, name) for name in extra if name != "generate_audio"}
    assert told == {name: value for name, value in extra.items() if name != "generate_audio"}
    assert sdk.videos.poll(video.id).status == "completed"
