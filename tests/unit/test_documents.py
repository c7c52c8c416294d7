"""README and the documents name only what exists: commands, options, settings, fields, paths, code.

Generated parts and links between documents are `make check`'s.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from ltxq import cli
from ltxq.errors import ErrorCode
from ltxq.job import VideoRequest
from ltxq.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "AGENTS.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FOREIGN = {"LTXQ_DEBUG"}  # read before there are settings
PATHS = re.compile(r"(?:producer|worker|tests|bench|docker|docs|requirements)/[\w./-]*[\w/]")


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.stem)
def text(request: pytest.FixtureRequest) -> str:
    return request.param.read_text()


def read(name: str) -> str:
    return (ROOT / name).read_text()


def shell_lines(text: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def spans(text: str) -> list[str]:
    """Code in running text and tables."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def ltxq_calls(line: str) -> Iterator[list[str]]:
    """The words after each `ltxq` of a shell line."""
    for call in re.findall(r"(?:^|\| |\$\()ltxq ([^|)]*)", line):
        yield shlex.split(call)


def parse(words: list[str], *, names_only: bool = False) -> None:
    """Parse a command line as `ltxq` would, without running it.

    Raises:
        Exception: the CLI library's, for what does not exist.
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


def test_commands_and_options_exist(text: str) -> None:
    for line in shell_lines(text):
        for words in ltxq_calls(line):
            parse(words)
    for span in spans(text):
        if re.match(r"ltxq [a-z]", span):
            parse(shlex.split(span)[1:], names_only=True)


@pytest.mark.parametrize("words", ["sing", "submit x --loud", "submit x --width wide", "model fly"])
def test_a_command_that_does_not_exist_would_be_noticed(words: str) -> None:
    with pytest.raises(Exception, match=r"No such|valid integer"):
        parse(words.split())


def test_make_targets_and_variables_exist(text: str) -> None:
    makefile = read("Makefile")
    for line in (*shell_lines(text), *spans(text)):
        if match := re.match(r"((?:\w+=\S+ )*)make( [a-z-]+)?", line.partition("#")[0]):
            if match[2]:
                assert re.search(rf"^{match[2].strip()}:.*##", makefile, re.MULTILINE), line
            for variable in re.findall(r"(\w+)=", match[1]):
                assert variable in makefile, line


def test_what_pip_is_to_install_exists(text: str) -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    for line in shell_lines(text):
        if line.startswith("pip "):
            for extra in re.findall(r"\.\[(\w+)\]", line):
                assert extra in project["optional-dependencies"]
            for file in re.findall(r"-r (\S+)", line):
                assert (ROOT / file).is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_paths_links_and_scripts_exist(document: Path) -> None:
    text = document.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)|src=\"([^\"]+)\"", text)
    for link in filter(None, (part for pair in links for part in pair)):
        assert (document.parent / link).exists(), link
    for span in spans(text):
        if PATHS.fullmatch(span):
            assert (ROOT / span).exists(), span
        if span.startswith("python "):
            assert (ROOT / span.split()[1]).exists(), span


def test_settings_exist(text: str) -> None:
    known = {f"LTXQ_{name.upper()}" for name in Settings.model_fields} | FOREIGN
    assert set(re.findall(r"\bLTXQ_[A-Z0-9_]*[A-Z0-9]\b", text)) <= known


def test_readme_is_short() -> None:
    assert len(read("README.md").encode()) <= 10_000


def test_every_field_of_a_request_is_named() -> None:
    sentence = read("docs/web.md").split("`submit` takes every field of `VideoRequest`:")[1]
    named = set(re.findall(r"`(\w+)`", sentence.split(". ")[0].split(".\n")[0]))
    assert named == set(VideoRequest.model_fields) - {"prompt"}


def test_every_error_code_is_named() -> None:
    sentence = read("docs/jobs.md").split("where the code is one of")[1].split(".\n")[0]
    assert re.findall(r"`(\w+)`", sentence) == list(get_args(ErrorCode))


def test_lines_of_json_are_requests(text: str) -> None:
    for line in re.findall(r"echo '(\{.*?\})'", "\n".join(shell_lines(text))):
        VideoRequest.parse({k: v for k, v in json.loads(line).items() if k != "idempotency_key"})


STEPS = re.findall(r"^\d\. (.*)$", read("docs/architecture.md"), re.MULTILINE)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step[:50])
def test_a_step_of_a_route_names_code_that_exists(step: str) -> None:
    """Each name after a file is defined in that file."""
    source = ""
    for span in re.findall(r"`([^`]+)`", step):
        if PATHS.fullmatch(span):
            source = read(span)
        elif re.fullmatch(r"[A-Za-z_]+(\.[a-z_]+)?", span) and not span.startswith("torch"):
            for name in span.split(".") if span[0].isupper() else [span.removeprefix("operation.")]:
                defined = rf"(?:def|class) {name}\b|^    {name}\b|operation\.{name}\("
                assert re.search(defined, source, re.MULTILINE), span


def test_the_routes_are_there() -> None:
    assert len(STEPS) > 30
