"""Writes a clip to files: MP4, poster, spritesheet and sidecar, each complete or absent.

A separate thread encodes while the caller's thread decodes on the GPU. The codecs are in `mp4.py`
and `stills.py`. Does not upload.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import av
import numpy as np

from ltxq.errors import PermanentError, StorageUnavailable
from ltxq.job import VideoRequest
from ltxq_worker.encode.frame_queue import Abandoned, Frames, Handover
from ltxq_worker.encode.mp4 import Mp4Writer, exact_rate, yuv_picture
from ltxq_worker.encode.stills import Spritesheet, write_jpeg
from ltxq_worker.pipeline import ClipStream, Report, crop_offset

MAX_WAITING = 1 << 30  # bytes of frames: 910 of 768×512, 172 of 1920×1080
FULL = (errno.ENOSPC, errno.EDQUOT)

MP4, POSTER, SPRITESHEET = "clip.mp4", "poster.jpg", "spritesheet.jpg"


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A clip's files and their properties."""

    mp4: Path
    poster: Path  # JPEG, the first frame at full size
    spritesheet: Path  # JPEG, frames across the clip in a grid
    sha256: str  # of the MP4, hex
    size: int  # of the MP4, bytes
    width: int  # pixels
    height: int  # pixels
    num_frames: int
    frame_rate: float  # frames per second in the file: a requested 23.976 becomes 24000/1001
    duration: float  # seconds of picture


class Encoding:
    """A clip being encoded: call `take`, then `finish`, inside a `with`.

    Different threads may call them: `take` decodes frames on the GPU, so the GPU thread calls it;
    `finish` only waits for the encoder.
    """

    def __init__(self, request: VideoRequest, folder: Path) -> None:
        """`folder`: for clip.mp4, poster.jpg and spritesheet.jpg; created if missing."""
        self._request, self._folder = request, folder
        self._handover = Handover(MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._unfinished = Path()

    def __enter__(self) -> Self:
        """May raise DiskFull."""
        with full_disk_named(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=self._folder))
        return self

    def __exit__(self, *exc: object) -> None:
        self._handover.abandon()
        if self._thread is not None:
            self._thread.join()
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def take(self, clip: ClipStream) -> None:
        """Take every frame of `clip`, while another thread encodes them. The producer must not
        write to an array after yielding it.

        Raises:
            PermanentError: the frames or the sound do not match the request.
            DiskFull
            Errors of `clip.frames`.
        """
        self._thread = threading.Thread(
            target=_encode_all,
            args=(self._handover, clip, self._request, self._unfinished),
            name="encode",
        )
        self._thread.start()
        try:
            with full_disk_named(self._folder):
                for chunk in _checked(clip, self._request):
                    self._handover.put(chunk)
            self._handover.end()
        finally:
            if isinstance(clip.frames, Generator):
                clip.frames.close()  # frees the latents now, not at garbage collection

    def finish(self, report: Report) -> Encoded:
        """Wait until the files are complete, and move them into their folder.

        Raises:
            DiskFull
            Errors of `report`.
        """
        with full_disk_named(self._folder):
            for coded in self._handover.progress():
                report("encode", coded, self._request.num_frames)
            return _moved_into_place(self._unfinished, self._request, self._folder)


def encode(clip: ClipStream, request: VideoRequest, folder: Path, report: Report) -> Encoded:
    """Take every frame from `clip` and write clip.mp4, poster.jpg and spritesheet.jpg to `folder`.

    `report("encode", …)` is first called when the frames are exhausted and the GPU is free. Raises
    the errors of `Encoding`, and leaves no file behind then.
    """
    with Encoding(request, folder) as encoding:
        encoding.take(clip)
        return encoding.finish(report)


def write_sidecar(
    path: Path,
    *,
    request: VideoRequest,
    seed: int,
    model: str,
    versions: dict[str, str],
    timings: dict[str, float],
    encoded: Encoded,
    job_id: str | None = None,
) -> None:
    """Write a clip's request, versions and properties as JSON, completely or not at all.

    The request's webhook URL is left out: it may contain a secret, and the sidecar is as public as
    the clip. `timings`: seconds by stage.

    Raises:
        DiskFull
    """
    files = {"mp4", "poster", "spritesheet"}
    about = {
        "job_id": job_id,
        "request": request.model_dump(mode="json", exclude={"webhook_url"}),
        "seed": seed,
        "model": model,
        "versions": versions,
        "timings": timings,
        "clip": {name: value for name, value in asdict(encoded).items() if name not in files},
    }
    unfinished = path.with_name(f".unfinished-{path.name}")
    with full_disk_named(path.parent):
        try:
            text = json.dumps(about, ensure_ascii=False, indent=2, allow_nan=False)
            unfinished.write_text(text + "\n", encoding="utf-8")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def _encode_all(handover: Handover, clip: ClipStream, request: VideoRequest, folder: Path) -> None:
    """The encoder's thread: writes the three files from the chunks handed over."""
    rate = exact_rate(request.frame_rate)
    sheet = Spritesheet(request.num_frames, request.output_size)
    index = 0
    try:
        with Mp4Writer(folder / MP4, size=request.output_size, rate=rate) as mp4:
            if request.audio and clip.sound is not None:
                mp4.write_sound(clip.sound, request.num_frames / rate)
            for chunk in handover.chunks():
                for picture in _pictures(chunk, clip.pixels, request):
                    if index == 0:
                        write_jpeg(picture, folder / POSTER)
                    sheet.add(picture, index)
                    mp4.write_frame(picture, index)
                    index += 1
                    handover.coded(mp4.packets)
            for _ in mp4.write_last():
                handover.coded(mp4.packets)
        sheet.write(folder / SPRITESHEET)
        handover.finish()
    except Abandoned:
        pass  # the caller raises its own error
    except BaseException as exc:  # noqa: BLE001 - raised again in the caller's thread
        handover.finish(exc)


def _pictures(
    chunk: Frames, pixels: Literal["rgb24", "yuv420p"], request: VideoRequest
) -> Iterator[av.VideoFrame]:
    """A chunk's frames, cropped if not yet done."""
    if pixels == "yuv420p":
        yield from map(yuv_picture, chunk)
        return
    width, height = request.output_size
    left, top = crop_offset(request)
    for picture in chunk[:, top : top + height, left : left + width]:
        yield av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")


def _checked(clip: ClipStream, request: VideoRequest) -> Iterator[Frames]:
    """The clip's chunks, each checked against the request."""
    width, height = request.output_size
    wanted: tuple[int, ...] = (request.height, request.width, 3)
    if clip.pixels == "yuv420p":
        wanted = (height * 3 // 2, width)
    count = 0
    for chunk in clip.frames:
        if chunk.dtype != np.uint8 or chunk.shape[1:] != wanted:
            raise PermanentError(
                f"The pipeline's frames are {chunk.dtype} {list(chunk.shape)}, "
                f"not uint8 [n, {', '.join(map(str, wanted))}]."
            )
        count += len(chunk)
        if count > request.num_frames:
            break
        yield chunk
    if count != request.num_frames:
        made = f"more than {request.num_frames}" if count > request.num_frames else count
        raise PermanentError(f"The pipeline made {made} frames, not {request.num_frames}.")


def _moved_into_place(unfinished: Path, request: VideoRequest, folder: Path) -> Encoded:
    with (unfinished / MP4).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    # The MP4 is moved last: if it exists, the other files do too.
    for name in (POSTER, SPRITESHEET, MP4):
        (unfinished / name).replace(folder / name)
    rate = exact_rate(request.frame_rate)
    width, height = request.output_size
    return Encoded(
        mp4=folder / MP4,
        poster=folder / POSTER,
        spritesheet=folder / SPRITESHEET,
        sha256=sha256,
        size=(folder / MP4).stat().st_size,
        width=width,
        height=height,
        num_frames=request.num_frames,
        frame_rate=float(rate),
        duration=float(request.num_frames / rate),
    )


class DiskFull(StorageUnavailable):
    """The disk on which clips are kept until they are uploaded is full, or cannot be written."""


def clip_folder(spool: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder for the files of one clip. A spool that is gone is made anew: systems empty /tmp.

    Raises:
        DiskFull
    """
    try:
        for each in (spool.parent, spool):
            each.mkdir(mode=0o700, exist_ok=True)
            if each.lstat().st_uid not in (0, os.getuid()):
                raise PermissionError(errno.EACCES, f"{each} belongs to another user")
        return tempfile.TemporaryDirectory(dir=spool, prefix="clip-", ignore_cleanup_errors=True)
    except OSError as exc:
        raise _disk_full(spool, exc) from exc


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Translate errors of a full or broken disk into DiskFull, which names `folder`."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in (*FULL, errno.EROFS, errno.EIO):
            raise
        raise _disk_full(folder, exc) from exc


def _disk_full(folder: Path, exc: OSError) -> DiskFull:
    if exc.errno in FULL:
        return DiskFull(
            f"The disk that holds {folder} is full.",
            hint="Free space there, or set LTXQ_SPOOL_DIR to a folder on another disk.",
        )
    return DiskFull(
        f"{folder} cannot be written: {exc.strerror}.",
        hint="Repair it, or set LTXQ_SPOOL_DIR to a folder on another disk.",
    )
