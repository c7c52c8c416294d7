"""The guides under docs/ name files, commands and settings that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from test_readme_facts import FOREIGN, ROOT, ltxq_calls, parse

from ltxq.job import VideoRequest
from ltxq.settings import Settings

GUIDES = sorted((ROOT / "docs").glob("*.md"))
PATHS = re.compile(r"(?:producer|worker|tests|bench|docker|docs|requirements)/[\w./-]*\w")


@pytest.fixture(params=GUIDES, ids=lambda guide: guide.stem)
def guide(request: pytest.FixtureRequest) -> Path:
    return request.param


def spans(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def test_paths_exist(guide: Path) -> None:
    for span in spans(guide.read_text()):
        if PATHS.fullmatch(span):
            assert (ROOT / span).exists(), span


def test_links_lead_somewhere(guide: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", guide.read_text()):
        assert (guide.parent / link).exists(), link


def test_commands_exist(guide: Path) -> None:
    text = guide.read_text()
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            for words in ltxq_calls(line):
                parse(words)
    for span in spans(text):
        if re.match(r"ltxq [a-z]", span):
            parse(shlex.split(span)[1:], names_only=True)


def test_settings_exist(guide: Path) -> None:
    known = {f"LTXQ_{name.upper()}" for name in Settings.model_fields} | FOREIGN
    found = set(re.findall(r"\bLTXQ_[A-Z0-9_]*[A-Z0-9]\b", guide.read_text()))
    assert found <= known


def test_request_fields_in_the_web_guide_exist() -> None:
    text = (ROOT / "docs" / "web.md").read_text()
    for field in ("crop_height", "stages", "expires_in", "webhook_url"):
        assert f"`{field}" in text
        assert field in VideoRequest.model_fields
