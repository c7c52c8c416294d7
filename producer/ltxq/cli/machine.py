"""Commands that need the worker's package: their parameters and help texts are here, their bodies
there.

Only this module loads that package, by name, and it names the extra that is not installed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from ltxq.cli import screen
from ltxq.cli.options import AsJson, Prompt, request_options
from ltxq.errors import MissingExtra
from ltxq.settings import Settings

TINY = "tiny"  # the model that `ltxq demo` and `ltxq up` make themselves
TINY_SIZE = 20_000_000  # bytes on disk of a tiny model, rounded up
_PROMPT = "a paper boat drifts down a rain gutter, warm evening light, slow camera"
_ON_THE_QUEUE = (
    "model",
    "priority",
    "timeout",
    "expires_in",
    "metadata",
    "webhook_url",
    "not_before",
    "start_within",
)


def _port(usual: int) -> Any:
    text = f"0: any free port [default: {usual} if free; the choice is kept]"
    return typer.Option(min=0, max=65535, help=text)


@contextmanager
def _worker_module(module: str, command: str, extra: str = "worker") -> Iterator[Any]:
    """A module of the worker. A package that is missing, now or later, is reported by its extra."""
    try:
        yield import_module(f"ltxq_worker.{module}")
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing in ("ltxq", "ltxq_worker"):
            raise
        raise MissingExtra(command, extra, missing) from exc


def _runs(module: str, extra: str = "worker") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a declaration its body: the function of the same name in `module` of the worker.

    The function takes the declared parameters by name, and may return an exit code.
    """

    def decorate(declared: Callable[..., Any]) -> Callable[..., Any]:
        name = declared.__name__

        @functools.wraps(declared)
        def run(**given: Any) -> Any:
            with _worker_module(module, f"ltxq {name.replace('_', ' ')}", extra) as found:
                return getattr(found, name)(**given)

        return run

    return decorate


@_runs("cli.commands", extra="all")
def demo(
    prompt: Prompt = _PROMPT,
    as_json: AsJson = False,
) -> None:
    """Make one clip on this machine: start Redis, an S3 server and a worker, and stop them.

    The model is tiny and has random weights, so the picture is abstract, whatever the prompt says.
    The clip is saved under ./clips.
    """


@_runs("cli.commands", extra="all")
def up(
    data: Annotated[Path, typer.Option(help="Folder for jobs and clips.")] = Path("ltxq-data"),
    model: Annotated[str, typer.Option(help="Model; the tiny one is made on first use.")] = TINY,
    gpus: Annotated[
        str | None, typer.Option(help="all, cpu, or a list like 0,1 [default: all; cpu for tiny]")
    ] = None,
    redis_port: Annotated[int | None, _port(6379)] = None,
    s3_port: Annotated[int | None, _port(9000)] = None,
    http_port: Annotated[int | None, _port(8080)] = None,
    flower_port: Annotated[int | None, _port(5555)] = None,
    as_json: AsJson = False,
) -> None:
    """Run a queue, a worker and the HTTP gateway with its page on this machine until Ctrl-C.

    Redis, an S3 server and Flower come with it. Jobs and clips are kept in one folder and are there
    again the next time.
    """


@_runs("cli.commands")
def worker(
    model: Annotated[
        str | None, typer.Option(help="A folder of LTXQ_MODEL_DIR [default: LTXQ_DEFAULT_MODEL]")
    ] = None,
    gpus: Annotated[str, typer.Option(help="all, cpu, or a list like 0,1.")] = "all",
    name: Annotated[
        str | None,
        typer.Option(help="Name of this host, stable over restarts [default: the host name]"),
    ] = None,
    managed: Annotated[bool, typer.Option("--managed", hidden=True)] = False,
    as_json: AsJson = False,
) -> None:
    """Make clips from the queue until SIGTERM, SIGHUP or Ctrl-C.

    The first signal finishes running jobs; a second one gives them back to the queue.
    """


@request_options(without=_ON_THE_QUEUE)
@_runs("cli.models")
def generate(
    prompt: Prompt,
    *,
    fields: dict[str, Any],
    output: Annotated[Path, typer.Option("--output", "-o", help="The MP4 to write.")],
    model: Annotated[str, typer.Option(help="A model's folder, or its name in LTXQ_MODEL_DIR.")],
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:1 [default: cuda if available]")
    ] = None,
    frames_out: Annotated[
        Path | None,
        typer.Option(help="Also write the frames: a NumPy file, uint8 [frames, height, width, 3]."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make one clip in this process, without a queue."""


def doctor(
    model: Annotated[
        str | None,
        typer.Option(help="Model of this machine's workers [default: LTXQ_DEFAULT_MODEL]"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Size to check against the card: 768x512x121, or 1536x1024x121x2 for two stages."
        ),
    ] = None,
    hashes: Annotated[
        bool,
        typer.Option(
            "--hashes", help="Check the hashes of the model's files, which takes minutes."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check this installation, and say what to do. Exits with 1 if there is a problem.

    It looks at Redis, the storage and, where the worker is installed, at GPU, torch and model.
    """
    from ltxq.ops import doctor as base

    settings = Settings.read()
    checks = base.base_checks(settings)
    if model or size or hashes or find_spec("torch"):
        with _worker_module("doctor", "ltxq doctor") as found:
            checks += found.WorkerChecks.of(settings, model, size, hashes).all()
    else:
        checks += (("Worker", base.no_worker),)
    findings = []
    for finding in base.examine(settings, checks):
        findings.append(finding)
        if not as_json:
            screen.finding(finding)
    well = not any(finding.status == "problem" for finding in findings)
    if as_json:
        screen.emit({"ok": well, "findings": [dataclasses.asdict(f) for f in findings]})
    raise typer.Exit(0 if well else 1)


models = typer.Typer(help="The models on this machine.", rich_markup_mode=None)


@models.command("tiny")
@_runs("cli.models")
def model_tiny(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    kind: Annotated[
        str, typer.Option(help="The checkpoint it is shaped as: ltx-2-19b or ltx-2.3-22b.")
    ] = "ltx-2-19b",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write a model of a few megabytes with random weights, for trying things on any computer."""


@models.command("download")
@_runs("cli.models")
def model_download(
    name: Annotated[str, typer.Argument(help="As `ltxq model list` shows it.")],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare the content of every file again; takes minutes."),
    ] = False,
    update: Annotated[
        bool,
        typer.Option("--update", help="Download the files that have changed on the hub."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Download or repair a model in LTXQ_MODEL_DIR. Continues an interrupted download.

    Replaces each file whose size or hash differs from the hub's. A verified file is not compared
    again while its size and time stay the same. A model keeps the revision that it was downloaded
    from. gemma-3-12b-it is the text encoder alone.
    """


@models.command("list")
@_runs("cli.models")
def model_list(as_json: AsJson = False) -> None:
    """List the models in LTXQ_MODEL_DIR and the models that ltxq can download."""


@models.callback(invoke_without_command=True)
def _show_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        screen.say(*context.get_help().splitlines())
