"""torch.compile of the transformer's block, for real: equal within rounding, compiled once for all
blocks of a size, bounded, cached on disk, and left out with a clear line where it cannot be.
"""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx_core.components.noisers import GaussianNoiser
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.tools import AudioLatentTools, VideoLatentTools
from ltx_core.types import AudioLatentShape, VideoLatentShape, VideoPixelShape
from torch._dynamo.utils import counters

from ltxq.job import VideoRequest
from ltxq_worker.models.tiny.model import make_tiny
from ltxq_worker.models.weights.text import TextContext
from ltxq_worker.pipeline.denoise import Latents, Transformer, in_one_stage
from ltxq_worker.pipeline.fast import compiled
from ltxq_worker.pipeline.fast.attention import AttentionKernels
from ltxq_worker.pipeline.fast.compiled import CompiledBlocks, missing_compiler
from ltxq_worker.pipeline.fast.transformer import FastTransformer
from ltxq_worker.pipeline.ltx import LtxPipeline

CPU = torch.device("cpu")
SHAPE = VideoPixelShape(1, 9, 64, 64, 24)
SMALL = VideoRequest(seed=42, prompt="a cat", height=64, width=64, num_frames=9)

# torch's own, when it first compiles.
pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
]

needs_a_compiler = pytest.mark.skipif(
    bool(missing := missing_compiler("cpu")), reason=f"nothing is compiled here: {missing}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("models") / "ltx-2-19b"
    make_tiny(path, "ltx-2-19b")
    return path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> LtxPipeline:
    return LtxPipeline.load(folder, device="cpu", optimize="none")


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> LtxPipeline:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("models") / "ltx-2.3-22b"
    make_tiny(path, "ltx-2.3-22b")
    return LtxPipeline.load(path, device="cpu", optimize="none")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    counters.clear()
    with torch.inference_mode():
        yield


@needs_a_compiler
@pytest.mark.timeout(600)  # a C++ compiler on a busy machine
def test_compiled_blocks_equal_eager_within_rounding(newer: LtxPipeline) -> None:
    """One model is enough to run the compiler for real: it takes a minute."""
    model, context = in_float32(newer)
    blocks = CompiledBlocks(CPU)
    theirs = stepped(FastTransformer(model), context)
    ours = stepped(FastTransformer(model, run_block=blocks), context)
    assert blocks.on
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["inductor"]["fxgraph_cache_miss"] == 1
    assert max(map(error, ours, theirs)) < 1e-5

    counters.clear()  # another process, as far as torch can tell
    torch._dynamo.reset()
    again = stepped(FastTransformer(model, run_block=CompiledBlocks(CPU)), context)
    assert counters["inductor"]["fxgraph_cache_hit"] == 1
    assert counters["aot_autograd"]["autograd_cache_hit"] == 1
    assert all(map(torch.equal, again, ours))


@pytest.mark.parametrize("model", ["pipeline", "newer"])
def test_one_function_serves_all_blocks_and_each_size_has_its_own(
    model: str, request: pytest.FixtureRequest
) -> None:
    pipeline: LtxPipeline = request.getfixturevalue(model)
    blocks = CompiledBlocks(CPU, backend="eager")
    context = pipeline._context("a cat")
    fast = FastTransformer(
        pipeline._parts.transformer, run_block=blocks, attention=AttentionKernels(prefer_cudnn=True)
    )
    hoist = FastTransformer(pipeline._parts.transformer)
    assert len(pipeline._parts.transformer.velocity_model.transformer_blocks) == 2
    for count, frames in enumerate((9, 17, 9), start=1):
        shape = SHAPE._replace(frames=frames)
        ours, theirs = made(fast, context, shape), made(hoist, context, shape)
        assert torch.equal(ours.video, theirs.video)
        assert torch.equal(ours.audio, theirs.audio)
        assert counters["stats"]["unique_graphs"] == min(count, 2)
    assert not counters["graph_break"]
    assert blocks.on


def test_fp8_and_bf16_blocks_are_compiled_once_each(tmp_path: Path) -> None:
    make_tiny(tmp_path / "eight", "ltx-2-19b", blocks=8)  # of which two are in FP8
    pipeline = LtxPipeline.load(
        tmp_path / "eight", device="cpu", quantization="fp8", optimize="hoist"
    )
    blocks = CompiledBlocks(CPU, backend="aot_eager")
    context = pipeline._context("a cat")
    model = pipeline._parts.transformer
    ours = made(FastTransformer(model, run_block=blocks), context)
    assert blocks.on
    assert counters["stats"]["unique_graphs"] == 2
    theirs = made(FastTransformer(model), context)
    assert error(ours.video.float(), theirs.video.float()) < 1e-3


@pytest.mark.parametrize("cudnn", [False, True])
def test_code_in_the_cache_is_found_only_for_the_attention_it_was_made_for(
    pipeline: LtxPipeline, cudnn: bool
) -> None:
    tags: set[str] = set()

    def note(graph: Any, inputs: Any) -> Any:
        tags.add(torch.compiler.config.cache_key_tag)
        return graph

    kernels = AttentionKernels(prefer_cudnn=cudnn)
    blocks = CompiledBlocks(CPU, attention=kernels, backend=note)
    fast = FastTransformer(pipeline._parts.transformer, run_block=blocks)
    made(fast, pipeline._context("a cat"))
    assert tags == {f"ltxq cudnn first: {cudnn}"}
    try:
        assert kernels.steps_down(RuntimeError("cuDNN Frontend error: no plan"))
        made(fast, pipeline._context("a cat"))
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
    assert tags == {f"ltxq cudnn first: {cudnn}", "ltxq no cudnn"}
    assert torch.compiler.config.cache_key_tag == ""


def test_what_was_compiled_for_the_oldest_size_goes(
    pipeline: LtxPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions: list[weakref.ref[Any]] = []
    compile_block = compiled._compiled

    def watched(backend: str) -> Any:
        function = compile_block(backend)
        functions.append(weakref.ref(function))
        return function

    monkeypatch.setattr(compiled, "_compiled", watched)
    monkeypatch.setattr(compiled, "SHAPES_KEPT", 2)
    blocks = CompiledBlocks(CPU, backend="eager")
    fast = FastTransformer(pipeline._parts.transformer, run_block=blocks)
    context = pipeline._context("a cat")
    made(fast, context)
    first = functions[0]
    for frames in (1, 17):
        assert first() is not None
        made(fast, context, SHAPE._replace(frames=frames))
    gc.collect()
    assert first() is None
    made(fast, context)
    assert counters["stats"]["unique_graphs"] == 4


def test_a_compiler_that_fails_is_told_and_clips_are_made_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise OSError("ld: cannot find -lcuda")

    pipeline = LtxPipeline.load(folder, device="cpu", optimize="hoist,compile")
    compile_block = compiled._compiled
    monkeypatch.setattr(compiled, "_compiled", lambda backend: compile_block(broken))
    with caplog.at_level(logging.WARNING):
        pipeline.warm_up([SMALL])
    (line,) = [record.getMessage() for record in caplog.records if "compile" in record.getMessage()]
    assert "'compile' is now off" in line
    assert "ld: cannot find -lcuda" in line
    assert "gcc" in line
    assert str(pipeline.optimizations) == "hoist"
    hoist = LtxPipeline.load(folder, device="cpu", optimize="hoist")
    assert frames_equal(pipeline, hoist)


def test_no_compiler_is_told_at_loading_and_stops_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.WARNING):
        pipeline = LtxPipeline.load(folder, device="cpu", optimize="hoist,compile")
    assert "there is no compiler: g++" in caplog.text
    assert "Install gcc" in caplog.text
    assert str(pipeline.optimizations) == "hoist"


def test_what_is_lacking_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "/no/such/cc")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no compiler: /no/such/cc or gcc or clang" in str(missing_compiler("cuda"))
    (tmp_path / "gcc").touch(0o755)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    assert "no headers of Python 3" in str(missing_compiler("cuda"))
    (tmp_path / "Python.h").touch()
    assert missing_compiler("cuda") is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"),
        RuntimeError("cuDNN Frontend error: No valid execution plans built."),
    ],
    ids=["memory", "broken", "capturing", "attention"],
)
def test_what_is_not_the_compilers_doing_is_no_reason_to_step_down(
    pipeline: LtxPipeline, error: Exception
) -> None:
    def fail(graph: Any, inputs: Any) -> Any:
        raise error

    blocks = CompiledBlocks(CPU, backend=fail)
    with pytest.raises(Exception, match=str(error)):
        made(
            FastTransformer(pipeline._parts.transformer, run_block=blocks),
            pipeline._context("a cat"),
        )
    assert blocks.on


def made(transformer: Transformer, context: TextContext, shape: VideoPixelShape = SHAPE) -> Latents:
    return in_one_stage(
        transformer, context, shape, torch.Generator().manual_seed(7), lambda step: None
    )


def stepped(transformer: Transformer, context: TextContext) -> tuple[torch.Tensor, torch.Tensor]:
    """The first step's picture and sound, in float32."""
    generator = torch.Generator().manual_seed(7)
    states = (
        GaussianNoiser(generator)(tools.create_initial_state(CPU, torch.float32), 1.0)
        for tools in (
            VideoLatentTools(
                VideoLatentPatchifier(1), VideoLatentShape.from_pixel_shape(SHAPE), SHAPE.fps
            ),
            AudioLatentTools(AudioPatchifier(1), AudioLatentShape.from_video_pixel_shape(SHAPE)),
        )
    )
    video, audio = states
    return transformer.bind(video, audio, context, (1.0, 0.9))(video.latent, audio.latent, 0)


def in_float32(pipeline: LtxPipeline) -> tuple[Any, TextContext]:
    """The transformer and a prompt in float32, where rounding is small."""
    context = pipeline._context("a cat")
    return (
        copy.deepcopy(pipeline._parts.transformer).float(),
        TextContext(video=context.video.float(), audio=context.audio.float()),
    )


def frames_equal(ours: LtxPipeline, theirs: LtxPipeline) -> bool:
    def frames(pipeline: LtxPipeline) -> list[Any]:
        return [chunk.tobytes() for chunk in pipeline.generate(SMALL, lambda *_: None).frames]

    return frames(ours) == frames(theirs)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative, in L2."""
    return float((ours - theirs).norm() / theirs.norm())
