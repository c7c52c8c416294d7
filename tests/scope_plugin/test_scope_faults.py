"""Queue, storage and clips that fail: playback goes on, nothing is made twice, nothing leaks."""

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
from ltxq.scope_plugin import download as downloads
from ltxq.scope_plugin import fetcher
from ltxq.scope_plugin.clip import DownloadedClip
from ltxq.scope_plugin.fetcher import Fetcher
from ltxq.scope_plugin.kept import KEPT_CLIPS, KeptClips
from ltxq.scope_plugin.pipeline import Ltx2QueuePipeline
from ltxq.scope_plugin.playback_request import PlaybackRequest
from ltxq.scope_plugin.playlist import IDLE_SECONDS, Playlist
from ltxq.testing import MemoryTransport
from scope_world import FOX, OWL, Fault, Session, World, eventually, plugin_threads

Load = Callable[..., Any]


def plays(pipeline: Any, prompts: Any = FOX) -> bool:
    """Whether a call, as Scope's, has given a picture."""
    return bool(pipeline(prompts=prompts, init_cache=True))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(fetcher, "LAST_PAUSE", 0.2)
    monkeypatch.setattr(fetcher, "MISSING_SECONDS", 0.05)


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(cut=100)])
def test_a_clip_that_does_not_arrive_is_fetched_again(
    world: World, load: Load, fault: Fault
) -> None:
    pipeline = load(world)
    world.clips.fault = fault
    eventually(lambda: plays(pipeline) or len(world.clips.asked) >= 2)
    assert "127.0.0.1" in pipeline.last_error
    world.clips.fault = Fault()
    eventually(lambda: plays(pipeline))
    assert len(world.jobs()) == 1
    assert pipeline.last_error is None


def test_a_clip_that_is_not_the_one_of_the_ledger_is_not_played(
    slow_world: World, load: Load
) -> None:
    pipeline = load(slow_world)
    eventually(lambda: plays(pipeline) or slow_world.jobs())
    job = slow_world.job(0)
    slow_world.finish(job)
    path = f"/{job.id}/1/clip.mp4"
    good = slow_world.clips.clips[path]
    slow_world.clips.clips[path] = bytes(reversed(good))
    eventually(lambda: plays(pipeline) or len(slow_world.clips.asked) >= 2)
    assert not plays(pipeline)
    slow_world.clips.clips[path] = good
    eventually(lambda: plays(pipeline))


def test_a_clip_that_never_arrives_is_made_again(world: World, load: Load) -> None:
    pipeline = load(world)
    world.clips.fault = Fault(status=404)
    eventually(lambda: plays(pipeline) or len(world.jobs()) == 2)
    world.clips.fault = Fault()
    eventually(lambda: plays(pipeline))


def test_a_clip_that_is_too_large_is_not_downloaded(
    world: World, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "MOST_BYTES", 1000)
    pipeline = load(world)
    eventually(lambda: plays(pipeline) or pipeline.last_error)
    assert "more than 1,000" in pipeline.last_error
    time.sleep(0.3)
    assert world.clips.asked == []
    assert len(world.jobs()) == 1


def test_more_bytes_than_the_ledger_says_end_the_download() -> None:
    """A server that never stops fills neither the memory nor the time."""
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
        pytest.raises(StorageUnavailable, match="in place of the clip's 100,000"),
    ):
        downloads.download(http, client.get(job.id).result_or_raise(), lambda: True)
    assert len(sent) < 5


def test_a_download_that_crawls_is_given_up(
    world: World, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "READ_SECONDS", 0.2)
    world.clips.fault = Fault(hangs=True)
    pipeline = load(world)
    eventually(lambda: plays(pipeline) or pipeline.last_error)
    assert "ReadTimeout" in pipeline.last_error
    world.clips.fault = Fault()
    eventually(lambda: plays(pipeline))


def test_no_log_has_a_presigned_query(slow_world: World, load: Load, caplog: Any) -> None:
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
    assert slow_world.clips.asked[-1] == path
    assert "HTTP Request" in caplog.text
    assert "abcdef" not in caplog.text


@pytest.mark.parametrize("code", ["out_of_memory", "invalid_request", "timed_out"])
def test_what_fails_for_good_is_not_made_again_until_something_else_is_wanted(
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
def test_what_may_succeed_later_is_made_again(
    slow_world: World, load: Load, code: ErrorCode
) -> None:
    pipeline = load(slow_world)
    eventually(lambda: plays(pipeline) or slow_world.jobs())
    slow_world.queue.fail(slow_world.job(0).id, JobError(code=code, message="Gone."))
    eventually(lambda: plays(pipeline) or len(slow_world.jobs()) == 2)
    slow_world.finish(slow_world.job(1))
    eventually(lambda: plays(pipeline))


def test_a_job_that_vanished_is_asked_for_again(slow_world: World, load: Load) -> None:
    pipeline = load(slow_world)
    eventually(lambda: plays(pipeline) or slow_world.jobs())
    first = slow_world.job(0)
    slow_world.queue.cancel(first.id)
    slow_world.queue.delete(first.id)
    eventually(lambda: plays(pipeline) or slow_world.jobs())
    slow_world.finish(slow_world.job(0))
    eventually(lambda: plays(pipeline))


def test_a_submission_whose_answer_is_lost_makes_one_job(
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


def test_what_could_not_be_cancelled_while_the_queue_was_away_is_cancelled_later(
    slow_world: World, load: Load
) -> None:
    pipeline = load(slow_world)
    eventually(lambda: plays(pipeline) or slow_world.jobs())
    old = slow_world.job(0)
    slow_world.away.set()
    eventually(lambda: plays(pipeline, OWL) or pipeline.last_error)
    slow_world.away.clear()
    eventually(lambda: plays(pipeline, OWL) or len(slow_world.jobs()) == 2)
    assert slow_world.queue.get(old.id).state == "cancelled"


def test_a_full_queue_is_tried_again(
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


def test_a_clip_that_cannot_be_decoded_is_told_of_and_the_next_one_plays(
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


def test_a_queue_that_gets_its_address_later_is_found(
    world: World, load: Load, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(fetcher, "connect", lambda: None)
    pipeline = Ltx2QueuePipeline(width=64, height=64, num_frames=9)
    pipeline_fetcher_waits = "LTXQ_URL is not set"
    eventually(lambda: pipeline_fetcher_waits in caplog.text)
    del pipeline

    asked: list[int] = []

    def connect() -> Any:
        asked.append(1)
        return world.client() if len(asked) > 3 else None

    playlist = Playlist()
    thread = threading.Thread(target=Fetcher(playlist, connect).run, name="ltxq-fetcher")
    thread.start()
    playlist.want(
        PlaybackRequest(VideoRequest(prompt="a fox", width=64, height=64, num_frames=9), 1)
    )
    eventually(lambda: world.clips.asked)
    playlist.close()
    thread.join(10)
    assert len(asked) == 4
    assert caplog.text.count("LTXQ_URL is not set") == 2  # once by each


def test_changed_settings_are_taken_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong key is corrected while the pipeline is loaded."""
    made: list[Any] = []

    def connect() -> Any:
        made.append(world.client())
        return made[-1]

    playlist = Playlist()
    thread = threading.Thread(target=Fetcher(playlist, connect).run, name="ltxq-fetcher")
    thread.start()
    playlist.want(
        PlaybackRequest(VideoRequest(prompt="a fox", width=64, height=64, num_frames=9), 1)
    )
    eventually(lambda: world.clips.asked)
    monkeypatch.setenv("LTXQ_API_KEY", "sk-another")
    playlist.want(
        PlaybackRequest(VideoRequest(prompt="an owl", width=64, height=64, num_frames=9), 1)
    )
    eventually(lambda: len(world.clips.asked) == 2)
    playlist.close()
    thread.join(10)
    assert len(made) == 2


def test_nobody_asks_the_queue_while_scope_does_not_call() -> None:
    """A stream that stopped tells nothing; after a minute without calls the fetcher waits."""
    now = [0.0]
    playlist = Playlist(clock=lambda: now[0])
    wish = PlaybackRequest(VideoRequest(prompt="a fox"), 1)
    playlist.want(wish)
    now[0] += IDLE_SECONDS + 1
    waited = threading.Event()

    def wait() -> None:
        playlist.wait_while_idle()
        waited.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not waited.wait(0.3)
    playlist.want(wish)
    assert waited.wait(10)
    thread.join()
    playlist.close()


def test_kept_clips_are_bounded() -> None:
    kept = KeptClips()
    playlist = Playlist(kept)
    for seed in range(3 * KEPT_CLIPS):
        playlist.add(VideoRequest(prompt="a fox", seed=seed), DownloadedClip(b"x"))
    assert len(kept) == KEPT_CLIPS
    playlist.add(VideoRequest(prompt="a fox", seed=99), DownloadedClip(bytes(300 * 1024**2)))
    assert len(kept) == 1


def test_a_session_holds_its_clip_though_other_sessions_clips_take_its_place() -> None:
    """Else each one would have its clip made again and again."""
    kept, request = KeptClips(), VideoRequest(prompt="a fox")
    playlist, other = Playlist(kept), Playlist(kept)
    playlist.want(PlaybackRequest(request, 1))
    playlist.add(request, DownloadedClip(b"x"))
    other.add(VideoRequest(prompt="an owl"), DownloadedClip(bytes(300 * 1024**2)))
    assert request not in kept
    assert playlist.to_order([]) == (request, 0, 0.0)
    showing = playlist.next_showing()
    assert showing is not None
    assert showing.clip == DownloadedClip(b"x")


def test_unloading_in_the_midst_of_a_download_ends_it(world: World, load: Load) -> None:
    world.clips.fault = Fault(hangs=True)
    pipeline = load(world)
    while not world.clips.asked:
        assert not plays(pipeline)
    gone = weakref.ref(pipeline)
    del pipeline
    gc.collect()
    assert gone() is None
    world.clips.released.set()
    eventually(lambda: not plugin_threads(), within=30)


def test_unloading_in_the_midst_of_playback_frees_everything(world: World, load: Load) -> None:
    pipeline = load(world)
    gone = weakref.ref(pipeline)
    with Session(pipeline) as session:
        del pipeline
        session.viewer.wait_until(lambda v: len(v.shown) > 20)
    eventually(lambda: gone() is None, within=30)
    eventually(lambda: not plugin_threads(), within=30)
