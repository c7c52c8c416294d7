"""The command line over a queue in memory: what is printed where, and the exit codes."""

from __future__ import annotations

import inspect
import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest

from ltxq.cli import machine, main
from ltxq.client import client as client_module
from ltxq.errors import JobError, QueueUnavailable
from ltxq.job import VideoRequest
from ltxq.testing import MemoryTransport
from ltxq_worker.cli import commands, models
from ltxq_worker.embedded.stack import USUAL_PORTS


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> MemoryTransport:
    queue = MemoryTransport(default_model="tiny", max_queued=3)
    monkeypatch.setattr(client_module, "RedisTransport", lambda settings: queue)
    return queue


def only_json(capsys: pytest.CaptureFixture[str]) -> Any:
    """Standard output, which must be one JSON object on one line."""
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def submitted(queue: MemoryTransport, prompt: str = "a fox") -> str:
    with client_module.Client(transport=queue) as client:
        return client.submit(prompt).id


def test_help_needs_no_heavy_package() -> None:
    program = (
        "import sys; from ltxq.cli import main; main(['--help']); main(['submit', '--help'])\n"
        "heavy = {'celery', 'redis', 'boto3', 'torch', 'numpy', 'ltxq_worker'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Exit codes" in done.stdout


def test_submit_prints_the_id_alone(
    queue: MemoryTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "a fox", "--num-frames", "9"]) == 0
    captured = capsys.readouterr()
    job = queue.get(captured.out.strip())
    assert (job.request.prompt, job.request.num_frames) == ("a fox", 9)
    assert f"ltxq watch {job.id}" in captured.err


def test_every_field_of_a_request_is_an_option(
    queue: MemoryTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {
        "stages": 2,
        "height": 256,
        "width": 320,
        "num_frames": 9,
        "frame_rate": 12.5,
        "seed": 7,
        "audio": False,
        "model": "tiny",
        "priority": "high",
        "timeout": 30,
        "expires_in": 120,
        "metadata": {"user": "a=b", "scene": ""},
        "webhook_url": "https://example.com/done",
        "not_before": "2026-12-24T18:00:00Z",
        "start_within": 90.5,
        "crop_width": 300,
        "crop_height": 250,
    }
    assert given.keys() | {"prompt"} == VideoRequest.model_fields.keys()
    words = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, dict):
            words += [word for pair in value.items() for word in (flag, "=".join(pair))]
        elif isinstance(value, bool):
            words += [flag if value else f"--no-{name}"]
        else:
            words += [flag, str(value)]
    assert main(["submit", "a fox", "--json", *words]) == 0
    assert only_json(capsys)["request"] == {"prompt": "a fox", **given}


def test_options_not_given_leave_the_defaults_to_the_request(
    queue: MemoryTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "a fox", "--json"]) == 0
    asked = only_json(capsys)["request"]
    expected = VideoRequest(prompt="a fox", model="tiny", seed=asked["seed"])
    assert asked == expected.model_dump(mode="json")


@pytest.mark.parametrize("words", [["--seed", "random"], []])
def test_a_random_seed_is_drawn_and_told(
    words: list[str], queue: MemoryTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = set()
    for _ in range(2):
        assert main(["submit", "a fox", *words, "--json"]) == 0
        seeds.add(only_json(capsys)["request"]["seed"])
    assert len(seeds) == 2
    assert main(["submit", "a fox", *words]) == 0
    shown = capsys.readouterr()
    assert f"with seed {queue.get(shown.out.strip()).request.seed}." in shown.err


def test_all_that_is_wrong_is_told_at_once_and_nothing_queued(
    queue: MemoryTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["submit", "a fox", "--height", "100", "--num-frames", "32"]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "--height: must be a multiple of 32" in shown.err
    assert "--num-frames: must be 8k+1, not 32; nearest: 25 or 33" in shown.err
    assert main([*words, "--json"]) == 2
    error = only_json(capsys)["error"]
    assert error["code"] == "invalid_request"
    assert [problem["field"] for problem in error["problems"]] == ["height", "num_frames"]
    assert not queue.list().jobs


@pytest.mark.parametrize(
    ("words", "code", "name"),
    [
        (["sumbit", "x"], 2, "usage"),
        (["submit"], 2, "usage"),
        (["submit", "x", "--height", "tall"], 2, "usage"),
        (["submit", "x", "--metadata", "novalue"], 2, "invalid_request"),
        (["submit", "x", "--metadata", "a=1", "--metadata", "a=2"], 2, "invalid_request"),
        (["list", "--state", "lost"], 2, "usage"),
        (["status", "video_none"], 3, "job_not_found"),
        (["watch", "video_none"], 3, "job_not_found"),
        (["cancel", "video_none"], 3, "job_not_found"),
        (["retry", "video_none"], 3, "job_not_found"),
        (["delete", "video_none"], 3, "job_not_found"),
        (["batch", "/nowhere.jsonl"], 2, "invalid_request"),
    ],
)
def test_errors_have_an_exit_code_and_a_json_form(
    words: list[str],
    code: int,
    name: str,
    queue: MemoryTransport,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err
    assert "Traceback" not in shown.err
    assert main([*words, "--json"]) == code
    error = only_json(capsys)["error"]
    assert error["code"] == name
    assert {"code", "message", "hint", "retryable"} <= error.keys()


@pytest.mark.parametrize("key", ["", "x" * 241])
def test_a_files_key_that_cannot_be_used_is_refused_before_a_line_is_submitted(
    key: str, queue: MemoryTransport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty variable is not a random key: the lines would be submitted twice."""
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt": "a fox"}\n')
    assert main(["batch", str(lines), "--idempotency-key", key]) == 2
    assert "--idempotency-key: must be text of 1 to 240" in capsys.readouterr().err
    assert not queue.list(state=None, limit=9, after=None, order="desc", owner=None).jobs
    assert main(["batch", str(lines), "--idempotency-key", "x" * 240]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["submit", "x", "--width"], "--width needs a value.\nSee the command's --help."),
        (["submit", "x", "--audio=1"], "--audio takes no value.\nSee the command's --help."),
        (["generate", "x", "-o", "x.mp4"], "--model is missing: a model's folder, or its name in"),
        (["generate", "x", "--model", "tiny"], "--output is missing: the MP4 to write."),
    ],
)
def test_a_wrong_command_line_is_told(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_a_queue_that_is_away_is_exit_code_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Away(MemoryTransport):
        def get(self, job_id: str) -> Any:
            raise QueueUnavailable("Redis does not answer.")

    monkeypatch.setattr(client_module, "RedisTransport", lambda settings: Away())
    assert main(["status", "video_1", "--json"]) == 4
    assert only_json(capsys)["error"]["code"] == "queue_unavailable"


def test_an_unknown_error_shows_no_traceback_unless_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(MemoryTransport):
        def get(self, job_id: str) -> Any:
            raise ZeroDivisionError("a bug")

    monkeypatch.setattr(client_module, "RedisTransport", lambda settings: Broken())
    assert main(["status", "video_1"]) == 70
    shown = capsys.readouterr().err
    assert "ZeroDivisionError" in shown
    assert "LTXQ_DEBUG=1" in shown
    assert "Traceback" not in shown
    monkeypatch.setenv("LTXQ_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["status", "video_1"])


def test_an_interrupt_is_exit_code_130(
    queue: MemoryTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = submitted(queue)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(queue, "get", interrupted)
    assert main(["watch", job_id]) == 130
    assert "The job goes on" in capsys.readouterr().err


def test_watch_prints_the_url_of_a_job_that_succeeded(
    queue: MemoryTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = submitted(queue)
    queue.start(job_id)
    url = queue.succeed(job_id).result.url  # type: ignore[union-attr]
    capsys.readouterr()
    assert main(["watch", job_id]) == 0
    assert capsys.readouterr().out == f"{url}\n"
    assert main(["watch", job_id, "--json"]) == 0
    assert only_json(capsys)["result"]["url"] == url


def test_watch_of_a_job_that_failed_says_why_and_what_to_do(
    queue: MemoryTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = submitted(queue)
    queue.start(job_id)
    queue.fail(job_id, JobError(code="out_of_memory", message="Too large.", hint="Try 512."))
    assert main(["watch", job_id]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Too large." in shown.err
    assert "Try 512." in shown.err
    assert main(["watch", job_id, "--json"]) == 1
    assert only_json(capsys)["error"]["code"] == "out_of_memory"
    assert main(["status", job_id]) == 0


def test_waiting_has_an_end(queue: MemoryTransport, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "a fox", "--wait", "--wait-timeout", "0.05", "--json"]
    assert main(words) == 5
    assert only_json(capsys)["error"]["code"] == "wait_timeout"


def test_progress_goes_to_standard_error(
    queue: MemoryTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = submitted(queue)
    queue.start(job_id)
    queue.report(job_id, "denoise", 3, 8, 0.3)
    assert main(["watch", job_id, "--wait-timeout", "0"]) == 5
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "denoising" in shown.err


def test_status_shows_what_matters(
    queue: MemoryTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = submitted(queue)
    seed = queue.start(job_id).request.seed
    assert main(["status", job_id]) == 0
    out = capsys.readouterr().out
    for part in (job_id, "running", "a fox", "768×512", "33 frames", f"seed {seed}"):
        assert part in out


NASTY = "\x1b[2Jgone [red]\x07\x9b31m\r\nvideo_forged  succeeded\u2028\u202e\u0085\x0b"


def test_a_strangers_prompt_cannot_steer_the_terminal(
    queue: MemoryTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = submitted(queue, NASTY)
    for words in (["list"], ["status", job_id]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert "gone [red]" in out
        assert not [line for line in out.split("\n") if not line.isprintable()]
        assert not [line for line in out.splitlines() if line.startswith("video_forged")]


def test_a_strangers_words_make_no_line_of_their_own(
    queue: MemoryTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = submitted(queue)
    queue.start(job_id, worker=NASTY)
    queue.fail(job_id, JobError(code="internal", message=NASTY, hint=NASTY))
    for words, code in (
        (["status", job_id], 0),
        (["watch", job_id], 1),
        (["status", NASTY], 3),
        (["submit", "a fox", "--model", NASTY], 2),
        (["submit", "a fox", "--metadata", NASTY], 2),
        (["list", "--state", NASTY], 2),
        (["list", NASTY], 2),
        (["batch", NASTY], 2),
        (["cancel", job_id, NASTY], 2),
    ):
        assert main(words) == code
        shown = capsys.readouterr()
        for line in (shown.out + shown.err).split("\n"):
            assert line.isprintable(), words
            assert not line.startswith("video_forged"), words


def test_list_pages_newest_first(
    queue: MemoryTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [submitted(queue, f"clip {number}") for number in range(3)]
    assert main(["list", "--limit", "2"]) == 0
    first = capsys.readouterr()
    assert [line.split()[0] for line in first.out.splitlines()] == ids[:0:-1]
    after = first.err.split("--after ")[1].strip()
    assert main(["list", "--limit", "2", "--after", after, "--json"]) == 0
    page = only_json(capsys)
    assert [job["id"] for job in page["jobs"]] == ids[:1]
    assert page["after"] is None


def test_cancel_retry_delete(queue: MemoryTransport, capsys: pytest.CaptureFixture[str]) -> None:
    job_id = submitted(queue)
    unfinished = submitted(queue)
    assert main(["delete", unfinished, "--json"]) == 0
    assert only_json(capsys) == {"id": unfinished, "deleted": True}
    assert main(["status", unfinished, "--json"]) == 3
    only_json(capsys)
    assert main(["cancel", job_id, "--json"]) == 0
    assert only_json(capsys)["state"] == "cancelled"
    assert main(["retry", job_id]) == 0
    again = queue.get(capsys.readouterr().out.strip())
    assert again.retry_of == job_id
    assert main(["delete", job_id]) == 0
    assert main(["status", job_id]) == 3


def test_batch_names_wrong_lines_and_takes_the_right_ones(
    queue: MemoryTransport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "clips.jsonl"
    lines = [
        '\ufeff{"prompt": "one", "num_frames": 9}',
        '{"prompt": "two", "height": 100}',
        "",
        "not json",
        '["a list"]',
        '{"prompt": "' + "x" * 200_000 + '"}',
        "[" * 100_000,
        '{"prompt": "three", "seeed": 1}',
        '{"prompt": "four", "idempotency_key": "k"}',
        '{"prompt": "four", "idempotency_key": "k"}',
    ]
    file.write_bytes("\n".join(lines).encode() + b'\n{"prompt": "\xff"}')
    assert main(["batch", str(file), "--json"]) == 2
    shown = capsys.readouterr()
    outcome = json.loads(shown.out)
    assert [line["line"] for line in outcome["submitted"]] == [1, 9, 10]
    assert len({line["id"] for line in outcome["submitted"]}) == 2
    assert [line["line"] for line in outcome["refused"]] == [2, 4, 5, 6, 7, 8, 11]
    assert "line 2: height: must be a multiple of 32" in shown.err
    assert "line 6: The line is longer" in shown.err
    assert "line 8: seeed" in shown.err
    assert queue.get(outcome["submitted"][0]["id"]).request.num_frames == 9


def test_batch_reads_standard_input(
    queue: MemoryTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = io.TextIOWrapper(io.BytesIO(b'{"prompt": "one"}\n{"prompt": "two"}\n'))
    monkeypatch.setattr(sys, "stdin", text)
    assert main(["batch", "-"]) == 0
    prompts = [queue.get(job_id).request.prompt for job_id in capsys.readouterr().out.split()]
    assert prompts == ["one", "two"]


def test_batch_says_where_to_go_on_when_the_queue_is_full(
    queue: MemoryTransport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "clips.jsonl"
    file.write_text('{"prompt": "a clip"}\n' * 5)
    assert main(["batch", str(file)]) == 4
    shown = capsys.readouterr()
    assert len(shown.out.split()) == 3
    assert "Line 4 was not submitted" in shown.err
    assert f"ltxq batch {file} --from-line 4 --idempotency-key batch-" in shown.err
    assert main(["batch", str(file), "--json"]) == 4
    outcome = only_json(capsys)
    assert outcome["stopped_at"] == 1
    assert outcome["error"]["code"] == "queue_full"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (commands, "demo"),
        (commands, "up"),
        (commands, "worker"),
        (models, "generate"),
        (models, "model_tiny"),
        (models, "model_download"),
        (models, "model_list"),
    ],
)
def test_the_workers_function_takes_what_its_command_declares(
    module: ModuleType, name: str
) -> None:
    declared = get_type_hints(inspect.unwrap(getattr(machine, name)))
    function = getattr(module, name)
    taken = get_type_hints(function)
    inspect.signature(function).bind(**{key: None for key in declared if key != "return"})
    ports = taken.pop("ports", None)
    for key, kind in declared.items():
        if key != "return":
            assert kind == taken.get(key, ports), key


def test_help_of_up_names_the_usual_ports(capsys: pytest.CaptureFixture[str]) -> None:
    main(["up", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, port in USUAL_PORTS.items():
        option = shown.partition(f"--{name.replace('_', '-')} ")[2]
        assert f"[default: {port} if free" in option.partition("--")[0]


def test_exit_code_of_the_workers_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "worker", lambda **given: 7)
    assert main(["worker"]) == 7


def test_a_missing_package_is_named_by_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ltxq_worker.models.tiny.model", None)
    monkeypatch.delitem(sys.modules, "ltxq_worker.models.tiny.model")
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    assert main(["model", "tiny", str(tmp_path / "tiny"), "--json"]) == 2
    error = only_json(capsys)["error"]
    assert error["code"] == "missing_extra"
    assert error["message"].endswith("not installed: torch.")
    assert "pip install 'ltxq[worker]'" in error["hint"]
