"""Commands that do the work on this machine. They live in the worker's package, which this module
alone loads, by name, and says which extra is missing where it cannot run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from ltxq.cli import screen
from ltxq.cli.options import AsJson, request_options
from ltxq.errors import MissingExtra
from ltxq.settings import Settings

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

Gpus = Annotated[str, typer.Option(help="all, cpu, or a list like 0,1.")]


@contextmanager
def _commands(what: str, module: str = "cli.commands") -> Iterator[Any]:
    """The worker's commands; a package they miss, here or as they run, is named by its extra."""
    try:
        yield import_module(f"ltxq_worker.{module}")
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing in ("ltxq", "ltxq_worker"):
            raise
        raise MissingExtra(what, "all" if what in ("ltxq demo", "ltxq up") else "worker") from exc


def demo(
    prompt: Annotated[str, typer.Argument(help="What the clip shows.")] = _PROMPT,
    as_json: AsJson = False,
) -> None:
    """Make one clip on this machine: start Redis, an S3 server and a worker, and stop them.

    The model is tiny and has random weights, so the picture is abstract, whatever the prompt says.
    The clip is saved under ./clips.
    """
    with _commands("ltxq demo") as commands:
        commands.demo(prompt, as_json=as_json)


def up(
    data: Annotated[Path, typer.Option(help="Folder for jobs and clips.")] = Path("ltxq-data"),
    model: Annotated[str, typer.Option(help="Model; the tiny one is made on first use.")] = "tiny",
    gpus: Annotated[
        str | None, typer.Option(help="all, cpu, or a list like 0,1 [default: all; cpu for tiny]")
    ] = None,
    redis_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="0: any free port [default: 6379 if free; the choice is kept]"
        ),
    ] = None,
    s3_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="0: any free port [default: 9000 if free; the choice is kept]"
        ),
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="0: any free port [default: 8080 if free; the choice is kept]"
        ),
    ] = None,
    flower_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="0: any free port [default: 5555 if free; the choice is kept]"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a queue, a worker and the HTTP gateway with its page on this machine until Ctrl-C.

    Redis, an S3 server and Flower come with it. Jobs and clips are kept in one folder and are there
    again the next time.
    """
    given = {
        "redis_port": redis_port,
        "s3_port": s3_port,
        "http_port": http_port,
        "flower_port": flower_port,
    }
    ports = {name: port for name, port in given.items() if port is not None}
    with _commands("ltxq up") as commands:
        commands.up(data, model=model, gpus=gpus, ports=ports, as_json=as_json)


def worker(
    model: Annotated[
        str | None, typer.Option(help="A folder of LTXQ_MODEL_DIR [default: LTXQ_DEFAULT_MODEL]")
    ] = None,
    gpus: Gpus = "all",
    name: Annotated[
        str | None,
        typer.Option(help="Name of this host, stable over restarts [default: the host name]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make clips from the queue until SIGTERM or Ctrl-C.

    The first signal finishes running jobs; a second one gives them back to the queue.
    """
    with _commands("ltxq worker") as commands:
        code = commands.worker(model=model, gpus=gpus, name=name, as_json=as_json)
    raise typer.Exit(code)


@request_options(without=_ON_THE_QUEUE)
def generate(
    prompt: Annotated[str, typer.Argument(help="What the clip shows.")],
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
    with _commands("ltxq generate", "cli.models") as commands:
        commands.generate(
            {"prompt": prompt, **fields},
            output=output,
            model=model,
            device=device,
            frames_out=frames_out,
            as_json=as_json,
        )


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
        with _commands("ltxq doctor", "doctor") as worker:
            checks += worker.WorkerChecks.of(settings, model, size, hashes).all()
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
def model_tiny(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    kind: Annotated[
        str, typer.Option(help="The checkpoint it is shaped as: ltx-2-19b or ltx-2.3-22b.")
    ] = "ltx-2-19b",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write a model of a few megabytes with random weights, for trying things on any computer."""
    with _commands("ltxq model tiny", "cli.models") as commands:
        commands.model_tiny(folder, kind=kind, seed=seed, as_json=as_json)


@models.command("download")
def model_download(
    name: Annotated[str, typer.Argument(help="As `ltxq model list` shows it.")],
    as_json: AsJson = False,
) -> None:
    """Download a model into LTXQ_MODEL_DIR. Continues a broken download."""
    with _commands("ltxq model download", "cli.models") as commands:
        commands.model_download(name, as_json=as_json)


@models.command("list")
def model_list(as_json: AsJson = False) -> None:
    """List the models in LTXQ_MODEL_DIR and the models that ltxq can download."""
    with _commands("ltxq model list", "cli.models") as commands:
        commands.model_list(as_json=as_json)


@models.callback(invoke_without_command=True)
def _show_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        screen.say(*context.get_help().splitlines())
