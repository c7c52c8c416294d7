"""A job as the video object of OpenAI's SDKs, in each state, and pages of them."""

from __future__ import annotations

import pytest
from openai.types import Video as SdkVideo
from openai.types import VideoDeleteResponse

from ltxq import Client
from ltxq.errors import JobError
from ltxq.gateway.openai.response import VideoDeleted, page_of, video_of
from ltxq.job import JobPage
from ltxq.testing import MemoryTransport

FAILED = JobError(code="out_of_memory", message="Too large.", hint="Make it smaller.")


@pytest.fixture
def queue() -> MemoryTransport:
    return MemoryTransport(default_model="instant")


@pytest.fixture
def client(queue: MemoryTransport) -> Client:
    return Client(transport=queue)


def test_a_queued_job_shows_its_queue_position(client: Client) -> None:
    client.submit("a bear")
    job = client.submit("a fox", metadata={"order": "7"}, priority="low", seed=3)
    video = video_of(client.get(job.id))
    assert (video.status, video.progress, video.queue_position) == ("queued", 0, 1)
    assert (video.model, video.size, video.seconds, video.prompt) == (
        "instant", "768x512", "1.375", "a fox",
    )  # fmt: skip
    assert (video.metadata, video.priority, video.seed) == ({"order": "7"}, "low", 3)
    assert video.created_at == int(job.submitted_at.timestamp())
    assert (video.completed_at, video.url, video.error) == (None, None, None)


def test_a_running_job_shows_its_progress_and_worker(
    client: Client, queue: MemoryTransport
) -> None:
    job = client.submit("a fox")
    queue.start(job.id, worker="gpu0")
    queue.report(job.id, "denoise", 3, 8, 0.437)
    video = video_of(client.get(job.id))
    assert (video.status, video.progress, video.stage) == ("in_progress", 43, "denoise")
    assert (video.worker, video.attempts) == ("gpu0", 1)


def test_only_a_completed_job_shows_a_hundred_percent(
    client: Client, queue: MemoryTransport
) -> None:
    job = client.submit("a fox")
    queue.start(job.id)
    queue.report(job.id, "upload", 1, 1, 1.0)
    assert video_of(client.get(job.id)).progress == 99
    queue.succeed(job.id)
    assert video_of(client.get(job.id)).progress == 100


def test_a_finished_job_shows_its_clip(client: Client, queue: MemoryTransport) -> None:
    job = client.submit("a fox", width=1280, height=736, crop_height=720, num_frames=97)
    queue.start(job.id)
    done = queue.succeed(job.id, sha256="ab" * 32, timings={"denoise": 2.5})
    video = video_of(done)
    assert done.result is not None
    assert done.finished_at is not None
    assert (video.status, video.size, video.seconds) == ("completed", "1280x720", "4.042")
    assert (video.url, video.thumbnail_url) == (done.result.url, done.result.poster_url)
    assert (video.sha256, video.timings) == ("ab" * 32, {"denoise": 2.5})
    assert video.completed_at == int(done.finished_at.timestamp())
    assert done.result.expires_at is not None
    assert video.expires_at == int(done.result.expires_at.timestamp())


def test_a_failed_job_says_why_and_what_to_do(client: Client, queue: MemoryTransport) -> None:
    job = client.submit("a fox")
    queue.fail(job.id, FAILED)
    video = video_of(client.get(job.id))
    assert (video.status, video.progress) == ("failed", 0)
    assert video.error is not None
    assert (video.error.code, video.error.message) == (
        "out_of_memory", "Too large. Make it smaller.",
    )  # fmt: skip


def test_a_cancelled_job_is_cancelled(client: Client) -> None:
    job = client.cancel(client.submit("a fox").id)
    video = video_of(job)
    assert video.error is not None
    assert (video.status, video.error.code) == ("cancelled", "cancelled")


@pytest.mark.parametrize(("frames", "rate", "seconds"), [(25, 25, "1"), (1, 60, "0.017")])
def test_seconds_are_text_without_trailing_zeros(
    client: Client, frames: int, rate: float, seconds: str
) -> None:
    job = client.submit("a fox", num_frames=frames, frame_rate=rate)
    assert video_of(job).seconds == seconds


def test_the_sdk_reads_every_field_it_has(client: Client, queue: MemoryTransport) -> None:
    job = client.submit("a fox")
    queue.succeed(job.id)
    fields = video_of(client.get(job.id)).model_dump(mode="json")
    assert set(SdkVideo.model_fields) <= set(fields)
    assert set(VideoDeleteResponse.model_fields) == set(VideoDeleted.model_fields)


def test_a_page_says_where_the_next_page_starts(client: Client) -> None:
    jobs = [client.submit(f"fox {number}").id for number in range(3)]
    first = page_of(client.list(limit=2))
    assert (first.first_id, first.last_id, first.has_more) == (jobs[2], jobs[1], True)
    rest = page_of(client.list(limit=2, after=first.last_id))
    assert (rest.first_id, rest.last_id, rest.has_more) == (jobs[0], jobs[0], False)


def test_a_page_of_unreadable_records_is_not_the_last() -> None:
    page = page_of(JobPage(jobs=(), after="video_9"))
    assert (page.data, page.first_id, page.last_id, page.has_more) == ((), None, "video_9", True)
    empty = page_of(JobPage(jobs=(), after=None))
    assert (empty.first_id, empty.last_id, empty.has_more) == (None, None, False)
