"""The base package installs beside the versions that Scope pins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.extended

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
REQUIREMENTS = HERE / "scope-0.2.4.txt"


def resolve(*inputs: str) -> subprocess.CompletedProcess[str]:
    """Resolve as Scope does when it installs a plugin, for its Python; installs nothing."""
    uv = Path(sys.prefix, "bin", "uv")
    if not uv.exists():
        pytest.skip("uv is not installed beside this Python; `make` installs it")
    command = [str(uv), "pip", "compile", "--quiet", "--no-header", "--python-version", "3.12"]
    constraints = ["--constraint", str(HERE / "scope-0.2.4-constraints.txt")]
    return subprocess.run(
        [*command, *constraints, "--no-annotate", *inputs],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
    )


def test_the_base_package_resolves_with_scopes_requirements() -> None:
    done = resolve("pyproject.toml", str(REQUIREMENTS))
    offline = re.search(r"[Ff]ailed to fetch|error sending request|dns error", done.stderr)
    if done.returncode and offline and not os.environ.get("CI"):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    chosen = dict(line.split("==") for line in done.stdout.split() if "==" in line)
    assert chosen["torch"] == "2.9.1"
    assert {"celery", "redis", "pydantic-settings", "httpx2"} <= set(chosen)
    assert not {"ltx-core", "boto3"} & set(chosen)


def test_no_package_that_scope_pins_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", name, maxsplit=1)[0] for name in project["dependencies"]}
    lines = REQUIREMENTS.read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line.split(";")[0]}
    assert {"torch", "torchvision"} <= pinned
    assert not declared & (pinned | {"av", "numpy", "pluggy"})
