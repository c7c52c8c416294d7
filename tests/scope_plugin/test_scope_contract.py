"""How Scope finds the pipeline, shows its settings and creates it."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scope.core
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from ltxq import VideoRequest
from ltxq.scope_plugin import connection, register_pipelines
from ltxq.scope_plugin.playback_request import DEFAULTS
from ltxq.scope_plugin.player import Player
from scope_world import FOX, World, eventually

SCOPE = Path(scope.core.__file__).parents[2]  # the stand-in, or the real Scope
PROGRAM = """
import socket, sys, threading, time

def refuse(*_):
    raise AssertionError("the network was touched")

socket.socket.connect = socket.getaddrinfo = refuse
import scope.core
before = set(sys.modules)
start = time.process_time()
import {module}
print(time.process_time() - start, threading.active_count(), *(set(sys.modules) - before))
"""


@pytest.fixture
def config() -> Any:
    from ltxq.scope_plugin.pipeline import Ltx2QueuePipeline

    return Ltx2QueuePipeline.get_config_class()


def test_the_one_entry_point_loads() -> None:
    (entry,) = importlib.metadata.distribution("ltxq").entry_points.select(group="scope")
    assert entry.load().register_pipelines is register_pipelines
    assert hasattr(register_pipelines, "scope_impl")  # set by Scope's marker


def test_registering_again_gives_the_same_class() -> None:
    registered: list[type] = []
    register_pipelines(registered.append)
    register_pipelines(registered.append)
    assert [kind.__name__ for kind in registered] == ["Ltx2QueuePipeline"] * 2
    assert registered[0] is registered[1]


@pytest.mark.parametrize("module", ["ltxq.scope_plugin", "ltxq.scope_plugin.pipeline"])
def test_importing_is_cheap_and_uses_no_network(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SCOPE), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    seconds, threads, *loaded = done.stdout.split()
    assert threads == "1"
    heavy = {"torch", "av", "numpy", "celery", "redis", "boto3"}
    if "SCOPE_CHECKOUT" in os.environ and module.endswith("pipeline"):
        heavy -= {"torch", "numpy"}  # Scope's own MediaTimestamp imports them
    else:
        assert float(seconds) < 3  # CPU time; 0.2 s on an idle machine
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(heavy)


def test_the_class_has_what_scope_reads(config: Any) -> None:
    assert config.pipeline_id == "ltx2-queue"
    assert config.artifacts == []
    assert config.requires_models is False
    assert config.estimated_vram_gb is None
    assert "video" in config.inputs
    assert list(config.modes) == ["text"]
    assert config.modes["text"].default is True
    assert config.default_temporal_interpolation_steps == 0
    assert config.produces_audio is True
    with pytest.raises(ValidationError):
        config(use_fp8=True)  # a setting of the worker


def test_settings_keep_the_old_plugins_names_and_defaults_and_are_shown(config: Any) -> None:
    expected = {
        "height": 512,
        "width": 768,
        "base_seed": 42,
        "num_frames": 33,
        "frame_rate": 24.0,
        "randomize_seed": False,
    }
    made = config().model_dump()
    assert {name: made[name] for name in expected} == expected
    assert {name: made[name] for name in DEFAULTS} == DEFAULTS
    shown = {
        name: field["ui"]
        for name, field in config.model_json_schema()["properties"].items()
        if "ui" in field
    }
    assert set(shown) == set(DEFAULTS)
    assert {name for name, ui in shown.items() if ui["is_load_param"]} == {"height", "width"}


def test_defaults_are_those_of_a_request() -> None:
    request = VideoRequest(prompt="a fox")
    for name in ("height", "width", "num_frames", "frame_rate", "stages"):
        assert DEFAULTS[name] == getattr(request, name)
    assert DEFAULTS["base_seed"] == 42  # Scope's own: a clip in a loop


def test_the_constructor_accepts_what_scope_passes(world: World, load: Callable[..., Any]) -> None:
    """Unknown, undefined and wrong values, and defaults of settings of other pipelines."""
    pipeline = load(
        world, unknown=object(), base_seed=PydanticUndefined, num_frames="many", input_size=1,
        vace_context_scale=1.0, quantization="fp8_e4m3fn",
    )  # fmt: skip
    eventually(lambda: pipeline(prompts=FOX, init_cache=True))
    (job,) = world.jobs()
    assert (job.request.seed, job.request.num_frames) == (42, 33)


def test_without_ltxq_url_nothing_plays_and_the_log_says_why(
    world: World, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    real = connection.connect
    pipeline = load(world)
    monkeypatch.setattr(connection, "connect", real)
    del pipeline
    eventually(lambda: not caplog.clear() and True)
    from ltxq.scope_plugin.pipeline import Ltx2QueuePipeline

    pipeline = Ltx2QueuePipeline(width=64, height=64, num_frames=9)
    eventually(lambda: "LTXQ_URL is not set" in caplog.text)
    assert pipeline(prompts=FOX, init_cache=True) == {}
    assert pipeline.last_error is not None
    assert "LTXQ_URL" in pipeline.last_error


def test_a_gateway_without_an_api_key_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("LTXQ_URL", "https://queue.invalid")
    client = connection.connect()
    assert client is not None
    client.close()
    assert "LTXQ_API_KEY is not set" in caplog.text
    caplog.clear()
    monkeypatch.setenv("LTXQ_API_KEY", "sk-ltxq-something")
    client = connection.connect()
    assert client is not None
    client.close()
    assert caplog.text == ""


def test_a_malformed_parameter_raises_nothing(world: World, load: Callable[..., Any]) -> None:
    pipeline = load(world)
    for wrong in (7, [7], [{"text": 7}], [{}], {"text": "x"}, [{"weight": 1}], ["", " "]):
        assert pipeline(prompts=wrong, init_cache=True) == {}
    for wrong in (7, {}, {"target_prompts": 7}):
        assert pipeline(prompts=[], transition=wrong, init_cache=True) == {}
    assert pipeline(prompts="x" * 6000, init_cache=True) == {}
    assert "5000" in pipeline.last_error
    time.sleep(0.3)
    assert not world.jobs()


def test_4_the_plugins_own_errors_are_not_raised(
    world: World, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """After an exception Scope calls again at once, 27,000 times a second."""
    pipeline = load(world)

    def broken(player: Player) -> None:
        raise RuntimeError("by zero")

    with monkeypatch.context() as patch:
        patch.setattr(Player, "output", broken)
        for _ in range(3):
            assert pipeline(prompts=FOX, init_cache=True) == {}
        assert "by zero" in pipeline.last_error
    assert caplog.text.count("The Scope plugin failed") == 1
    eventually(lambda: pipeline(prompts=FOX, init_cache=True))
    caplog.clear()  # its tracebacks would keep the pipeline alive
