"""`ltxq demo`, `ltxq up` and `ltxq worker`: a queue, or its worker, on this machine. No torch.

`ltxq.cli.machine` declares the commands and calls these functions by name.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2

import ltxq
from ltxq.cli import screen
from ltxq.cli.machine import TINY, TINY_SIZE
from ltxq.cli.outputs import unfinished, writable_folder
from ltxq.errors import LtxqError, ModelUnusable, WaitTimeout
from ltxq.job import Job, VideoRequest
from ltxq.logs import set_up_logging
from ltxq.settings import Settings
from ltxq_worker.embedded.stack import USUAL_PORTS, Stack, held_signals
from ltxq_worker.pipeline.registry import family_of, model_folder, suits_a_cpu
from ltxq_worker.supervisor.child import find_slots

DEMO_SECONDS = 600.0  # for the whole demo; it takes about twenty on two cores
FETCH_TIMEOUT = 30.0  # seconds without a byte

TINY_FILES = {"checkpoint.safetensors", "spatial_upsampler.safetensors", "gemma"}


def demo(prompt: str, *, as_json: bool) -> None:
    """Start everything in a temporary folder, make one clip, save it, stop everything."""
    request = VideoRequest.parse(
        {"prompt": prompt, "model": TINY, "width": 256, "height": 256, "num_frames": 33}
    )
    screen.note(
        "This demo runs Redis, an S3 server and one worker on this machine, on the CPU.",
        "Its model is tiny and has random weights: the picture and the sound are abstract,",
        "whatever the prompt says. All else is as it is with the real models.",
        "",
    )
    settings, clips = Settings.read(), Path("clips")
    model_folder(settings, TINY)
    writable_folder(clips, "", make=True)
    free = dict.fromkeys(USUAL_PORTS, 0)
    with (
        tempfile.TemporaryDirectory(prefix="ltxq-demo-") as folder,
        Stack(Path(folder), model=TINY, ports=free) as stack,
    ):
        ensure_tiny(settings)
        log = Path(folder) / "worker.log"
        stack.start_worker(model=TINY, gpus="cpu", log=log)
        try:
            job = _made(request, stack)
        except LtxqError:
            last = log.read_text(errors="replace").splitlines()[-20:]
            screen.note("The worker's log ends:", *last)
            raise
        result = job.result_or_raise()
        answer = httpx2.get(result.url, timeout=FETCH_TIMEOUT, trust_env=False).raise_for_status()
        clips.mkdir(exist_ok=True)
        file = clips.absolute() / f"{job.id}.mp4"
        with unfinished(clips) as part:
            (part / file.name).write_bytes(answer.content)
            (part / file.name).replace(file)
    if as_json:
        screen.emit({"job": job.model_dump(mode="json"), "file": str(file)})
        return
    size = f"{result.duration:.1f} s of {result.width}×{result.height}"
    shown = f"“{request.prompt}”: {size}, seed {result.seed}."
    screen.note("", shown)
    screen.say(f"URL   {result.url}")
    screen.say(f"File  {file}")
    screen.note(
        "The URL stopped working with the demo; the file stays. Next: ltxq up, and README.md."
    )


def _made(request: VideoRequest, stack: Stack) -> Job:
    """Submit the request and wait for its job, with a progress bar."""
    deadline = time.monotonic() + DEMO_SECONDS
    with ltxq.Client() as client, screen.Bar() as bar:
        bar.at("starting the worker", 0)
        job = client.submit(request)
        while not job.finished:
            stack.check()
            try:
                for seen in client.watch(job.id, timeout=2):
                    job = seen
                    if job.state != "queued":
                        screen.show_job(bar, job)
            except WaitTimeout:
                if time.monotonic() > deadline:
                    raise
    return job


def up(data: Path, *, model: str, gpus: str | None, as_json: bool, **ports: int | None) -> None:
    """Run servers and a worker on `data` until a signal asks to stop.

    Args:
        ports: as `Stack` takes them; None: not given.
    """
    settings = Settings.read()
    folder = model_folder(settings, model)
    on_cpu = model == TINY or suits_a_cpu(family_of(model).open(folder))
    gpus = gpus or ("cpu" if on_cpu else "all")
    find_slots(gpus, "local")  # before anything is started
    chosen = {name: port for name, port in ports.items() if port is not None}
    with Stack(data, model=model, ports=chosen, gateway=True) as stack:
        if model == TINY:
            ensure_tiny(settings)
        files = family_of(model).open(folder)
        stack.start_worker(model=model, gpus=gpus)
        url = stack.start_gateway()
        flower = stack.start_flower()
        file = stack.write_environment()
        if as_json:
            about = {"data": str(stack.folder), "environment_file": str(file), "model": model}
            servers = {"redis_port": stack.redis.port, "s3_endpoint": stack.s3.endpoint}
            screen.emit(about | servers | {"url": url, "api": f"{url}/v1", "flower": flower})
        else:
            _welcome(stack, file, model, url, flower)
            if files is not None and files.tiny:
                screen.say(
                    "The tiny model has random weights: its pictures are abstract. For the real "
                    "ones see `ltxq model list`."
                )
            sys.stdout.flush()
        # Signals are held from here on: an unheld one would end Redis before the worker.
        with held_signals():
            stack.check()  # a child that ended before the signals were held
            stack.wait_for_stop()
            screen.note("Stopping after the running job; Ctrl-C again gives it back to the queue.")
            stack.close()
    screen.note(f"Stopped. Jobs and clips are kept in {stack.folder}.")


def _welcome(stack: Stack, file: Path, model: str, url: str, flower: str) -> None:
    program = "ltxq" if shutil.which("ltxq") else f"{shlex.quote(sys.executable)} -m ltxq"
    screen.say(
        f"  Page     {url}/",
        f"  API      {url}/v1, described at {url}/docs",
        f"  Flower   {flower}/",
        f"  Redis    port {stack.redis.port}",
        f"  S3       {stack.s3.endpoint}",
        f"  Worker   loads {model}",
        "",
        "In another terminal:",
        "",
        f"  . {shlex.quote(str(file))}",
        f"  {program} submit 'a red fox in the snow' --wait",
        "",
        f"Clips are files under {stack.folder / 's3' / stack.s3.bucket}. Ctrl-C stops everything; "
        "jobs and clips are kept.",
    )


def worker(*, model: str | None, gpus: str, name: str | None, managed: bool, as_json: bool) -> int:
    """Run a supervisor in this process; returns its exit code."""
    from ltxq_worker.supervisor import supervisor

    settings = Settings.read()
    model = model or settings.default_model
    set_up_logging(settings.log)
    code = supervisor.main(settings, model=model, gpus=gpus, name=name, managed=managed)
    if as_json:
        screen.emit({"model": model, "exit_code": code})
    return code


def ensure_tiny(settings: Settings) -> None:
    """Make the tiny model in LTXQ_MODEL_DIR if it is missing, which takes seconds.

    One that another version made and this one cannot use is made again.
    """
    from ltxq_worker.models.files.folder import ModelFolder

    folder = model_folder(settings, TINY)
    try:
        ModelFolder.open(folder)
    except ModelUnusable:
        writable_folder(folder.parent, "LTXQ_MODEL_DIR", size=TINY_SIZE, make=True)
        if os.path.lexists(folder):
            if not _is_a_tiny_model(folder):
                raise  # the user's own folder or file of that name
            shutil.rmtree(folder)
        screen.note(f"Making the tiny model in {folder} …")
        # In a separate process, so that this long-lived one does not load torch.
        command = [sys.executable, "-P", "-m", "ltxq", "model", "tiny", str(folder)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode and not folder.exists():  # another process may have made it meanwhile
            raise LtxqError(f"The tiny model was not made: {made.stderr.strip()}") from None


def _is_a_tiny_model(folder: Path) -> bool:
    """Whether nothing is in a folder but what ltxq has made, whole or damaged."""
    from ltxq_worker.models.files.header import SafetensorsHeader
    from ltxq_worker.models.files.identify import config_of, is_a_work

    names = set(os.listdir(folder)) if folder.is_dir() else {"a file"}
    checkpoint = folder / "checkpoint.safetensors"
    if not names <= TINY_FILES or (names and not checkpoint.is_file()):
        return False
    try:
        return bool(config_of(SafetensorsHeader.read(checkpoint, "")).get("random_weights"))
    except ModelUnusable:
        return not is_a_work(checkpoint)
