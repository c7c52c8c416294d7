"""Several sessions on one pipeline object: each plays independently of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scope_world import OWL, Session, World, eventually, plugin_threads
from viewer import apart, breaks, skews

Load = Callable[..., Any]
LAST = 8  # the index of a clip's last frame


def test_two_sessions_play_different_prompts_at_the_same_time(world: World, load: Load) -> None:
    pipeline = load(world)
    with Session(pipeline) as fox, Session(pipeline, prompts=OWL) as owl:
        for session in (fox, owl):
            session.viewer.wait_until(lambda v: len(v.shown) > 40)
    for session, prompt in ((fox, "a fox"), (owl, "an owl")):
        assert set(session.tags) == {world.tag(prompt)}
        assert session.viewer.shown[0].stamp == 0
        assert breaks(session.viewer.shown, LAST) == []
        assert apart(skews(session.viewer)) < 0.04


def test_a_session_that_begins_later_does_not_disturb_the_first(
    slow_world: World, load: Load
) -> None:
    """While it waits for its first clip, Scope sends `init_cache` with every call."""
    pipeline = load(slow_world)
    with Session(pipeline) as fox:
        slow_world.finish(slow_world.job(0))
        fox.viewer.wait_until(lambda v: v.shown)
        with Session(pipeline, prompts=OWL) as owl:
            slow_world.job(1)
            seen = len(fox.viewer.shown)
            fox.viewer.wait_until(lambda v: len(v.shown) > seen + 20)
            assert not owl.viewer.shown
    assert breaks(fox.viewer.shown, LAST) == []


def test_an_ended_session_leaves_no_thread_and_the_other_plays_on(
    slow_world: World, load: Load
) -> None:
    pipeline = load(slow_world)
    with Session(pipeline) as fox:
        slow_world.finish(slow_world.job(0))
        with Session(pipeline, prompts=OWL):
            owl = slow_world.job(1)
            assert len(plugin_threads()) == 4
        eventually(lambda: len(plugin_threads()) == 2)
        assert slow_world.queue.get(owl.id).state == "cancelled"
        seen = len(fox.viewer.shown)
        fox.viewer.wait_until(lambda v: len(v.shown) > seen + 20)


def test_two_sessions_share_a_clip_with_a_fixed_seed(world: World, load: Load) -> None:
    pipeline = load(world)
    with Session(pipeline) as one:
        one.viewer.wait_until(lambda v: v.shown)
        with Session(pipeline) as two:
            two.viewer.wait_until(lambda v: v.shown)
    assert len(world.jobs()) == len(world.clips.requested) == 1


def test_a_reloaded_page_gets_the_clip_that_is_already_being_generated(
    slow_world: World, load: Load
) -> None:
    pipeline = load(slow_world)
    with Session(pipeline):
        slow_world.job(0)
    with Session(pipeline) as again:
        slow_world.finish(slow_world.job(0))
        again.viewer.wait_until(lambda v: v.shown)
    assert len(slow_world.jobs()) == 1
