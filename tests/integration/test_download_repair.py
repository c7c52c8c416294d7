"""A model that is not whole is repaired by the command that its error names; nothing else is taken
for the hub's files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import model_files
from fleet import eventually
from ltxq.errors import ModelUnusable
from ltxq_worker import doctor
from ltxq_worker.models.files.folder import ModelFolder
from model_hub import (
    CHECKPOINT,
    DOWNLOAD,
    FILES,
    GEMMA,
    LTX,
    MODEL,
    SHA,
    TOKEN,
    UPSCALER,
    Hub,
    download,
    environment,
    held,
    published,
    run,
    serve,
)
from variants import variants

ENCODER = "gemma-3-12b-it"
OLD = "b" * 40
REAL = published()
CONTENT = REAL[LTX][CHECKPOINT]
Change = Callable[[Path], object]


@pytest.fixture(autouse=True)
def real_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub has a model that can be opened."""
    for repo, files in REAL.items():
        monkeypatch.setitem(FILES, repo, files)


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it was downloaded."""
    folder = tmp_path_factory.mktemp("downloaded")
    with serve() as hub, pytest.MonkeyPatch.context() as patch:
        for repo, files in REAL.items():
            patch.setitem(FILES, repo, files)
        assert "folder" in download(hub, folder)
    return folder / "models"


@pytest.fixture
def models(downloaded: Path, tmp_path: Path) -> Path:
    """A copy of it, with the files' times."""
    return Path(shutil.copytree(downloaded, tmp_path / "models"))


def kept(models: Path) -> dict[str, bytes]:
    """Files that may be somebody's and were moved aside, by name."""
    return {path.name: path.read_bytes() for path in models.glob("*/*.old*")}


def whole(models: Path) -> bool:
    """Whether the model can be opened and every byte is the hub's, beside what is `kept`."""
    ModelFolder.open(models / MODEL)
    found = {name: data for name, data in held(models.parent).items() if ".old" not in name}
    return found == {
        **{f"{MODEL}/{name}": content for name, content in REAL[LTX].items()},
        **{f"{ENCODER}/{name}": content for name, content in REAL[GEMMA].items()},
    }


def same_size(content: bytes) -> bytes:
    """Another content of that size, with the same header."""
    return content[:-1] + bytes([content[-1] ^ 1])


def write(name: str, content: bytes) -> Change:
    return lambda models: (models / name).write_bytes(content)


def only_config(models: Path) -> None:
    shutil.rmtree(models / MODEL)
    model_files.write(models / MODEL / "config.json", {})


def replace_by(name: str, change: Change) -> Change:
    def run(models: Path) -> None:
        (models / name).unlink()
        change(models / name)

    return run


def other_model(models: Path) -> None:
    tensors = model_files.checkpoint_tensors(newer=True)
    model_files.safetensors(models / MODEL / CHECKPOINT, tensors, model_files.CONFIG, "2.3.0")


SHARD = "model-00002-of-00002.safetensors"
DAMAGE: dict[str, Change] = {
    "no folder": lambda models: shutil.rmtree(models / MODEL),
    "no text encoder": lambda models: shutil.rmtree(models / ENCODER),
    "nothing at all": lambda models: shutil.rmtree(models),
    "config.json alone": only_config,
    "checkpoint cut short": write(f"{MODEL}/{CHECKPOINT}", CONTENT[:-9]),
    "checkpoint too long": write(f"{MODEL}/{CHECKPOINT}", CONTENT + b"<html>"),
    "checkpoint empty": write(f"{MODEL}/{CHECKPOINT}", b""),
    "checkpoint of zeros": write(f"{MODEL}/{CHECKPOINT}", bytes(len(CONTENT))),
    "checkpoint a page": write(f"{MODEL}/{CHECKPOINT}", b"<html>Sign in"),
    "checkpoint of another model": other_model,
    "upscaler another": lambda models: model_files.safetensors(
        models / MODEL / UPSCALER, model_files.upscaler_tensors("temporal"), {}
    ),
    "shard missing": lambda models: (models / ENCODER / SHARD).unlink(),
    "shard a dangling link": replace_by(f"{ENCODER}/{SHARD}", lambda p: p.symlink_to("/gone")),
    "shard a link to itself": replace_by(f"{ENCODER}/{SHARD}", lambda p: p.symlink_to(p)),
    "shard a pipe": replace_by(f"{ENCODER}/{SHARD}", os.mkfifo),
    "shard an empty folder": replace_by(f"{ENCODER}/{SHARD}", Path.mkdir),
    "shards swapped": write(f"{ENCODER}/{SHARD}", REAL[GEMMA][SHARD.replace("2-of", "1-of")]),
    "encoder of another size": lambda models: model_files.text_encoder(models / ENCODER, 32, 4),
    "config.json missing": lambda models: (models / ENCODER / "config.json").unlink(),
    "config.json damaged": write(f"{ENCODER}/config.json", b'{"model_'),
    "tokenizer.json missing": lambda models: (models / ENCODER / "tokenizer.json").unlink(),
    "tokenizer of another model": write(
        f"{ENCODER}/tokenizer.json", json.dumps(model_files.tokenizer(99)).encode()
    ),
    "index damaged": write(f"{ENCODER}/model.safetensors.index.json", b"{}"),
}

# What somebody has put there on purpose: it is kept.
PUT: dict[str, set[str]] = {
    "checkpoint of another model": {CHECKPOINT},
    "upscaler another": {UPSCALER},
    "encoder of another size": {"config.json"},
    "tokenizer of another model": {"tokenizer.json"},
}


USUAL = ("no folder", "config.json alone", "checkpoint cut short", "shard missing")
USUAL += ("encoder of another size", "shard an empty folder")


@pytest.mark.parametrize(
    "damage", variants(*USUAL, extended=tuple(name for name in DAMAGE if name not in USUAL))
)
def test_the_command_in_the_hint_repairs_the_model(
    hub: Hub, models: Path, tmp_path: Path, damage: str
) -> None:
    DAMAGE[damage](models)
    with pytest.raises(ModelUnusable) as caught:
        ModelFolder.open(models / MODEL)
    command = re.search(r"`(ltxq model download [\w.-]+)`", caught.value.hint)
    assert command, caught.value.hint
    stray = models / ENCODER / "model.safetensors"  # which the hub does not have
    if stray.exists():
        assert f"Move {stray.name} out of" in caught.value.hint
        stray.unlink()
    done = run(hub, tmp_path, command[1])
    assert done.returncode == 0, done.stderr
    if damage == "nothing at all":
        assert run(hub, tmp_path, f"ltxq model download {MODEL}").returncode == 0
    (models / MODEL / "config.json").unlink(missing_ok=True)
    assert whole(models)
    assert kept(models).keys() == {f"{name}.old" for name in PUT.get(damage, ())}


def write_behind_its_time(file: Path, content: bytes) -> None:
    """As a bad disk changes a file."""
    before = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def fetched(hub: Hub) -> list[str]:
    """The files that the hub sent."""
    return [path.rpartition("/")[2] for kind, path, _ in hub.asked if kind == "GET"
            and "/resolve/" in path]  # fmt: skip


def test_only_what_is_wrong_is_fetched(hub: Hub, models: Path, tmp_path: Path) -> None:
    (models / ENCODER / SHARD).write_bytes(b"cut")
    outcome = download(hub, tmp_path)
    assert fetched(hub) == [SHARD]
    assert f"{SHARD} has 3 bytes, the hub's" in outcome["notes"][0]
    assert outcome["told"][-1][0] == outcome["told"][-1][1]
    assert whole(models)


@pytest.mark.parametrize("name", [f"{MODEL}/{CHECKPOINT}", f"{ENCODER}/config.json"])
def test_other_content_of_the_same_size_is_found_by_its_hash(
    hub: Hub, models: Path, tmp_path: Path, name: str
) -> None:
    """A small file is known by git's hash, a large one by its SHA-256."""
    file = models / name
    file.write_bytes(same_size(file.read_bytes()))
    outcome = download(hub, tmp_path)
    assert fetched(hub) == [file.name]
    assert f"{file} has the hub's size and another content" in outcome["notes"][0]
    assert whole(models)


def test_content_that_changed_behind_its_time_is_found_by_verify(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    """The doctor's hint says how."""
    file = models / MODEL / CHECKPOINT
    write_behind_its_time(file, same_size(CONTENT))
    assert "folder" in download(hub, tmp_path)
    assert hub.asked == []
    found = [f for f in doctor.check_hashes(ModelFolder.open(models / MODEL)) if f.hint]
    assert [f.message.startswith(f"{file} is damaged") for f in found] == [True]
    command = re.search(r"`(ltxq [^`]+)`", found[0].hint)
    assert command
    assert command[1] == f"ltxq model download {MODEL} --verify"
    assert run(hub, tmp_path, command[1]).returncode == 0
    assert whole(models)
    assert kept(models) == {}


def test_damage_behind_a_file_s_time_that_shows_is_repaired_without_verify(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    write_behind_its_time(models / MODEL / CHECKPOINT, CONTENT[:20] + b"#" + CONTENT[21:])
    with pytest.raises(ModelUnusable, match="damaged header") as caught:
        ModelFolder.open(models / MODEL)
    assert f"`ltxq model download {MODEL}`" in caught.value.hint
    assert run(hub, tmp_path, f"ltxq model download {MODEL}").returncode == 0
    assert whole(models)


def test_a_stray_file_that_stays_in_the_way_is_named_after_the_download(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    """Nothing says "start a worker with it" that no worker starts with."""
    stray = models / MODEL / "mine.safetensors"
    shutil.copy(models / MODEL / CHECKPOINT, stray)
    done = run(hub, tmp_path, f"ltxq model download {MODEL}")
    assert done.returncode
    assert "Start a worker" not in done.stderr
    assert f"Keep {CHECKPOINT} in the folder, and move the rest out of it." in done.stderr
    stray.write_bytes(b"GGUF")
    done = run(hub, tmp_path, f"ltxq model download {MODEL}")
    assert f"{stray} is a GGUF file" in done.stderr
    assert f"Move it out of {models / MODEL}" in done.stderr
    stray.unlink()
    done = run(hub, tmp_path, f"ltxq model download {MODEL}")
    assert done.returncode == 0
    assert f"Start a worker with it: ltxq worker --model {MODEL}" in done.stderr


def test_a_file_of_the_hub_that_this_ltxq_cannot_use_does_not_lead_in_a_circle(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FILES, LTX, {**REAL[LTX], CHECKPOINT: b"of a newer format"})
    done = run(hub, tmp_path, f"ltxq model download {MODEL}")
    assert done.returncode
    assert f"{CHECKPOINT} is a text; a safetensors file is wanted." in done.stderr
    assert "upgrade ltxq" in done.stderr
    assert "model download" not in done.stderr.splitlines()[-1]


def test_what_was_compared_once_is_not_read_again(hub: Hub, models: Path, tmp_path: Path) -> None:
    """And a file with a new time is, without being fetched."""
    os.utime(models / MODEL / CHECKPOINT)
    assert "folder" in download(hub, tmp_path)
    assert [kind for kind, path, _ in hub.asked if "/resolve/" in path] == ["HEAD"] * 2
    hub.asked.clear()
    assert "folder" in download(hub, tmp_path)
    assert hub.asked == []


def test_a_model_from_before_the_record_is_compared_with_the_hub(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    for record in models.glob("*/.verified.json"):
        record.unlink()
    assert "folder" in download(hub, tmp_path)
    assert fetched(hub) == []
    assert len(list(models.glob("*/.verified.json"))) == 2
    assert whole(models)


@pytest.mark.parametrize("damaged", [False, True])
def test_without_the_hub_the_noted_hashes_are_compared(
    hub: Hub, models: Path, tmp_path: Path, damaged: bool
) -> None:
    for record in models.glob("*/.verified.json"):
        record.unlink()
    if damaged:
        (models / MODEL / CHECKPOINT).write_bytes(same_size(CONTENT))
    outcome = download(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert ("offline mode" in outcome.get("message", "")) == damaged
    if not damaged:
        assert any("The hub was not asked." in note for note in outcome["notes"])
        assert "folder" in download(hub, tmp_path, HF_HUB_OFFLINE="1")


def test_a_damaged_record_is_no_record(hub: Hub, models: Path, tmp_path: Path) -> None:
    for content in (b"", b"[]", b'{"repo": 1}', b"\xff" * 50, b"[" * 100_000):
        (models / MODEL / ".verified.json").write_bytes(content)
        hub.asked.clear()
        assert "folder" in download(hub, tmp_path)
        assert hub.asked
    assert whole(models)


# Files that ltxq did not download

MINE: dict[str, tuple[str, bytes]] = {
    "a fine-tune of the same size": (f"{MODEL}/{CHECKPOINT}", same_size(CONTENT)),
    "a GGUF": (f"{MODEL}/{CHECKPOINT}", b"GGUF\x03\0\0\0" + bytes(100)),
    "a configuration": (f"{ENCODER}/config.json", b'{"model_type": "gemma3", "mine": 1}'),
    "a tokenizer": (f"{ENCODER}/tokenizer.model", b"mine"),
}


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize(
    "mine",
    variants("a fine-tune of the same size", "a configuration", extended=("a GGUF", "a tokenizer")),
)
def test_a_file_that_ltxq_did_not_download_is_kept(
    hub: Hub, models: Path, tmp_path: Path, mine: str, record: bool
) -> None:
    """Whether ltxq downloaded another in its place before, or a person made the folder."""
    name, content = MINE[mine]
    file = models / name
    if not record:
        for path in (*models.glob("*/.verified.json"), *models.glob("*/SHA256SUMS")):
            path.unlink()
    file.write_bytes(content)
    outcome = download(hub, tmp_path)
    assert f"it is kept as {file.name}.old." in str(outcome["notes"])
    assert kept(models) == {f"{file.name}.old": content}
    assert whole(models)
    file.write_bytes(content)
    assert "folder" in download(hub, tmp_path)
    assert kept(models) == {f"{file.name}.old": content, f"{file.name}.old1": content}
    assert whole(models)


def test_update_keeps_what_ltxq_did_not_download(
    hub: Hub, old_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And replaces what it did."""
    newer(hub, monkeypatch)
    mine = model_files.safetensors(old_models / MODEL / UPSCALER, {"mine": (2,)}).read_bytes()
    os.utime(old_models / MODEL / CHECKPOINT)
    done = run(hub, tmp_path, f"ltxq model download {MODEL} --update")
    assert done.returncode == 0, done.stderr
    assert fetched(hub) == [CHECKPOINT, UPSCALER]
    assert kept(old_models) == {f"{UPSCALER}.old": mine}


@pytest.mark.parametrize("remains", [b"cut", b"", bytes(len(CONTENT)), CONTENT + b"<html>"])
def test_remains_of_another_program_s_download_are_replaced(
    hub: Hub, models: Path, tmp_path: Path, remains: bytes
) -> None:
    for path in (*models.glob("*/.verified.json"), *models.glob("*/SHA256SUMS")):
        path.unlink()
    (models / MODEL / CHECKPOINT).write_bytes(remains)
    (models / ENCODER / "config.json").write_bytes(b'{"model_')
    assert "folder" in download(hub, tmp_path)
    assert kept(models) == {}
    assert whole(models)


# Revisions


def newer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The hub gets a new commit with another checkpoint of the same size."""
    hub.older[OLD] = dict(FILES)
    changed = same_size(CONTENT)
    monkeypatch.setitem(FILES, LTX, {**REAL[LTX], CHECKPOINT: changed})
    return changed


@pytest.fixture
def old_models(models: Path) -> Path:
    for file in models.glob("*/.verified.json"):
        file.write_text(file.read_text().replace(SHA, OLD))
    return models


def test_a_model_stays_at_the_revision_it_is_from(
    hub: Hub, old_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer(hub, monkeypatch)
    (old_models / MODEL / CHECKPOINT).write_bytes(b"cut")
    assert "folder" in download(hub, tmp_path)
    assert fetched(hub) == [CHECKPOINT]
    assert whole(old_models)


def test_update_gets_what_changed_on_the_hub(
    hub: Hub, old_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = newer(hub, monkeypatch)
    done = run(hub, tmp_path, f"ltxq model download {MODEL} --update")
    assert done.returncode == 0, done.stderr
    assert fetched(hub) == [CHECKPOINT]
    assert (old_models / MODEL / CHECKPOINT).read_bytes() == changed
    assert kept(old_models) == {}
    assert json.loads((old_models / MODEL / ".verified.json").read_text())["revision"] == SHA
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    checked = subprocess.run(command, cwd=old_models / MODEL, capture_output=True, text=True)
    assert (checked.returncode, len(checked.stdout.splitlines())) == (0, 2)


def test_a_revision_that_is_gone_is_replaced_by_the_newest(
    hub: Hub, old_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = newer(hub, monkeypatch)
    hub.older.clear()
    (old_models / MODEL / UPSCALER).unlink()
    assert "folder" in download(hub, tmp_path)
    assert (old_models / MODEL / CHECKPOINT).read_bytes() == changed
    assert kept(old_models) == {}


def test_a_file_that_was_renamed_is_not_left_beside_the_new_one(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    """A newer ltxq may want another file; two checkpoints in one folder would not start. Nor would
    they after a download that was interrupted.
    """
    folder = models / MODEL
    (folder / CHECKPOINT).rename(folder / "former.safetensors")
    for name in (".verified.json", "SHA256SUMS"):
        content = (folder / name).read_text()
        (folder / name).write_text(content.replace(CHECKPOINT, "former.safetensors"))
    hub.older[SHA] = {}
    hub.newest = "c" * 40
    hub.older[SHA] = {**FILES, LTX: {"former.safetensors": CONTENT, UPSCALER: b"u"}}
    hub.damaged = True
    assert "arrived damaged" in download(hub, tmp_path)["message"]
    hub.damaged = False
    assert "folder" in download(hub, tmp_path)
    assert "former.safetensors" not in (folder / "SHA256SUMS").read_text()
    assert whole(models)


# Partial files


def part_of(folder: Path, name: str, content: bytes, of: bytes) -> Path:
    """A partial file with `content`, of a file that has the content `of`."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{name}.{hashlib.sha256(of).hexdigest()[:16]}"
    part.write_bytes(content)
    return part


def hidden(tmp_path: Path) -> Path:
    return tmp_path / "models" / f".downloading-{MODEL}"


def test_a_finished_file_of_an_older_upload_is_not_taken_for_the_new_one(
    hub: Hub, tmp_path: Path
) -> None:
    """It has the same length, and an earlier call noted its hash."""
    folder, old = hidden(tmp_path), same_size(CONTENT)
    folder.mkdir(parents=True)
    (folder / CHECKPOINT).write_bytes(old)
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(old).hexdigest()}  {CHECKPOINT}\n")
    assert "folder" in download(hub, tmp_path)
    assert whole(tmp_path / "models")
    sums = (tmp_path / "models" / MODEL / "SHA256SUMS").read_text()
    assert hashlib.sha256(old).hexdigest() not in sums
    assert hashlib.sha256(CONTENT).hexdigest() in sums


def test_stale_partial_files_are_removed(hub: Hub, models: Path, tmp_path: Path) -> None:
    """Of older uploads, of finished files, of models that are whole, of names that are gone."""
    stale = [
        part_of(hidden(tmp_path), CHECKPOINT, b"x" * 200_000, b"older"),
        part_of(models / MODEL, CHECKPOINT, b"x" * 200_000, b"older"),
        part_of(models / MODEL, UPSCALER, b"u", REAL[LTX][UPSCALER]),
        part_of(models / ".downloading-ltx-1", "old.safetensors", b"x", b"older"),
    ]
    mine = models / MODEL / ".notes"
    mine.write_text("not ltxq's")
    other = part_of(models / ".downloading-ltx-2.3-22b-distilled", "a.safetensors", b"x", b"y")
    os.utime(models / MODEL / CHECKPOINT)
    outcome = download(hub, tmp_path)
    assert not any(path.exists() for path in stale)
    assert any("of an earlier download" in note for note in outcome["notes"])
    assert mine.exists()
    assert other.exists()  # another model's download, which can go on
    assert not hidden(tmp_path).exists()


def test_leftovers_of_a_whole_model_are_removed_without_asking_the_hub(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    part_of(hidden(tmp_path), CHECKPOINT, b"x" * 200_000, b"older")
    assert "folder" in download(hub, tmp_path)
    assert not hidden(tmp_path).exists()
    assert hub.asked == []


def test_repair_goes_on_with_what_an_interrupted_download_has(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    (models / MODEL / CHECKPOINT).unlink()
    part_of(hidden(tmp_path), CHECKPOINT, CONTENT[:300], CONTENT)
    assert "folder" in download(hub, tmp_path)
    assert hub.ranges == ["bytes=300-"]
    assert whole(models)


def test_a_repair_that_was_interrupted_goes_on(hub: Hub, models: Path, tmp_path: Path) -> None:
    """The wrong file has the right size, and stays until the right one is there."""
    (models / MODEL / CHECKPOINT).write_bytes(same_size(CONTENT))
    part_of(models / MODEL, CHECKPOINT, CONTENT[:300], CONTENT)
    assert "folder" in download(hub, tmp_path)
    assert hub.ranges == ["bytes=300-"]
    assert whole(models)


@pytest.mark.parametrize(
    "begun",
    variants(CONTENT[:300], extended=(b"", b"<html>Sign in</html>", CONTENT * 2)),
)
@pytest.mark.parametrize(
    "oddity",
    ["", "ignores ranges", "refuses ranges", "answers another range", "compresses"],
)
def test_any_partial_file_and_any_answer_to_a_range_come_out_right(
    hub: Hub, tmp_path: Path, oddity: str, begun: bytes
) -> None:
    if begun:
        part_of(hidden(tmp_path), CHECKPOINT, begun, CONTENT)
    hub.oddity = oddity
    outcome = download(hub, tmp_path)
    assert "folder" in outcome, outcome
    assert whole(tmp_path / "models")
    assert outcome["told"][-1][0] == outcome["told"][-1][1]


@pytest.mark.parametrize(
    ("oddity", "says", "begun"),
    variants(
        ("sends a page", "sends a web page", 300),
        ("sends a page of no length", "ended before it was complete", 300),
        ("has another size", "has a file of 310 bytes instead of", 300),
        extended=(
            ("sends a page", "sends a web page", 0),
            ("sends a page as a file", "sends 20 bytes (HTTP 200) instead of", 0),
            ("sends a page as a file", "sends 20 bytes (HTTP 200) instead of", 300),
            ("sends a page of no length", "ended before it was complete", 0),
            ("sends more", "sends more than", 0),
            ("sends more", "sends more than", 300),
        ),
    ),
)
def test_what_another_server_sends_is_not_kept(
    hub: Hub, tmp_path: Path, oddity: str, says: str, begun: int
) -> None:
    """A page that was appended would be found only when 43 GB have arrived."""
    if begun:
        part = part_of(hidden(tmp_path), CHECKPOINT, CONTENT[:begun], CONTENT)
    hub.oddity = oddity
    outcome = download(hub, tmp_path)
    assert outcome["error"] == "HubUnavailable"
    assert outcome["retryable"]
    assert CHECKPOINT in outcome["message"]
    assert says in outcome["message"]
    assert held(tmp_path) == {}
    if begun and "of no length" not in oddity and oddity != "sends more":
        assert part.read_bytes() == CONTENT[:begun]
    hub.oddity = ""
    assert "folder" in download(hub, tmp_path)
    assert whole(tmp_path / "models")


@pytest.mark.parametrize(
    ("etags", "lists_hashes"),
    variants(("md5", True), ("sha1", False), extended=(("none", True), ("hub", False))),
)
def test_a_mirror_with_etags_of_its_own(
    hub: Hub, tmp_path: Path, etags: str, lists_hashes: bool
) -> None:
    hub.etags, hub.lists_hashes = etags, lists_hashes
    hub.damaged = True
    assert "arrived damaged" in download(hub, tmp_path)["message"]
    hub.damaged = False
    assert "folder" in download(hub, tmp_path)
    assert whole(tmp_path / "models")


def test_a_mirror_that_tells_neither_hash_nor_etag_is_no_hub(hub: Hub, tmp_path: Path) -> None:
    hub.etags, hub.lists_hashes = "none", False
    outcome = download(hub, tmp_path)
    assert outcome["error"] == "HubUnavailable"
    assert "lacks a size or an ETag" in outcome["message"]


def test_a_download_that_was_killed_goes_on(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = CONTENT + bytes(5 << 20)
    monkeypatch.setitem(FILES, LTX, {**REAL[LTX], CHECKPOINT: content})
    hub.stall_after = 3 << 20
    program = [sys.executable, "-c", DOWNLOAD, MODEL, str(tmp_path / "models")]
    with subprocess.Popen(program, env=environment(hub, tmp_path, TOKEN)) as process:
        assert hub.stalled.wait(60)
        (part,) = hidden(tmp_path).glob(f".{CHECKPOINT}.*")
        eventually(lambda: part.stat().st_size >= 2 << 20)
        process.kill()
    hub.stall_after = None
    begun = part.stat().st_size
    assert "folder" in download(hub, tmp_path)
    assert hub.ranges == [f"bytes={begun}-"]
    assert fetched(hub).count(CHECKPOINT) == 2
    assert (tmp_path / "models" / MODEL / CHECKPOINT).read_bytes() == content


@pytest.mark.parametrize(
    ("name", "value"),
    variants(
        ("HF_ENDPOINT", "http://[bad"),
        ("HTTPS_PROXY", "http://user:s3cret/part@127.0.0.1:9"),
        extended=(
            ("HF_ENDPOINT", "huggingface.co"),
            ("HF_ENDPOINT", "http://127.0.0.1:99999"),
            ("HF_ENDPOINT", "http://exa mple"),
            ("HF_ENDPOINT", "ftp://x"),
            ("https_proxy", "foo:bar://s3cret"),
            ("ALL_PROXY", "socks5://user:s3cret@127.0.0.1:9"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "abc"),
            ("HF_HUB_ETAG_TIMEOUT", ""),
            ("SSL_CERT_FILE", "/nonexistent"),
            ("SSL_CERT_FILE", "/proc/version"),
            ("SSL_CERT_FILE", "/"),
            ("SSL_CERT_DIR", "/nonexistent"),
        ),
    ),
)
def test_a_setting_of_the_hub_s_client_that_it_cannot_use(
    hub: Hub, tmp_path: Path, name: str, value: str
) -> None:
    """The client's own errors are taken for bugs of ltxq, and show parts of passwords."""
    done = run(hub, tmp_path, f"ltxq model download {MODEL}", **{name: value})
    assert done.returncode == 2, done.stderr
    assert f"Error: {name} " in done.stderr
    assert "s3cret" not in done.stderr
    assert hub.asked == []


@pytest.mark.parametrize("content", [b"\xff\xfe\0", None])
def test_a_file_of_the_token_that_cannot_be_read_is_named(
    hub: Hub, tmp_path: Path, content: bytes | None
) -> None:
    place = tmp_path / "token"
    place.mkdir() if content is None else place.write_bytes(content)
    outcome = download(hub, tmp_path, token=None, HF_TOKEN_PATH=str(place))
    assert outcome["error"] == "ConfigurationError"
    assert f"The file of the Hugging Face token, {place}, cannot be read" in outcome["message"]
    assert hub.asked == []


def test_a_disk_that_takes_no_large_file_is_named(hub: Hub, tmp_path: Path) -> None:
    """As FAT32 takes none above 4 GB. A user's limit gives the same error."""
    limited = ("sh", "-c", 'ulimit -f 16 && exec "$@"', "sh")
    command = f"ltxq model download {MODEL}"
    done = run(hub, tmp_path, command, before=limited, PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 4, done.stderr
    assert "refuses a file of that size" in done.stderr
    assert "set LTXQ_MODEL_DIR to another disk" in done.stderr
    assert run(hub, tmp_path, command).returncode == 0
    assert whole(tmp_path / "models")


# What is in the way


@pytest.mark.parametrize("name", [MODEL, ENCODER])
@pytest.mark.parametrize("link", [False, True])
def test_a_file_or_a_dead_link_in_place_of_a_folder_is_told_before_the_hub_is_asked(
    hub: Hub, tmp_path: Path, name: str, link: bool
) -> None:
    place = tmp_path / "models" / name
    place.parent.mkdir()
    place.symlink_to("/mnt/gone") if link else place.write_text("x")
    outcome = download(hub, tmp_path)
    assert outcome["error"] == "ConfigurationError"
    assert f"{place} is a" in outcome["message"]
    assert hub.asked == []
    command = re.search(r"(mv|rm) [^\s]+( [^\s.]+[^\s]*\.old)?", outcome["hint"])
    assert command
    subprocess.run(command[0].rstrip(".").split(), check=True, timeout=30)
    assert "folder" in download(hub, tmp_path)


def test_a_folder_with_files_in_place_of_a_file_is_told_before_anything_is_fetched(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    file = models / MODEL / CHECKPOINT
    file.unlink()
    model_files.write(file / "mine.txt", b"x")
    outcome = download(hub, tmp_path)
    assert outcome["error"] == "ConfigurationError"
    assert f"{file} is a folder; a file of" in outcome["message"]
    assert fetched(hub) == []
    subprocess.run(["mv", str(file), f"{file}.old"], check=True, timeout=30)
    assert f"mv {file} {file}.old" in outcome["hint"]
    assert "folder" in download(hub, tmp_path)
    assert whole_but_for(models, ".old")


def whole_but_for(models: Path, ending: str) -> bool:
    for path in models.glob(f"*/*{ending}"):
        shutil.rmtree(path)
    return whole(models)


def test_links_into_the_hubs_cache_are_used_and_never_written_through(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    """As people make them, to save a copy of 43 GB."""
    blob, wrong = tmp_path / "blob", tmp_path / "wrong"
    blob.write_bytes(CONTENT)
    wrong.write_bytes(b"another file")
    for name, target in ((CHECKPOINT, blob), (UPSCALER, wrong)):
        (models / MODEL / name).unlink()
        (models / MODEL / name).symlink_to(target)
    assert "folder" in download(hub, tmp_path)
    assert fetched(hub) == [UPSCALER]
    assert (models / MODEL / CHECKPOINT).is_symlink()
    assert wrong.read_bytes() == b"another file"
    assert whole(models)


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


@pytest.mark.parametrize("state", ["whole", "before the record", "broken", "empty"])
def test_a_read_only_folder(hub: Hub, models: Path, tmp_path: Path, state: str) -> None:
    """A whole model on a shared volume needs no writing. Else the hub is not even asked."""
    unshare = ["unshare", "--user", "--mount", "--map-root-user"]
    if subprocess.run([*unshare, "true"], capture_output=True, timeout=30).returncode:
        pytest.skip("this machine allows no user namespaces")
    if state == "before the record":
        for record in models.glob("*/.verified.json"):
            record.unlink()
    if state == "broken":
        (models / MODEL / CHECKPOINT).write_bytes(b"cut")
    if state == "empty":
        shutil.rmtree(models)
        models.mkdir()
    inside = [*unshare, "sh", "-c", READ_ONLY, "sh", str(models)]
    done = run(hub, tmp_path, f"ltxq model download {MODEL}", before=inside)
    assert hub.asked == []
    if state in ("broken", "empty"):
        assert done.returncode
        assert f"{models} cannot be written: Read-only file system." in done.stderr
        assert "LTXQ_MODEL_DIR" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def without_root_s_rights() -> list[str]:
    """A program that runs another, to which file permissions apply even if this user is root."""
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    if os.getuid():
        return []
    missing = shutil.which("setpriv") is None
    if missing or subprocess.run([*drop, "true"], capture_output=True, timeout=30).returncode:
        pytest.skip("root's rights cannot be dropped here")
    return drop


def test_a_file_that_this_user_may_not_read(hub: Hub, models: Path, tmp_path: Path) -> None:
    """It is not fetched anew: its content may be right. The hint's command helps."""
    file = models / MODEL / CHECKPOINT
    os.utime(file)
    file.chmod(0)
    inside = without_root_s_rights()
    done = run(hub, tmp_path, f"ltxq model download {MODEL}", before=inside)
    assert f"{file} is not readable (Permission denied)." in done.stderr
    assert f"chmod u+r {file}," in done.stderr
    assert fetched(hub) == []
    listed = run(hub, tmp_path, "ltxq model list", before=inside)
    assert f"{file} is not readable (Permission denied)" in listed.stdout
    subprocess.run(["chmod", "u+r", str(file)], check=True, timeout=30)
    assert not run(hub, tmp_path, f"ltxq model download {MODEL}", before=inside).returncode
    assert whole(models)


def test_a_folder_that_this_user_may_not_read_does_not_look_empty(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    inside = without_root_s_rights()
    for folder in (models / ENCODER, models / MODEL, models):
        folder.chmod(0)
        listed = run(hub, tmp_path, "ltxq model list", before=inside)
        assert "ermission denied" in listed.stdout + listed.stderr
        assert str(folder) in listed.stdout + listed.stderr
        assert "Errno" not in listed.stderr
        folder.chmod(0o755)
    assert "here" in run(hub, tmp_path, "ltxq model list", before=inside).stdout


def test_a_lock_file_of_another_user_in_a_group_s_folder(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    (models / ENCODER / "config.json").unlink()
    (models / ".downloading.lock").chmod(0o444)
    done = run(hub, tmp_path, f"ltxq model download {MODEL}", before=without_root_s_rights())
    assert done.returncode == 0, done.stderr
    assert whole(models)


def test_a_partial_file_of_another_user(hub: Hub, models: Path, tmp_path: Path) -> None:
    (models / MODEL / CHECKPOINT).unlink()
    part = part_of(models / MODEL, CHECKPOINT, CONTENT[:300], CONTENT)
    part.chmod(0o444)
    done = run(hub, tmp_path, f"ltxq model download {MODEL}", before=without_root_s_rights())
    assert f"{part} cannot be written: Permission denied." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hidden_file_of_the_repository_is_not_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be taken for ltxq's own record."""
    monkeypatch.setitem(FILES, GEMMA, {**REAL[GEMMA], ".verified.json": b"{}"})
    assert "folder" in download(hub, tmp_path)
    assert ".verified.json" not in fetched(hub)
    assert whole(tmp_path / "models")


def test_a_model_s_folder_that_this_user_may_not_write(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    (models / MODEL / CHECKPOINT).write_bytes(b"cut")
    (models / MODEL).chmod(0o555)
    inside = without_root_s_rights()
    done = run(hub, tmp_path, f"ltxq model download {MODEL}", before=inside)
    assert f"{models / MODEL} cannot be written by this user." in done.stderr
    assert fetched(hub) == []
    (models / MODEL).chmod(0o755)
    assert not run(hub, tmp_path, f"ltxq model download {MODEL}", before=inside).returncode


def test_room_is_asked_for_before_hours_of_reading_and_counts_what_is_there(
    hub: Hub, tmp_path: Path, models: Path
) -> None:
    """On a disk of 900 kB: a text encoder is whole, a checkpoint of 1 MB is missing."""
    unshare = ["unshare", "--user", "--mount", "--map-root-user"]
    if subprocess.run([*unshare, "true"], capture_output=True, timeout=30).returncode:
        pytest.skip("this machine allows no user namespaces")
    big = {**REAL[LTX], CHECKPOINT: CONTENT + bytes(1_000_000)}
    FILES[LTX] = big  # restored by the fixture
    place, folder = tmp_path / "disk", tmp_path / "disk" / MODEL
    place.mkdir()
    script = (
        'mount -t tmpfs -o size=900k none "$1" && cp -a "$2"/. "$1" && shift 2; '
        f'touch -d @1 {folder / UPSCALER}; "$@"; code=$?; cat {folder}/.verified.json; exit $code'
    )
    inside = [*unshare, "sh", "-c", script, "sh", str(place), str(models)]
    hub.newest = "c" * 40
    command = f"ltxq model download {MODEL} --update"
    done = run(hub, tmp_path, command, before=inside, LTXQ_MODEL_DIR=str(place))
    assert done.returncode
    assert "1.0 MB more are needed" in done.stderr
    assert fetched(hub) == []
    assert UPSCALER in done.stdout
    assert '"mtime_ns": 1000000000' not in done.stdout  # its new time was not looked into


def test_two_downloads_at_once_write_no_file_twice(hub: Hub, tmp_path: Path) -> None:
    """One of them does it, or each in turn."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        outcomes: list[dict[str, Any]] = list(pool.map(lambda _: download(hub, tmp_path), range(2)))
    assert any("folder" in outcome for outcome in outcomes)
    assert sorted(fetched(hub)) == sorted([*REAL[LTX], *REAL[GEMMA]])
    assert whole(tmp_path / "models")
    assert TOKEN not in str(outcomes)
