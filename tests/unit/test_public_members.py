"""What `import ltxq` offers: exactly the documented names, each with its docstring, and quickly."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from typing import Any

import pytest

import ltxq
from ltxq import errors

HEAVY = ("torch", "numpy", "celery", "kombu", "redis", "boto3", "botocore", "ltxq_worker")
EXTRAS = ("boto3", "botocore", "torch", "av", "numpy", "transformers", "huggingface_hub")


def run(program: str) -> str:
    """Standard output of a Python of its own, which must end well."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def without_docstring(value: Any, name: str) -> list[str]:
    """`name` and its public members that a user would look up in vain."""
    found = [] if inspect.getdoc(value) else [name]
    if inspect.isclass(value):
        for member, inner in vars(value).items():
            function = inspect.unwrap(getattr(inner, "__func__", inner))
            if not member.startswith("_") and inspect.isfunction(function) and not function.__doc__:
                found.append(f"{name}.{member}")
    return found


def test_the_docstring_names_exactly_what_is_public() -> None:
    assert ltxq.__doc__ is not None
    table = ltxq.__doc__.rsplit("\n\n", 1)[1].strip()
    named = {
        name for line in table.splitlines() for name in re.findall(r"\w+", line.split("   ")[0])
    }
    errors_of_it = {"JobError", "LtxqError"}  # in `errors`, and here since they are seen so often
    assert set(ltxq.__all__) == named | errors_of_it
    assert list(ltxq.__all__) == sorted(ltxq.__all__)


@pytest.mark.parametrize("name", ltxq.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert without_docstring(getattr(ltxq, name), name) == []


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        ltxq.Cleint  # noqa: B018


def test_every_error_is_documented() -> None:
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, errors.LtxqError):
            assert value.__doc__, name


def test_an_async_client_can_do_what_a_client_can() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in vars(kind).items()
            if not name.startswith("_")
        }

    assert methods(ltxq.AsyncClient) == methods(ltxq.Client)


@pytest.mark.parametrize(
    "program",
    [
        "import ltxq",
        "from ltxq import VideoRequest, Job, errors",
        "from ltxq.cli import main; main(['--help'])",
        "from ltxq.cli import main; main(['worker', '--help'])",
    ],
)
def test_a_quick_start_loads_nothing_heavy(program: str) -> None:
    loaded = run(f"import sys\n{program}\nprint('loaded:', *sys.modules)").split("loaded:")[1]
    assert {name.partition(".")[0] for name in loaded.split()}.isdisjoint(HEAVY)


def test_a_client_of_redis_loads_no_http() -> None:
    loaded = run("import sys, ltxq.client\nprint('loaded:', *sys.modules)").split("loaded:")[1]
    assert {name.partition(".")[0] for name in loaded.split()}.isdisjoint({"httpx2", "boto3"})


def test_a_client_is_made_without_any_extra() -> None:
    program = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import ltxq
from ltxq.settings import Settings
with ltxq.Client(settings=Settings()):
    pass
assert "httpx2" not in sys.modules, "only a client over HTTP needs that"
try:
    ltxq.Client(settings=Settings(s3_bucket="clips"))
except ltxq.errors.MissingExtra as exc:
    print(exc)
"""
    assert "pip install 'ltxq[s3]'" in run(program)
