"""Chroma lies where players look for it: clips decoded by FFmpeg and by Chromium, posters by
Pillow, each compared with the picture that went in.
"""

from __future__ import annotations

import base64
import itertools
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
import torch
from av.bitstream import BitStreamFilterContext
from numpy.typing import NDArray
from PIL import Image

from browser import chromium
from ltxq.job import Stage, VideoRequest
from ltxq_worker.encode import mp4
from ltxq_worker.encode.clip import Encoded, encode
from ltxq_worker.pipeline import ClipStream
from ltxq_worker.pipeline.decode.yuv import to_yuv420

Picture = NDArray[np.uint8]

Pixels = Literal["rgb", "yuv", "left"]  # of the pictures, to the encoder

LEFT, MIDDLE = 0, 128  # 1/256 of a column of luma
EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
RANGE = "out_range=tv:out_color_matrix=bt709"
SIDE = 64
# A clip's first frames may still be on their way to the screen when it says that it was sought.
FRAME = """async (mp4) => {
  const video = document.createElement("video");
  video.muted = true;
  video.src = "data:video/mp4;base64," + mp4;
  document.body.append(video);
  await new Promise((done, fail) => { video.onloadeddata = done; video.onerror = fail; });
  const shown = new Promise((done) => video.requestVideoFrameCallback(done));
  video.currentTime = 0.15;
  await shown;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(video, 0, 0);
  return Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data);
}"""


def red_stripes(first: int = 0, *, upright: bool = True) -> Picture:
    """Red and white stripes of five pixels: uint8 [H, W, 3]."""
    picture = np.full((SIDE, SIDE, 3), 255, np.uint8)
    picture[:, (np.arange(SIDE) + first) // 5 % 2 == 0] = (255, 0, 0)
    return picture if upright else picture.transpose(1, 0, 2).copy()


def made(picture: Picture, folder: Path, path: Pixels) -> Encoded:
    """A clip of nine such pictures, as from a CPU or as from a GPU; or, for comparison, with its
    chroma on the left.
    """
    request = VideoRequest(prompt="a", width=SIDE, height=SIDE, num_frames=9, seed=1, audio=False)
    frames = np.stack([picture] * 9)
    if path == "yuv":
        frames = to_yuv420(torch.from_numpy(frames)).numpy()
    if path == "left":
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        planes = scaled(frame, f"out_h_chr_pos={LEFT}:out_v_chr_pos=128:{RANGE}", "yuv420p")
        frames = np.stack([planes] * 9)
    stream = ClipStream(
        frames=iter([frames]), sound=None, pixels="rgb24" if path == "rgb" else "yuv420p"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mp4.X264, "crf", "4")  # colours, not compression
        return encode(stream, request, folder / path, ignore)


def decoded(file: Path, column: int) -> Picture:
    """The first frame by FFmpeg's exact path, its chroma taken to lie at `column`."""
    with av.open(str(file)) as container:
        frame = next(container.decode(video=0))
    place = f"in_h_chr_pos={column}:in_v_chr_pos=128:in_color_matrix=bt709:in_range=tv"
    return scaled(frame, place, "rgb24")


def scaled(frame: av.VideoFrame, options: str, to: str) -> Picture:
    """A frame, converted by FFmpeg's scale filter."""
    graph = av.filter.Graph()
    about = "" if frame.format.name == "rgb24" else ":colorspace=bt709:range=tv"
    source = f"video_size={SIDE}x{SIDE}:pix_fmt={frame.format.name}:time_base=1/1{about}"
    parts = [graph.add("buffer", source), graph.add("scale", f"{EXACT}:{options}"),
             graph.add("format", f"pix_fmts={to}"), graph.add("buffersink")]  # fmt: skip
    for one, following in itertools.pairwise(parts):
        one.link_to(following)
    graph.configure()
    frame.pts, frame.time_base = 0, Fraction(1)
    graph.push(frame)
    result = graph.pull()
    assert isinstance(result, av.VideoFrame)
    return result.to_ndarray()


def signalled(file: Path) -> int:
    """Where the stream says that its chroma lies: in its sequence parameter set."""
    with av.open(str(file)) as container, av.logging.Capture() as lines:
        before = av.logging.get_level()
        av.logging.set_level(av.logging.INFO)
        stream = container.streams.video[0]
        BitStreamFilterContext("trace_headers", stream).filter(next(container.demux(stream)))
        av.logging.set_level(before)
    read = [line.split() for _, _, line in lines if "chroma_sample_loc_type_top_field" in line]
    return {"0": LEFT, "1": MIDDLE}[read[0][-1]] if read else LEFT


def likeness(one: Picture, other: Picture) -> float:
    """PSNR in dB, without the borders."""
    inner = slice(8, -8)
    difference = one[inner, inner].astype(float) - other[inner, inner]
    return float(10 * np.log10(255**2 / np.square(difference).mean()))


@pytest.mark.parametrize("path", ["rgb", "yuv"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_clip_looks_best_as_it_is_signalled(tmp_path: Path, path: Pixels, first: int) -> None:
    picture = red_stripes(first)
    file = made(picture, tmp_path, path).mp4
    said = signalled(file)
    other = LEFT if said == MIDDLE else MIDDLE
    assert likeness(decoded(file, said), picture) > likeness(decoded(file, other), picture) + 1.2
    lying = red_stripes(first, upright=False)
    file = made(lying, tmp_path, path).mp4
    assert likeness(decoded(file, said), lying) > 20


def test_a_clip_looks_best_in_chromium(tmp_path: Path) -> None:
    pictures = [red_stripes(first) for first in (0, 1)]
    with chromium() as browser:
        page = browser.new_page()

        def shown(path: Pixels) -> float:
            """How like the pictures are to what the browser shows, on average."""
            likenesses = []
            for picture in pictures:
                content = base64.b64encode(made(picture, tmp_path, path).mp4.read_bytes()).decode()
                pixels = np.array(page.evaluate(FRAME, content), np.uint8)
                likenesses.append(likeness(pixels.reshape(SIDE, SIDE, 4)[..., :3], picture))
            return sum(likenesses) / len(likenesses)

        left = shown("left")
        assert left > 15  # a picture, not a black canvas
        assert shown("rgb") > left + 0.7
        assert shown("yuv") > left + 0.7


def test_stills_have_their_chroma_in_the_middle_as_jpeg_wants(tmp_path: Path) -> None:
    picture = red_stripes()
    of_rgb, of_yuv = (made(picture, tmp_path, path) for path in ("rgb", "yuv"))
    for name in ("poster", "spritesheet"):
        one, other = (np.array(Image.open(getattr(clip, name))) for clip in (of_rgb, of_yuv))
        if name == "poster":
            assert likeness(one, picture) > 19
        assert likeness(one, other) > 24, name  # once more through 4:2:0


def ignore(stage: Stage, step: int, steps: int) -> None:
    """A report that does nothing."""
