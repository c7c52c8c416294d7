"""A pipeline without a model: real pictures and sound in milliseconds, for chaos tests and bench.

Every frame carries a mark that identifies its request and its index, and that survives H.264. The
pictures do not show what the prompt describes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltxq.job import VideoRequest
from ltxq_worker.pipeline import INSTANT, ClipStream, Report, Sound, schedule

CHUNK = 8  # frames decoded at once
SLICE = 0.05  # seconds between two reports while a step sleeps: how soon a cancel takes effect
SAMPLE_RATE = 24_000  # Hz, as LTX-2's

# The mark is a square of 8×8 black and white cells in the middle of the frame, where no crop
# reaches it: 2 bytes of frame index, 4 of the request's tag, 2 of checksum.
CELL = 4  # pixels: a quarter of an H.264 macroblock's side
MARK = 8 * CELL  # pixels


class InstantPipeline:
    """A `Pipeline` named `instant`, with the stages and reports of the real one."""

    model = INSTANT

    def __init__(self, denoise_seconds: float = 0.0) -> None:
        """`denoise_seconds`: how long all steps of a clip take together; an error raised by the
        report ends them early.
        """
        self.versions = {"instant": "1"}
        self._denoise_seconds = denoise_seconds

    def generate(self, request: VideoRequest, report: Report) -> ClipStream:
        """Make a clip, drawn from the prompt and the seed."""
        report("encode_text", 0, 1)
        tag = request_tag(request)
        report("encode_text", 1, 1)
        self._denoise(schedule.steps(request.stages), report)
        return ClipStream(
            frames=_decode(request, tag, report),
            sound=_tone(request, tag) if request.audio else None,
        )

    def _denoise(self, steps: int, report: Report) -> None:
        report("denoise", 0, steps)
        for step in range(steps):
            ends = time.monotonic() + self._denoise_seconds / steps
            while (left := ends - time.monotonic()) > 0:
                time.sleep(min(left, SLICE))
                report("denoise", step, steps)
            report("denoise", step + 1, steps)


@dataclass(frozen=True)
class Mark:
    """The request and index that a frame carries."""

    tag: int  # of the request, 32 bits
    index: int  # the frame's number in the clip, from 0


def request_tag(request: VideoRequest) -> int:
    """A 32-bit hash of prompt and seed, which distinguishes requests."""
    digest = hashlib.sha256(f"{request.seed} {request.prompt}".encode()).digest()
    return int.from_bytes(digest[:4])


def read_mark(picture: NDArray[np.uint8]) -> Mark:
    """The mark of a frame, uint8 [H, W, 3]; readable after H.264, JPEG and cropping too.

    Raises:
        ValueError: the frame has no mark, or a damaged one.
    """
    height, width = picture.shape[:2]
    top, left = (height - MARK) // 2, (width - MARK) // 2
    square = picture[top : top + MARK, left : left + MARK].mean(axis=2)
    cells = square.reshape(8, CELL, 8, CELL).mean(axis=(1, 3))
    code = np.packbits(cells > 127).tobytes()
    if _check(code[:6]) != code[6:]:
        raise ValueError("this frame has no readable mark")
    return Mark(tag=int.from_bytes(code[2:6]), index=int.from_bytes(code[:2]))


def _mark_picture(mark: Mark) -> NDArray[np.uint8]:
    """The mark as a picture, uint8 [MARK, MARK, 1]."""
    words = mark.index.to_bytes(2) + mark.tag.to_bytes(4)
    bits = np.unpackbits(np.frombuffer(words + _check(words), np.uint8)).reshape(8, 8)
    return np.kron(bits, np.full((CELL, CELL), 255, np.uint8))[..., None]


def _check(words: bytes) -> bytes:
    return hashlib.sha256(words).digest()[:2]


def _decode(request: VideoRequest, tag: int, report: Report) -> Iterator[NDArray[np.uint8]]:
    """The clip in chunks [n, H, W, 3]: a scene that moves to the left, with the mark."""
    scene = _scene(request.width, request.height, tag)
    top, left = (request.height - MARK) // 2, (request.width - MARK) // 2
    chunks = -(-request.num_frames // CHUNK)
    report("decode", 0, chunks)
    for done, start in enumerate(range(0, request.num_frames, CHUNK), start=1):
        indexes = range(start, min(start + CHUNK, request.num_frames))
        chunk = np.stack([np.roll(scene, -2 * index, axis=1) for index in indexes])
        for picture, index in zip(chunk, indexes, strict=True):
            picture[top : top + MARK, left : left + MARK] = _mark_picture(Mark(tag, index))
        yield chunk
        report("decode", done, chunks)


def _scene(width: int, height: int, tag: int) -> NDArray[np.uint8]:
    """Colour waves that wrap around at the borders, and a disc: uint8 [H, W, 3]."""
    random = np.random.default_rng(tag)
    x = np.linspace(0, 2 * np.pi, width, endpoint=False, dtype=np.float32)
    y = np.linspace(0, 2 * np.pi, height, endpoint=False, dtype=np.float32)
    phase = random.uniform(0, 2 * np.pi, (2, 3)).astype(np.float32)
    scene = (
        128 + 60 * np.sin(x[None, :, None] + phase[0]) + 60 * np.sin(y[:, None, None] + phase[1])
    )
    middle = random.uniform((0.25, 0.25), (0.75, 0.75)) * (height, width)
    distance = np.hypot(np.arange(height)[:, None] - middle[0], np.arange(width) - middle[1])
    scene[distance < min(width, height) / 6] = random.integers(40, 216, 3)
    return scene.astype(np.uint8)


def _tone(request: VideoRequest, tag: int) -> Sound:
    """One note for each tag, louder on the left, as long as the picture."""
    count = round(request.duration * SAMPLE_RATE)
    pitch = 220 * 2 ** (tag % 25 / 12)  # Hz: two octaves up from A3
    wave = np.sin(2 * np.pi * pitch * np.arange(count) / SAMPLE_RATE)
    return Sound(
        samples=np.stack([0.3 * wave, 0.2 * wave]).astype(np.float32), sample_rate=SAMPLE_RATE
    )
