"""What README says is what the code has: settings, commands, options, exit codes, files."""

from __future__ import annotations

import json
import re
import shlex
import statistics
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import SecretStr

from bench.harness import readme
from ltxq import cli
from ltxq.errors import ErrorCode
from ltxq.job import VideoRequest
from ltxq.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FOREIGN = {  # read by the libraries that ltxq stands on, or by the CLI before any setting
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"),
    *("HF_TOKEN", "HF_ENDPOINT", "PYTORCH_CUDA_ALLOC_CONF", "LTXQ_DEBUG"),
}


def shell_lines() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def spans() -> list[str]:
    """Code in running text and tables."""
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def table(head: str) -> list[list[str]]:
    """The rows of the table whose head begins with `head`."""
    rows = README.split(f"\n| {head} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split(" | ")] for row in rows]


def ltxq_calls(line: str) -> list[list[str]]:
    """The words after each `ltxq` of a shell line."""
    calls = re.findall(r"(?:^|\| |\$\()ltxq ([^|)]*)", line)
    return [shlex.split(call) for call in calls]


def parse(words: list[str], *, names_only: bool = False) -> None:
    """Parse a command line as `ltxq` would, running nothing.

    Raises:
        Exception: the CLI library's, for what there is not.
    """
    command: Any = typer.main.get_command(cli._app())
    context = None
    while words and hasattr(command, "commands"):
        context = context or command.make_context("ltxq", list(words))
        name, command, words = command.resolve_command(context, words)
        assert command is not None, name
        if hasattr(command, "commands"):
            context = command.make_context(name, list(words), parent=context)
    if not names_only:
        command.make_context("ltxq", list(words), parent=context)


@pytest.mark.parametrize("line", [line for line in shell_lines() if ltxq_calls(line)])
def test_every_command_exists_with_exactly_these_options(line: str) -> None:
    for words in ltxq_calls(line):
        parse(words)


@pytest.mark.parametrize("span", [span for span in spans() if span.startswith("ltxq ")])
def test_every_command_in_the_text_exists(span: str) -> None:
    parse(shlex.split(span)[1:], names_only=True)


@pytest.mark.parametrize("words", ["sing", "submit x --loud", "submit x --width wide", "model fly"])
def test_a_command_that_does_not_exist_would_be_noticed(words: str) -> None:
    with pytest.raises(Exception, match=r"No such|valid integer"):
        parse(words.split())


def test_the_table_of_commands_is_complete() -> None:
    def names(command: Any, path: str) -> Iterator[str]:
        if not hasattr(command, "commands"):
            yield path
        for name, sub in getattr(command, "commands", {}).items():
            yield from names(sub, f"{path} {name}")

    there = set(names(typer.main.get_command(cli._app()), "ltxq"))
    assert {row[0] for row in table("command")} == there


def test_exit_codes_are_those_of_the_help() -> None:
    told = cli._HELP.split("Exit codes:")[1].split("LTXQ_DEBUG")[0]
    codes = set(re.findall(r"(?:^|·)\s*(\d+) ", told))
    assert {row[0] for row in table("exit code")} == codes
    assert len(codes) == 8


def test_every_make_target_and_variable_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    lines = [line for line in (*shell_lines(), *spans()) if re.search(r"(^|\" )make\b", line)]
    assert len(lines) >= 3
    for line in lines:
        before, _, target = line.partition("make")
        if target:
            assert re.search(rf"^{target.strip()}:.*##", makefile, re.MULTILINE), line
        for variable in re.findall(r"(\w+)=", before):
            assert variable in makefile, line


def test_what_pip_is_to_install_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in shell_lines() if line.startswith("pip ")]
    assert lines
    for line in lines:
        for extra in re.findall(r"\.\[(\w+)\]", line):
            assert extra in project["optional-dependencies"]
        for file in re.findall(r"-r (\S+)", line):
            assert (ROOT / file).is_file()


def test_files_that_are_named_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    scripts = [span.split()[1] for span in spans() if span.startswith("python ")]
    assert links
    assert scripts
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in headings}
    for path in (*links, *scripts):
        assert path in anchors or (ROOT / path).exists(), path
    assert (ROOT / "docs/tiny.webp").stat().st_size <= 2_000_000


def test_every_variable_is_read_by_something() -> None:
    settings = {f"LTXQ_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"\b(?:LTXQ|AWS|HF|PYTORCH)_[A-Z0-9_]+", README))
    assert named - settings <= FOREIGN
    assert settings <= named


def settings_table() -> str:
    """The rows README must have."""

    def shown(default: Any) -> str:
        if default is None:
            return "unset"
        plain = default.get_secret_value() if isinstance(default, SecretStr) else default
        return f"`{plain:g}`" if isinstance(plain, float) else f"`{plain}`"

    return "\n".join(
        f"| `LTXQ_{name.upper()}` | {shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    )


def test_the_table_of_settings_is_that_of_the_code() -> None:
    said = README.split("\n| variable |", 1)[1].split("\n\n", 1)[0].split("\n", 2)[2]
    assert said == settings_table()


def test_every_field_of_a_request_is_named() -> None:
    sentence = README.split("`submit` takes every field of `VideoRequest`:")[1].split(".\n")[0]
    sentence = sentence.split(". ")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == set(VideoRequest.model_fields) - {"prompt"}


def test_every_error_code_is_named() -> None:
    sentence = README.split("where the code is one of")[1].split(".\n")[0]
    assert re.findall(r"`(\w+)`", sentence) == list(get_args(ErrorCode))


def test_the_lines_of_json_are_json() -> None:
    for text in re.findall(r"echo '(\{.*?\})'", "\n".join(shell_lines())):
        VideoRequest.parse({k: v for k, v in json.loads(text).items() if k != "idempotency_key"})


def test_figures_are_the_measured_ones() -> None:
    measured = json.loads((ROOT / "bench" / "results" / "queue.json").read_text())
    figures = {name: value for part in measured.values() for name, value in part.items()}
    shown = {row[0]: row[1] for row in table("figure")}
    assert len(shown) == 10
    assert shown == {name: f"{figures[name]:,.0f}" for name in shown}


def test_the_storms_are_those_that_were_run() -> None:
    lines = (ROOT / "bench" / "results" / "chaos.jsonl").read_text().splitlines()
    storms = [json.loads(line) for line in lines]
    assert [storm["pipeline"] for storm in storms].count("tiny") == 1
    outcomes, faults = (Counter[str]() for _ in range(2))
    for storm in storms:
        outcomes.update(storm["outcomes"])
        faults.update(storm["faults"])
    worker, host = (f"slowest return of a killed {who}'s job (s)" for who in ("worker", "host"))
    seen = [
        len(storms),
        sum(storm["jobs accepted"] for storm in storms),
        faults["jobs that a failover forgot"],
        faults["plain jobs"],
        faults["plain messages lost on their way"],
        faults["jobs sent again"],
        *(outcomes[state] for state in ("succeeded", "cancelled", "expired", "worker_lost")),
        sum(storm["claims"] for storm in storms),
        max(storm[worker] for storm in storms),
        round(statistics.median(storm[worker] for storm in storms), 2),
        max(storm[host] for storm in storms),
    ]
    assert [row[1] for row in table("in all storms")] == [f"{figure:,}" for figure in seen]


def test_the_two_workers_and_the_way_to_the_url_are_as_measured() -> None:
    measured = json.loads((ROOT / "bench" / "results" / "queue.json").read_text())
    beside = measured["clips of 768×512 with 33 frames, one by one"]
    share = measured["two workers beside one"]["two workers' share of one's time"]
    prose = " ".join(README.split())
    milliseconds = beside["claim to URL without making the clip p50 (ms)"]
    kilobytes = beside["MP4 (bytes)"] / 1000
    assert f"take {milliseconds:.0f} ms beside making the clip" in prose
    assert f"33 frames, {kilobytes:.0f} kB" in prose
    assert f"in {share:.2f} of the time one takes" in prose
    assert share <= 0.6


def test_the_tables_of_a_gpu_are_what_was_measured() -> None:
    assert readme.speed_table() in README
    assert readme.gains_table() in README


def cells(table: str) -> dict[str, list[str]]:
    """The rows of a table by their first cell, of which the first of several counts."""
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    return {row[0]: row[1:] for row in reversed(rows)}


def clip(denoise: float, whole: float, **others: Any) -> dict[str, Any]:
    spread = {"denoise": {"median": denoise, "p90": 9.0}}
    return {
        "stages": spread,
        "prompt to MP4": {"median": whole},
        "measured": "2026-12-24",
        **others,
    }


def test_results_of_each_card_fill_a_column_of_their_own(tmp_path: Path) -> None:
    fp8 = clip(0.4567, 1.0, **{"times the library's speed": 2.345, "allocated GB": 58.76})
    arms = {"ltxq-fp8": fp8, "ltxq": clip(0.8, 1.5, **{"error of the picture's latent": 0.00123})}
    arms["library"] = clip(1.0, 2.3, **{"the library's own difference": 0.00045})
    failed = {"ltxq-fp8": {"failed": "out of memory"}}
    measured = {"workloads": {"a": {"arms": arms}, "c": {"arms": failed}}}
    (tmp_path / "clip-ltx-2-19b-nvidia-h100-80gb-hbm3.json").write_text(json.dumps(measured))
    queued = {"workloads": {"a": {"share busy": 0.9812, "claim to URL p50 (s)": 1.255}}}
    queued["starts"] = [{"ready (s)": 200.0}, {"ready (s)": 61.4}]
    busy = {"through the queue": queued}
    (tmp_path / "busy-ltx-2.3-22b-nvidia-h200.json").write_text(json.dumps(busy))
    seen = cells(readme.speed_table(tmp_path))
    assert seen["**a, 768×512, 33 frames**, measured on"] == ["", "2026-12-24", "–", "–", "–"]
    assert seen["denoising (s)"] == ["0.50", "0.46", "–", "–", "–"]
    assert seen["prompt to MP4 on disk (s)"] == ["1.1", "1.00", "–", "–", "–"]
    assert seen["that, times the library's speed"][1] == "2.35"
    assert seen["memory at the most (GB)"][1] == "58.8"
    assert seen["last latent in bf16, from the library's"] == ["", "0.0012", "–", "–", "–"]
    assert seen["the library's, from one run to the next"][1] == "0.00045"
    assert seen["GPU busy with a backlog (%)"] == ["97", "–", "–", "–", "98.1"]
    assert seen["claim to URL in a backlog (s)"][4] == "1.25"
    assert seen["**a worker's second start, ready after (s)**"] == ["90", "–", "–", "–", "61"]
    assert "2026" not in readme.speed_table(tmp_path).partition("**c, ")[2]  # which failed


def test_what_a_clip_takes_without_each_optimization_fills_its_table(tmp_path: Path) -> None:
    arms = {"ltxq-fp8": clip(0.5, 1.0), "ltxq-fp8 −graphs": clip(0.6, 1.25)}
    arms["ltxq-fp8 −hoist"] = {"failed": "out of memory"}
    measured = {"workloads": {"b": {"arms": arms}}}
    (tmp_path / "each-ltx-2-19b-nvidia-h200.json").write_text(json.dumps(measured))
    seen = cells(readme.gains_table(tmp_path))
    assert seen.pop("`graphs`") == ["–", "–", "–", "+0.25 s (+25 %)"]
    assert len(seen) == 6
    assert all(row == ["–"] * 4 for row in seen.values())


def test_the_tables_are_written_in_place_of_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = README
    for table in (readme.speed_table(), readme.gains_table()):
        rows = table.splitlines()
        stale = stale.replace(table, "\n".join([*rows[:2], "| an older row | 1.23 |"]))
    assert stale.count("an older row") == 2
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    readme.README.write_text(stale)
    readme.write()
    assert readme.README.read_text() == README


def test_how_far_one_redis_goes_is_as_measured() -> None:
    measured = json.loads((ROOT / "bench" / "results" / "fleet.json").read_text())
    paced = next(rows for title, rows in measured.items() if title.startswith("1,000 workers"))
    fast, deep, asked = (
        measured[title] for title in ("as fast as it goes", "a deep queue", "asked of it")
    )
    seen = [
        f"{deep['bytes per queued job, message included']:,.0f}",
        f"{asked['one sweep, nothing wrong (ms)']:.1f}",
        f"{asked['read the last job, with its position (ms)']:.1f}",
        f"{paced['claim p99 (ms)']:.1f}",
        f"{paced['Redis busy (share of one core)']:.2f}",
        f"{fast['jobs per second']:.0f}",
        f"{fast['jobs per second a core of Redis would bear']:.0f}",
        f"{measured['every lease ends at once']['that sweep (ms)']:.0f}",
        f"{measured['made-up models']['one sweep afterwards (ms)']:.1f}",
    ]
    assert [row[1] for row in table("of one Redis")] == seen


def test_the_gateways_figures_are_the_measured_ones() -> None:
    measured = json.loads((ROOT / "bench" / "results" / "gateway.json").read_text())["measured"]
    assert measured["polls errors"] == measured["submissions errors"] == 0
    shown = {row[0]: row[1:] for row in table("at the gateway, for a minute")}
    assert shown == {
        what: [f"{measured[f'{what} {part} (ms)']:.0f}" for part in ("p50", "p99")]
        for what in ("polls", "submissions")
    }


def test_the_scope_plugins_figures_are_the_measured_ones() -> None:
    seen = json.loads((ROOT / "bench" / "results" / "scope.json").read_text())["figures"]
    shown = {row[0]: row[1] for row in table("in five minutes of Scope")}
    assert len(shown) == 7
    for name, text in shown.items():
        digits = 0 if float(seen[name]).is_integer() else 1
        assert text == f"{seen[name]:,.{digits}f}"
