"""The plugin in Scope's loop: pictures and sound of one session, and eight known traps of Scope."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ltxq.scope_plugin.clip import DownloadedClip
from ltxq.scope_plugin.frame_buffer import BufferedClip, Frame
from ltxq_worker.pipeline.instant import Mark
from scope_world import FOX, OWL, Session, World, eventually, plugin_threads
from variants import variants
from viewer import Shown, apart, breaks, loud, onset, skews

Load = Callable[..., Any]
LAST = 8  # the index of a clip's last frame


def marks(shown: Sequence[Shown]) -> list[Mark]:
    read = [picture.mark for picture in shown if picture.mark is not None]
    assert len(read) == len(shown)
    return read


def assert_nothing_dropped_or_doubled(shown: Sequence[Shown]) -> None:
    assert breaks(shown, LAST) == []


def assert_time_stamps_increase(session: Session) -> None:
    stamps = [picture.stamp for picture in session.viewer.shown]
    assert stamps == sorted(set(stamps))
    sounds = [sound.stamp for sound in session.viewer.heard if sound.stamp is not None]
    assert sounds == sorted(set(sounds))


def repeats_last_frame(viewer: Any) -> bool:
    """Whether the last frame has been shown twice."""
    return len(viewer.shown) > 1 and viewer.shown[-1].mark == viewer.shown[-2].mark


def test_playback_is_continuous_with_a_fast_worker(world: World, load: Load) -> None:
    """Each frame is shown once, 1/24 s apart, with continuous sound."""
    with Session(load(world, randomize_seed=True)) as session:
        session.viewer.wait_until(lambda v: len(v.shown) > 60)
    shown, heard = session.viewer.shown, session.viewer.heard
    assert_nothing_dropped_or_doubled(shown)
    assert len(set(session.tags)) == len(session.tags) >= 6
    steps = [24 * (now.stamp - before.stamp) for before, now in itertools.pairwise(shown)]
    # Tolerates a machine that stops the test for a quarter second, and a slow worker.
    assert sum(step < 1.01 for step in steps) > 0.95 * len(steps)
    assert sum(sound.stamp is not None for sound in heard) > 0.95 * len(heard)
    assert sum(now.mark == before.mark for before, now in itertools.pairwise(shown)) < 12


def test_a_clip_with_a_fixed_seed_is_generated_once_and_loops(world: World, load: Load) -> None:
    with Session(load(world)) as session:
        session.viewer.wait_until(lambda v: len(v.shown) > 40)
    assert session.tags == [world.tag("a fox")] * len(session.tags)
    assert len(session.tags) > 4
    assert_nothing_dropped_or_doubled(session.viewer.shown)
    assert len(world.jobs()) == len(world.clips.requested) == 1


def test_one_clip_is_generated_ahead_of_the_one_that_plays(slow_world: World, load: Load) -> None:
    with Session(load(slow_world, randomize_seed=True)) as session:
        slow_world.finish(slow_world.job(1) and slow_world.job(0))
        session.viewer.wait_until(repeats_last_frame)
        eventually(lambda: len(slow_world.jobs()) == 3)
        time.sleep(0.3)
        assert [job.state for job in slow_world.jobs()] == ["succeeded", "queued", "queued"]


def test_prefetch_is_the_number_of_clips_ahead(slow_world: World, load: Load) -> None:
    with Session(load(slow_world, randomize_seed=True, prefetch=0)) as session:
        slow_world.job(0)
        session.send(prefetch=3)
        slow_world.job(3)
        time.sleep(0.3)
        assert len(slow_world.jobs()) == 4


def test_a_prompt_change_cancels_queued_jobs_and_plays_next(slow_world: World, load: Load) -> None:
    with Session(load(slow_world, randomize_seed=True)) as session:
        slow_world.finish(slow_world.job(1) and slow_world.job(0))
        session.viewer.wait_until(lambda v: v.shown)
        old = slow_world.job(1)
        session.send(prompts=OWL)
        eventually(lambda: slow_world.queue.get(old.id).state == "cancelled")
        new = slow_world.job(2)
        assert new.request.prompt == "an owl"
        slow_world.finish(new)
        session.viewer.wait_until(lambda v: marks(v.shown)[-1].tag != marks(v.shown)[0].tag)
    fox, owl = session.tags
    assert (fox, owl) != (owl, fox)
    assert_nothing_dropped_or_doubled(session.viewer.shown)


def test_a_prompt_change_drops_ready_clips_of_the_old_prompt(world: World, load: Load) -> None:
    """Clips of the fox are downloaded and decoded, but none begins after the prompt change."""
    with Session(load(world, prefetch=3)) as session:
        session.viewer.wait_until(lambda v: len(v.shown) > 12)
        session.send(prompts=OWL)
        before = len(session.tags)
        session.viewer.wait_until(lambda v: marks(v.shown)[-1].tag == world.tag("an owl"))
    # One may begin later: Scope may have its first frames already.
    assert session.tags.count(world.tag("a fox")) <= before + 1


def test_a_prompt_that_is_being_typed_is_one_job(world: World, load: Load) -> None:
    with Session(load(world)) as session:
        session.viewer.wait_until(lambda v: v.shown)
        for end in range(1, 7):
            session.send(prompts="an owl"[:end])
            time.sleep(0.05)
        session.viewer.wait_until(lambda v: v.shown[-1].mark.tag == world.tag("an owl"))
    assert [job.request.prompt for job in world.jobs()] == ["a fox", "an owl"]


def test_a_prompt_that_played_before_comes_from_the_cache(world: World, load: Load) -> None:
    with Session(load(world)) as session:
        session.viewer.wait_until(lambda v: v.shown)
        for prompts, tag in ((OWL, "an owl"), (FOX, "a fox"), (OWL, "an owl")):
            session.send(prompts=prompts)
            session.viewer.wait_until(lambda v, tag=tag: v.shown[-1].mark.tag == world.tag(tag))
    assert sorted(job.request.prompt for job in world.jobs()) == ["a fox", "an owl"]


def test_a_transitions_prompt_stays_although_prompts_has_the_old_text(
    world: World, load: Load
) -> None:
    with Session(load(world)) as session:
        session.viewer.wait_until(lambda v: v.shown)
        session.send(transition={"target_prompts": OWL, "num_steps": 4})
        session.viewer.wait_until(lambda v: v.shown[-1].mark.tag == world.tag("an owl"))
        seen = len(session.viewer.shown)
        session.viewer.wait_until(lambda v: len(v.shown) > seen + 20)
        assert "transition" not in session.processor.parameters
        assert {mark.tag for mark in marks(session.viewer.shown[seen:])} == {world.tag("an owl")}
        session.send(prompts=[{"text": "a fox", "weight": 1.0}])  # equal to what it holds
        session.viewer.wait_until(lambda v: v.shown[-1].mark.tag == world.tag("a fox"))


# --- known traps of Scope, by number -------------------------------------------------------------


def test_1_the_clock_follows_the_wall_across_a_gap(slow_world: World, load: Load) -> None:
    """The last frame is repeated with silence while time goes on; the next clip is in step."""
    with Session(load(slow_world)) as session:
        slow_world.finish(slow_world.job(0))
        session.viewer.wait_until(lambda v: v.shown)
        started_at = session.viewer.shown[0].at
        session.send(prompts=OWL)
        session.viewer.wait_until(repeats_last_frame)
        time.sleep(1.0)
        slow_world.finish(slow_world.job(1))
        session.viewer.wait_until(lambda v: v.shown[-1].mark == Mark(slow_world.tag("an owl"), 8))
    assert_time_stamps_increase(session)
    assert_nothing_dropped_or_doubled(session.viewer.shown)
    last = session.viewer.shown[-1]
    assert last.stamp == pytest.approx(last.at - started_at, abs=0.1)
    assert apart(skews(session.viewer)) < 0.04
    repeated = [s for s in session.viewer.shown if s.mark == Mark(slow_world.tag("a fox"), 8)]
    quiet = [
        h
        for h in session.viewer.heard
        if h.stamp and repeated[2].stamp < h.stamp < last.stamp - 0.5
    ]
    assert len(quiet) > 20
    assert not any(map(loud, quiet))
    assert sum(sound.stamp is None for sound in session.viewer.heard) < 10


@pytest.mark.extended
def test_1_time_stamps_do_not_go_back_after_a_pause(world: World, load: Load) -> None:
    with Session(load(world)) as session:
        session.viewer.wait_until(lambda v: len(v.shown) > 12)
        session.send(paused=True)
        eventually(lambda: session.processor.paused)
        time.sleep(1.0)
        seen = len(session.viewer.shown)
        session.send(paused=False)
        session.viewer.wait_until(lambda v: len(v.shown) > seen + 24)
    assert_time_stamps_increase(session)
    assert_nothing_dropped_or_doubled(session.viewer.shown)
    first, last = session.viewer.shown[0], session.viewer.shown[-1]
    assert last.stamp - first.stamp == pytest.approx(last.at - first.at, abs=0.1)
    # Missed pictures are not shown in a rush, which the sound could not follow.
    assert apart(skews(session.viewer)) < 0.05


@pytest.mark.parametrize(
    ("rate", "seconds"), variants((24.0, 0.6), extended=((24.0, 1.5), (60.0, 0.6), (12.0, 0.6)))
)
def test_1_sound_and_picture_are_together_again_after_a_stall(
    world: World, load: Load, rate: float, seconds: float
) -> None:
    """Scope shows the queued pictures at their frame rate, and plays the queued sound at once."""
    with Session(load(world, randomize_seed=True, frame_rate=rate)) as session:
        session.viewer.wait_until(lambda v: len(v.shown) > rate)
        session.stall(seconds)
        resumed = time.monotonic()
        session.viewer.wait_until(lambda v: v.shown[-1].at > resumed + 3)
    assert_time_stamps_increase(session)
    assert_nothing_dropped_or_doubled(session.viewer.shown)
    assert apart(skews(session.viewer, resumed + 2)) < 0.04


def test_1_sound_and_picture_are_together_again_after_a_pause(world: World, load: Load) -> None:
    """Scope pauses the queued sound, but shows the queued pictures."""
    with Session(load(world, randomize_seed=True)) as session:
        session.viewer.wait_until(lambda v: len(v.shown) > 24)
        session.send(paused=True)
        eventually(lambda: session.processor.paused)
        time.sleep(0.6)
        session.send(paused=False)
        resumed = time.monotonic()
        session.viewer.wait_until(lambda v: v.shown[-1].at > resumed + 2)
    assert_time_stamps_increase(session)
    assert_nothing_dropped_or_doubled(session.viewer.shown)
    assert apart(skews(session.viewer, resumed + 1)) < 0.04


def test_2_no_call_waits_for_the_queue_the_download_or_the_decoder(
    world: World, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise Scope could not react to parameters, pause and stop."""
    pipeline = load(world)
    world.clips.fault.hangs = True
    hung = threading.Event()
    monkeypatch.setattr(world.queue, "get_many", lambda ids: (hung.wait(2) and {}) or {})
    slowest = 0.0
    for number in range(100):
        start = time.perf_counter()
        assert pipeline(prompts=FOX if number % 7 else OWL, init_cache=True) == {}
        slowest = max(slowest, time.perf_counter() - start)
        time.sleep(0.01)
    hung.set()
    world.clips.released.set()
    assert slowest < 0.1


def test_3_outputs_are_small_and_little_ahead(world: World, load: Load) -> None:
    """Even when it is called every millisecond, it outputs at most a quarter second ahead."""
    pipeline = load(world, randomize_seed=True)
    seconds, started_at = 0.0, None
    while seconds < 1.5:
        output = pipeline(prompts=FOX, init_cache=started_at is None)
        if output:
            started_at = started_at or time.monotonic()
            assert len(output["video"]) <= 8
            seconds += len(output["video"]) / 24
        if started_at:
            assert seconds - (time.monotonic() - started_at) <= 0.26
        time.sleep(0.001)


@pytest.mark.extended
def test_3_no_frame_is_lost_in_scopes_queues(world: World, load: Load, caplog: Any) -> None:
    with caplog.at_level("DEBUG", "scope"), Session(load(world, frame_rate=60)) as session:
        session.viewer.wait_until(lambda v: len(v.shown) > 200)
    assert_nothing_dropped_or_doubled(session.viewer.shown)
    assert "queue full" not in caplog.text


def test_4_playback_goes_on_while_the_queue_is_unreachable(
    world: World, load: Load, caplog: Any
) -> None:
    pipeline = load(world)
    with Session(pipeline) as session:
        session.viewer.wait_until(lambda v: v.shown)
        world.unreachable.set()
        session.send(prompts=OWL)
        eventually(lambda: pipeline.last_error)
        assert pipeline.last_error == "The queue cannot be reached."
        time.sleep(1.0)
        world.unreachable.clear()
        session.viewer.wait_until(lambda v: v.shown[-1].mark.tag == world.tag("an owl"))
        assert pipeline.last_error is None
    assert_nothing_dropped_or_doubled(session.viewer.shown)
    assert_time_stamps_increase(session)
    assert caplog.text.count("cannot be reached") == 1
    assert "Traceback" not in caplog.text


def test_5_a_silent_clip_plays_with_silence(world: World, load: Load) -> None:
    world.silent = True
    with Session(load(world)) as session:
        session.viewer.wait_until(lambda v: len(v.shown) > 24)
    heard = session.viewer.heard
    assert len(heard) > 40
    assert all(sound.stamp is not None for sound in heard)
    assert not any(map(loud, heard))


@pytest.mark.parametrize("rate", [24.0, 23.976, 30.0, 7.0, 60.0])
def test_5_every_output_has_as_much_sound_as_picture(world: World, load: Load, rate: float) -> None:
    pipeline = load(world, frame_rate=rate, randomize_seed=True)
    frames = samples = 0
    while frames < 40:
        output = pipeline(prompts=FOX, init_cache=True)
        if output:
            frames += len(output["video"])
            samples += output["audio"].shape[1]
            exact = len(output["video"]) / output["frame_rate"] * 48_000
            assert abs(output["audio"].shape[1] - exact) <= 1
            assert output["frame_rate"] == pytest.approx(rate, abs=1e-4)
            starts = [stamp.pts for stamp in output["video_timestamps"]]
            assert output["audio_timestamps"][0].pts == starts[0]
            assert abs(samples - frames / output["frame_rate"] * 48_000) <= 1
        time.sleep(0.001)


def test_6_dropping_the_pipeline_ends_its_threads_and_cancels_its_jobs(
    slow_world: World, load: Load
) -> None:
    pipeline = load(slow_world)
    with Session(pipeline):
        slow_world.job(0)
    assert len(plugin_threads()) == 2
    del pipeline
    eventually(lambda: not plugin_threads(), within=30)
    assert slow_world.job(0).state == "cancelled"


def test_6_a_dropped_pipeline_does_not_call_the_queue(slow_world: World, load: Load) -> None:
    pipeline = load(slow_world)
    with Session(pipeline):
        slow_world.job(0)
    del pipeline
    eventually(lambda: not plugin_threads(), within=30)
    slow_world.unreachable.set()
    calls = slow_world.calls
    time.sleep(0.5)
    assert slow_world.calls == calls


def test_7_a_new_session_does_not_show_the_last_sessions_clip(world: World, load: Load) -> None:
    pipeline = load(world)
    with Session(pipeline) as first:
        first.viewer.wait_until(lambda v: len(v.shown) > 3)
    world.automatic = False
    with Session(pipeline, prompts=OWL) as second:
        time.sleep(0.5)
        assert not second.viewer.shown
        world.finish(world.job(1))
        second.viewer.wait_until(lambda v: len(v.shown) > 8)
    assert set(second.tags) == {world.tag("an owl")}
    assert second.viewer.shown[0].stamp == 0
    assert_nothing_dropped_or_doubled(second.viewer.shown)


def test_7_a_session_without_a_prompt_does_not_get_the_last_sessions(
    world: World, load: Load
) -> None:
    pipeline = load(world)
    with Session(pipeline) as first:
        first.send(transition={"target_prompts": OWL})
        first.viewer.wait_until(lambda v: v.shown)
    with Session(pipeline, prompts=[]) as second:
        time.sleep(0.5)
        assert not second.viewer.shown


def test_7_a_transition_ends_with_its_session(world: World, load: Load) -> None:
    pipeline = load(world)
    with Session(pipeline) as first:
        first.send(transition={"target_prompts": OWL})
        first.viewer.wait_until(lambda v: v.shown and v.shown[-1].mark.tag == world.tag("an owl"))
    with Session(pipeline) as second:  # its prompts equal those that the transition replaced
        second.viewer.wait_until(lambda v: len(v.shown) > 3)
    assert set(second.tags) == {world.tag("a fox")}


def test_7_a_new_session_may_have_another_size(slow_world: World, load: Load) -> None:
    from clipmaker import make_clip
    from ltxq import VideoRequest

    pipeline = load(slow_world)
    with Session(pipeline) as first:
        slow_world.finish(slow_world.job(0))
        first.viewer.wait_until(lambda v: v.shown)
    with Session(pipeline, prompts=OWL) as second:
        other = VideoRequest(seed=42, prompt="an owl", width=160, height=96, num_frames=9)
        slow_world.finish(slow_world.job(1), make_clip(other))
        second.viewer.wait_until(lambda v: len(v.shown) > 3)
    assert {picture.size for picture in second.viewer.shown} == {(160, 96)}


def test_8_later_frames_are_scaled_to_the_size_of_the_first(slow_world: World, load: Load) -> None:
    from clipmaker import make_clip
    from ltxq import VideoRequest

    with Session(load(slow_world)) as session:
        slow_world.finish(slow_world.job(0))
        session.viewer.wait_until(lambda v: v.shown)
        session.send(prompts=OWL)
        other = VideoRequest(seed=42, prompt="an owl", width=160, height=96, num_frames=9)
        slow_world.finish(slow_world.job(1), make_clip(other))
        session.viewer.wait_until(lambda v: v.shown[-1].mark is None)
    assert {picture.size for picture in session.viewer.shown} == {(64, 64)}


def test_an_odd_size_becomes_even(world: World, load: Load) -> None:
    with Session(load(world, width=101, height=75)) as session:
        session.viewer.wait_until(lambda v: v.shown)
    assert session.viewer.shown[0].size == (100, 74)


def test_sound_and_picture_are_within_40_ms(world: World, load: Load) -> None:
    """Measured at a tone that begins with its clip, after a gap."""
    world.automatic = False
    with Session(load(world, num_frames=25)) as session:
        world.finish(world.job(0))
        session.viewer.wait_until(lambda v: v.shown)
        delays = []
        for number, prompt in enumerate(("an owl", "a cat"), start=1):
            session.send(prompts=prompt)
            session.viewer.wait_until(repeats_last_frame)
            world.finish(world.job(number))
            tag = world.tag(prompt)
            session.viewer.wait_until(lambda v, tag=tag: v.shown[-1].mark == Mark(tag, 24))
            started_at = next(s.at for s in session.viewer.shown if s.mark == Mark(tag, 0))
            near = [h for h in session.viewer.heard if abs(h.at - started_at) < 0.3]
            delays.append(abs(onset(near) - started_at))
    assert min(delays) < 0.04
    assert apart(skews(session.viewer)) < 0.04


def test_a_reset_restarts_the_clip_and_time_goes_on(world: World, load: Load) -> None:
    with Session(load(world, num_frames=121)) as session:
        session.viewer.wait_until(lambda v: len(v.shown) > 12)
        session.send(reset_cache=True)
        session.viewer.wait_until(lambda v: v.shown[-1].mark.index < v.shown[-2].mark.index)
        seen = len(session.viewer.shown)
        session.viewer.wait_until(lambda v: len(v.shown) > seen + 12)
    assert_time_stamps_increase(session)
    assert session.tags == [world.tag("a fox")] * 2
    assert marks(session.viewer.shown)[seen - 1].index == 0
    assert apart(skews(session.viewer)[seen:]) < 0.04


@pytest.mark.extended
def test_memory_does_not_grow_with_time(world: World, load: Load) -> None:
    """After 30 clips as many clips, frames and tensors are alive as after five."""
    import torch

    def alive() -> int:
        gc.collect()
        types = (torch.Tensor, Frame, BufferedClip, DownloadedClip)
        return sum(type(thing) in types for thing in gc.get_objects())

    with Session(load(world, randomize_seed=True, frame_rate=60)) as session:
        session.viewer.wait_until(lambda v: len(v.shown) > 5 * 9)
        early = alive()
        session.viewer.wait_until(lambda v: len(v.shown) > 30 * 9)
        assert alive() < early + 40
        assert len(plugin_threads()) == 2
