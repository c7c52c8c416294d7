"""Failures of queue, storage and clips: playback goes on, no job runs twice, nothing leaks."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from ltxq import Client, VideoRequest
from ltxq.errors import ErrorCode, JobError, QueueFull, QueueUnavailable, StorageUnavailable
from ltxq.scope_plugin import connection, fetcher
from ltxq.scope_plugin import download as downloads
from ltxq.scope_plugin.clip import DownloadedClip
from ltxq.scope_plugin.clip_cache import MAX_CLIPS, ClipCache
from ltxq.scope_plugin.fetcher import Fetcher
from ltxq.scope_plugin.pipeline import Ltx2QueuePipeline
from ltxq.scope_plugin.playback_request import PlaybackRequest
from ltxq.scope_plugin.playlist import IDLE_SECONDS, Playlist
from ltxq.testing import MemoryTransport
from scope_world import FOX, OWL, Fault, Session, World, eventually, plugin_threads

Load = Callable[..., Any]


def plays(pipeline: Any, prompts: Any = FOX) -> bool:
    """Call the pipeline as Scope does; returns whether it output a picture."""
    return bool(pipeline(prompts=prompts, init_cache=True))


def test_a_clip_on_this_machine_is_fetched_without_a_proxy(
    world: World, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    pipeline = load(world)
    eventually(lambda: plays(pipeline))


@pytest.fixture(autouse=True)
def _short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "FIRST_RETRY", 0.05)
    monkeypatch.setattr(fetcher, "LAST_RETRY", 0.2)
    monkeypatch.setattr(fetcher, "NO_URL_SECONDS", 0.05)


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(cut=100)])
def test_a_failed_download_is_repeated(world: World, load: Load, fault: Fault) -> None:
    pipeline = load(world)
    world.clips.fault = fault
    eventually(lambda: plays(pipeline) or len(world.clips.requested) >= 2)
    assert "127.0.0.1" in pipeline.last_error
    world.clips.fault = Fault()
    eventually(lambda: plays(pipeline))
    assert len(world.jobs()) == 1
    assert pipeline.last_error is None


def test_a_clip_with_a_wrong_checksum_is_not_played(slow_world: World, load: Load) -> None:
    pipeline = load(slow_world)
    eventually(lambda: plays(pipeline) or slow_world.jobs())
    job = slow_world.job(0)
    slow_world.finish(job)
    path = f"/{job.id}/1/clip.mp4"
    good = slow_world.clips.clips[path]
    slow_world.clips.clips[path] = bytes(reversed(good))
    eventually(lambda: plays(pipeline) or len(slow_world.clips.requested) >= 2)
    assert not plays(pipeline)
    slow_world.clips.clips[path] = good
    eventually(lambda: plays(pipeline))


def test_a_clip_that_cannot_be_downloaded_is_generated_again(world: World, load: Load) -> None:
    pipeline = load(world)
    world.clips.fault = Fault(status=404)
    eventually(lambda: plays(pipeline) or len(world.jobs()) == 2)
    world.clips.fault = Fault()
    eventually(lambda: plays(pipeline))


def test_a_too_large_clip_is_not_downloaded(
    world: World, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "MAX_BYTES", 1000)
    pipeline = load(world)
    eventually(lambda: plays(pipeline) or pipeline.last_error)
    assert "more than 1,000" in pipeline.last_error
    time.sleep(0.3)
    assert world.clips.requested == []
    assert len(world.jobs()) == 1


def test_more_bytes_than_the_ledger_has_end_the_download() -> None:
    """An endless response must not fill the memory."""
    sent: list[int] = []

    def endless() -> Iterator[bytes]:
        while len(sent) < 1000:
            sent.append(64 * 1024)
            yield bytes(64 * 1024)

    queue = MemoryTransport()
    client = Client(transport=queue)
    job = client.submit("a fox")
    queue.succeed(job.id, size=100_000)
    answer = httpx2.MockTransport(lambda _: httpx2.Response(200, content=endless()))
    with (
        httpx2.Client(transport=answer) as http,
        pytest.raises(StorageUnavailable, match="instead of the clip's 100,000"),
    ):
        downloads.download(http, client.get(job.id).result_or_raise(), lambda: True)
    assert len(sent) < 5


def test_a_stalled_download_is_given_up(
    world: World, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "READ_SECONDS", 0.2)
    world.clips.fault = Fault(hangs=True)
    pipeline = load(world)
    eventually(lambda: plays(pipeline) or pipeline.last_error)
    assert "ReadTimeout" in pipeline.last_error
    world.clips.fault = Fault()
    eventually(lambda: plays(pipeline))


def test_no_log_line_has_a_presigned_query(slow_world: World, load: Load, caplog: Any) -> None:
    with caplog.at_level("DEBUG"):
        pipeline = load(slow_world)
        eventually(lambda: plays(pipeline) or slow_world.jobs())
        job = slow_world.job(0)
        path = f"/{job.id}/1/clip.mp4?X-Amz-Signature=abcdef"
        slow_world.finish(job)
        slow_world.clips.clips[path] = slow_world.clips.clips[path.partition("?")[0]]
        result = slow_world.queue.get(job.id).result
        assert result is not None
        signed = result.model_copy(update={"url": slow_world.clips.url + path})
        slow_world.queue._put(slow_world.queue.get(job.id), result=signed)
        eventually(lambda: plays(pipeline))
    assert slow_world.clips.requested[-1] == path
    assert "HTTP Request" in caplog.text
    assert "abcdef" not in caplog.text


@pytest.mark.parametrize("code", ["out_of_memory", "invalid_request", "timed_out"])
def test_a_permanent_failure_is_not_submitted_again_until_the_request_changes(
    slow_world: World, load: Load, code: ErrorCode, caplog: Any
) -> None:
    pipeline = load(slow_world)
    eventually(lambda: plays(pipeline) or slow_world.jobs())
    slow_world.queue.fail(slow_world.job(0).id, JobError(code=code, message="No.", hint="Less."))
    eventually(lambda: plays(pipeline) or pipeline.last_error)
    time.sleep(0.5)
    assert not plays(pipeline)
    assert len(slow_world.jobs()) == 1
    assert "No. Less." in pipeline.last_error
    assert caplog.text.count("No. Less.") == 1
    slow_world.automatic = True
    eventually(lambda: plays(pipeline, OWL))


@pytest.mark.parametrize("code", ["worker_lost", "internal", "cancelled", "storage_unavailable"])
def test_a_retryable_failure_is_submitted_again(
    slow_world: World, load: Load, code: ErrorCode
) -> None:
    pipeline = load(slow_world)
    eventually(lambda: plays(pipeline) or slow_world.jobs())
    slow_world.queue.fail(slow_world.job(0).id, JobError(code=code, message="Gone."))
    eventually(lambda: plays(pipeline) or len(slow_world.jobs()) == 2)
    slow_world.finish(slow_world.job(1))
    eventually(lambda: plays(pipeline))


def test_a_deleted_job_is_submitted_again(slow_world: World, load: Load) -> None:
    pipeline = load(slow_world)
    eventually(lambda: plays(pipeline) or slow_world.jobs())
    first = slow_world.job(0)
    slow_world.queue.cancel(first.id)
    slow_world.queue.delete(first.id)
    eventually(lambda: plays(pipeline) or slow_world.jobs())
    slow_world.finish(slow_world.job(0))
    eventually(lambda: plays(pipeline))


def test_a_submission_whose_answer_is_lost_is_one_job(
    slow_world: World, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, lost = slow_world.queue.submit, threading.Event()

    def forgetful(*words: Any, **more: Any) -> Any:
        job = submit(*words, **more)
        if not lost.is_set():
            lost.set()
            raise QueueUnavailable("The answer was lost.")
        return job

    monkeypatch.setattr(slow_world.queue, "submit", forgetful)
    pipeline = load(slow_world)
    eventually(lambda: plays(pipeline) or lost.is_set())
    slow_world.finish(slow_world.job(0))
    eventually(lambda: plays(pipeline))
    assert len(slow_world.jobs()) == 1


def test_an_outdated_job_is_cancelled_once_the_queue_is_reachable_again(
    slow_world: World, load: Load
) -> None:
    pipeline = load(slow_world)
    eventually(lambda: plays(pipeline) or slow_world.jobs())
    old = slow_world.job(0)
    slow_world.unreachable.set()
    eventually(lambda: plays(pipeline, OWL) or pipeline.last_error)
    slow_world.unreachable.clear()
    eventually(lambda: plays(pipeline, OWL) or len(slow_world.jobs()) == 2)
    assert slow_world.queue.get(old.id).state == "cancelled"


def test_a_submission_to_a_full_queue_is_repeated(
    world: World, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, full = world.queue.submit, threading.Event()

    def picky(*words: Any, **more: Any) -> Any:
        if not full.is_set():
            full.set()
            raise QueueFull("The queue is full.")
        return submit(*words, **more)

    monkeypatch.setattr(world.queue, "submit", picky)
    pipeline = load(world)
    eventually(lambda: plays(pipeline))
    assert full.is_set()


def test_an_undecodable_clip_is_reported_and_the_next_one_plays(
    slow_world: World, load: Load
) -> None:
    pipeline = load(slow_world)
    eventually(lambda: plays(pipeline) or slow_world.jobs())
    slow_world.finish(slow_world.job(0), b"no MP4 at all")
    eventually(lambda: plays(pipeline) or pipeline.last_error)
    assert "cannot be decoded" in pipeline.last_error
    slow_world.automatic = True
    eventually(lambda: plays(pipeline, OWL))
    assert len(slow_world.jobs()) == 2


def test_an_ltxq_url_that_is_set_later_is_used(
    world: World, load: Load, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(connection, "connect", lambda: None)
    pipeline = Ltx2QueuePipeline(width=64, height=64, num_frames=9)
    eventually(lambda: "LTXQ_URL is not set" in caplog.text)
    del pipeline

    calls: list[int] = []

    def connect() -> Any:
        calls.append(1)
        return world.client() if len(calls) > 3 else None

    playlist = Playlist(ClipCache())
    thread = threading.Thread(target=Fetcher(playlist, connect).run, name="ltxq-fetcher")
    thread.start()
    playlist.set_request(
        PlaybackRequest(VideoRequest(seed=42, prompt="a fox", width=64, height=64, num_frames=9), 1)
    )
    eventually(lambda: world.clips.requested)
    playlist.close()
    thread.join(10)
    assert len(calls) == 4
    assert caplog.text.count("LTXQ_URL is not set") == 2  # once by each fetcher


def test_changed_settings_are_used_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a wrong key is corrected while the pipeline is loaded."""
    clients: list[Any] = []

    def connect() -> Any:
        clients.append(world.client())
        return clients[-1]

    playlist = Playlist(ClipCache())
    thread = threading.Thread(target=Fetcher(playlist, connect).run, name="ltxq-fetcher")
    thread.start()
    playlist.set_request(
        PlaybackRequest(VideoRequest(seed=42, prompt="a fox", width=64, height=64, num_frames=9), 1)
    )
    eventually(lambda: world.clips.requested)
    monkeypatch.setenv("LTXQ_API_KEY", "sk-another")
    playlist.set_request(
        PlaybackRequest(
            VideoRequest(seed=42, prompt="an owl", width=64, height=64, num_frames=9), 1
        )
    )
    eventually(lambda: len(world.clips.requested) == 2)
    playlist.close()
    thread.join(10)
    assert len(clients) == 2


def test_the_queue_is_left_alone_while_scope_does_not_call() -> None:
    """Scope does not report a stopped stream; after a minute without calls the fetcher waits."""
    now = [0.0]
    playlist = Playlist(ClipCache(), clock=lambda: now[0])
    requested = PlaybackRequest(VideoRequest(seed=42, prompt="a fox"), 1)
    playlist.set_request(requested)
    now[0] += IDLE_SECONDS + 1
    waited = threading.Event()

    def wait() -> None:
        playlist.wait_while_idle()
        waited.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not waited.wait(0.3)
    playlist.set_request(requested)
    assert waited.wait(10)
    thread.join()
    playlist.close()


def test_the_clip_cache_is_bounded() -> None:
    cache = ClipCache()
    playlist = Playlist(cache)
    for seed in range(3 * MAX_CLIPS):
        playlist.add_clip(VideoRequest(prompt="a fox", seed=seed), DownloadedClip(b"x"))
    assert len(cache._clips) == MAX_CLIPS
    playlist.add_clip(VideoRequest(prompt="a fox", seed=99), DownloadedClip(bytes(300 * 1024**2)))
    assert len(cache._clips) == 1


def test_a_session_keeps_its_clip_when_other_sessions_evict_it_from_the_cache() -> None:
    """Otherwise each session would generate its clip again and again."""
    cache, request = ClipCache(), VideoRequest(seed=42, prompt="a fox")
    playlist, other = Playlist(cache), Playlist(cache)
    playlist.set_request(PlaybackRequest(request, 1))
    playlist.add_clip(request, DownloadedClip(b"x"))
    other.add_clip(VideoRequest(seed=42, prompt="an owl"), DownloadedClip(bytes(300 * 1024**2)))
    assert cache.get(request) is None
    assert playlist.to_submit([]) == []
    clip = playlist.next_to_decode()
    assert clip is not None
    assert clip.source == DownloadedClip(b"x")


def test_unloading_during_a_download_ends_it(world: World, load: Load) -> None:
    world.clips.fault = Fault(hangs=True)
    pipeline = load(world)
    while not world.clips.requested:
        assert not plays(pipeline)
    gone = weakref.ref(pipeline)
    del pipeline
    gc.collect()
    assert gone() is None
    world.clips.released.set()
    eventually(lambda: not plugin_threads(), within=30)


def test_unloading_during_playback_frees_everything(world: World, load: Load) -> None:
    pipeline = load(world)
    gone = weakref.ref(pipeline)
    with Session(pipeline) as session:
        del pipeline
        session.viewer.wait_until(lambda v: len(v.shown) > 20)
    eventually(lambda: gone() is None, within=30)
    eventually(lambda: not plugin_threads(), within=30)
