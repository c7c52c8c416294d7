"""Writes what the documents take from the code and from bench/results/: the pages settings.md and
cli.md, and the tables between `<!-- table: NAME -->` and `<!-- end -->` of the others.

    python docs/generate.py            write (make fix)
    python docs/generate.py --check    name what is out of date, and fail (make check)
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent / part) for part in (".", "producer", "worker")]

import typer
from pydantic import SecretStr

from bench.harness import cpu_tables, tables
from ltxq import cli
from ltxq.ledger.permissions import acl_line
from ltxq.settings import Settings
from ltxq.storage import OPERATIONS, policy

WIDTH = 88  # characters of a help text

SETTINGS_HEAD = """# Settings

ltxq reads its settings from the environment, in producers, gateways and workers alike.
An empty value counts as unset. This page is generated from the code.
"""

SETTINGS_TAIL = """
## Read by the libraries below

| variable | meaning |
|---|---|
| `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_DEFAULT_REGION` | Credentials and region of the storage. boto3 also reads profiles and roles. |
| `AWS_SESSION_TOKEN`, `AWS_CREDENTIAL_EXPIRATION` | Of session credentials, and when they end; URLs end with them. |
| `AWS_CA_BUNDLE` | CA bundle (PEM) for an https:// storage server. |
| `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY` | HTTP proxy (no SOCKS) for a gateway, the storage and the \
hub. This machine's own servers are reached without it. |
| `HF_TOKEN` | Hugging Face token with the role *read*, for `ltxq model download`. |
| `HF_ENDPOINT` | A mirror of the Hugging Face hub. |
| `HF_HOME`, `HF_HUB_CACHE` | The Hugging Face cache; `ltxq model download` uses the files that it holds. |
| `PYTORCH_CUDA_ALLOC_CONF` | The worker sets `expandable_segments:True` unless you set it. |
| `TORCHINDUCTOR_CACHE_DIR` | Folder for compiled code; default `~/.cache/ltxq/compiled`, or `compiled` in a worker's spool if that is not writable. |
| `LTXQ_DEBUG` | `1`: a failed `ltxq` command prints its traceback. |
"""

CLI_HEAD = """# The `ltxq` command

With `--json` a command prints one JSON object and nothing else, an error as
`{"error": {"code", "message", "hint", "retryable"}}`. This page is generated from the code.

With `ltxq up` running:

```sh
id=$(ltxq submit "waves at dusk" --width 512 --height 320 --num-frames 49 --seed random)
ltxq status "$id"
ltxq watch "$id"
ltxq list --state succeeded --limit 5
again=$(ltxq retry "$id")
ltxq cancel "$again"
ltxq delete "$id"
echo '{"prompt": "a paper boat", "num_frames": 9, "idempotency_key": "boat-1"}' | ltxq batch -
```

Without a queue:

```sh
ltxq model list
ltxq model tiny tiny
ltxq generate "a paper boat" -o boat.mp4 --model tiny --width 256 --height 256 --num-frames 9 --stages 2
```

If the queue becomes unavailable during a `batch`, its message says how to continue: with `--from-line` and the file's
`--idempotency-key` no line makes a second job.
"""


def main() -> int:
    """Write the documents, or with --check compare them. Returns the exit code."""
    stale = [(p, text) for p, text in documents() if not p.exists() or p.read_text() != text]
    check = "--check" in sys.argv[1:]
    for path, text in stale:
        if check:
            print(f"{path.relative_to(DOCS.parent)} is out of date: run make fix.")
        else:
            path.write_text(text)
    return int(check and bool(stale))


def documents() -> Iterator[tuple[Path, str]]:
    """Each document that has generated parts, and what it must be."""
    yield DOCS / "settings.md", settings_page()
    yield DOCS / "cli.md", cli_page()
    makers = {**cpu_tables.TABLES, **tables.TABLES, **RIGHTS}
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text()
        if "<!-- table: " in text:
            yield path, filled(text, makers)


def filled(text: str, makers: dict[str, Callable[[], str]]) -> str:
    """The text with each marked table made anew."""

    def make(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n\n{makers[match[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", make, text, flags=re.DOTALL)


def calls_table() -> str:
    """The operations of S3 that each role makes."""
    rows = [
        f"| `{one.name}` | `{one.action}` | {one.worker or '–'} | {one.gateway or '–'} |"
        for one in OPERATIONS
    ]
    head = "| call | right | worker and supervisor | gateway, `Client` over Redis |"
    return "\n".join([head, "|---|---|---|---|", *rows])


def policy_block(role: Any) -> str:
    """The IAM policy of a role, for the bucket `clips`."""
    return f"```json\n{json.dumps(policy(role, 'clips', 'ltxq/'), indent=2)}\n```"


def redis_acl() -> str:
    """The ACL users of docs/operating.md, one for each role."""
    roles = ("worker", "gateway", "client", "flower")
    lines = [f"ACL SETUSER ltxq-{role} reset on >PASSWORD {acl_line(role)}" for role in roles]
    return "\n".join(["```text", *lines, "```"])


RIGHTS = {
    "storage_calls": calls_table,
    "policy_worker": lambda: policy_block("worker"),
    "policy_gateway": lambda: policy_block("gateway"),
    "redis_acl": redis_acl,
}


def settings_page() -> str:
    """A table of the settings for each role."""
    page = SETTINGS_HEAD
    for role in Settings.__bases__:
        rows = [
            f"| `LTXQ_{name.upper()}` | {_default(field.default)} | {field.description} |"
            for name, field in Settings.model_fields.items()
            if _role_of(name) is role
        ]
        title = (role.__doc__ or "").split("\n")[0].rstrip(".")
        head = f"\n## {title}\n"
        page += "\n".join([head, "| variable | default | meaning |", "|---|---|---|", *rows, ""])
    return page + SETTINGS_TAIL


def _role_of(name: str) -> type:
    """The class that defines the field."""
    return next(c for c in Settings.__mro__ if name in inspect.get_annotations(c))


def _default(value: Any) -> str:
    if value in (None, (), {}):
        return "unset"
    plain = value.get_secret_value() if isinstance(value, SecretStr) else value
    return f"`{plain:g}`" if isinstance(plain, float) else f"`{plain}`"


def cli_page() -> str:
    """The help text of `ltxq`, and of each of its commands."""
    root: Any = typer.main.get_command(cli._app())
    page = f"{CLI_HEAD}\n```text\n{_help(root, 'ltxq')}\n```\n"
    for name, command in _commands(root, "ltxq"):
        page += f"\n## {name}\n\n```text\n{_help(command, name)}\n```\n"
    return page


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _help(command: Any, path: str) -> str:
    context = command.context_class(
        command, info_name=path, terminal_width=WIDTH, max_content_width=WIDTH
    )
    text: str = command.get_help(context)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).rstrip()


if __name__ == "__main__":
    sys.exit(main())
