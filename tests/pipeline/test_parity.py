"""The pipeline against the library's own functions: equal bit for bit on a CPU, eager, in bf16.

`ltx_pipelines` is the oracle. It shares ltx-core with the pipeline, but its loaders, its state
handling and its loop are its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ltx_core.components.diffusion_steps import EulerDiffusionStep
from ltx_core.components.noisers import GaussianNoiser
from ltx_core.model.audio_vae import decode_audio
from ltx_core.model.video_vae import (
    SpatialTilingConfig,
    TemporalTilingConfig,
    TilingConfig,
    decode_video,
)
from ltx_core.text_encoders.gemma.embeddings_processor import EmbeddingsProcessorOutput
from ltx_core.text_encoders.gemma.encoders import encoder_configurator
from ltx_core.text_encoders.gemma.tokenizer import LTXVGemmaTokenizer
from ltx_core.types import LatentState, VideoPixelShape
from ltx_pipelines import distilled
from ltx_pipelines.utils import ModelLedger, euler_denoising_loop
from ltx_pipelines.utils.constants import (
    DISTILLED_SIGMA_VALUES,
    STAGE_2_DISTILLED_SIGMA_VALUES,
)
from ltx_pipelines.utils.helpers import denoise_audio_video, simple_denoising_func
from ltx_pipelines.utils.types import PipelineComponents
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForConditionalGeneration

from ltxq.job import VideoRequest
from ltxq_worker.models.files.folder import ModelFolder
from ltxq_worker.models.tiny.model import HIDDEN, LAYERS, make_tiny
from ltxq_worker.pipeline import memory, schedule
from ltxq_worker.pipeline.ltx import LtxPipeline

CPU = torch.device("cpu")
PROMPT = "A lighthouse in a storm — rain on the glass, thunder."


@dataclass(frozen=True)
class Sides:
    """The same tiny model, loaded by us and by the library."""

    ours: LtxPipeline
    library: ModelLedger
    folder: ModelFolder


@pytest.fixture(scope="module", params=["ltx-2-19b", "ltx-2.3-22b"])
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("models") / request.param
    make_tiny(path, request.param)
    folder = ModelFolder.open(path)
    give_statistics(folder.checkpoint)
    return Sides(
        ours=LtxPipeline.load(path, device="cpu", optimize="none"),
        library=ModelLedger(torch.bfloat16, CPU, checkpoint_path=str(folder.checkpoint)),
        folder=folder,
    )


@pytest.mark.parametrize(
    "size",
    [
        {"height": 64, "width": 64, "num_frames": 1},
        {"height": 64, "width": 96, "num_frames": 9, "seed": 7, "frame_rate": 25.0},
        {"height": 128, "width": 64, "num_frames": 25, "seed": 2**53 - 1, "frame_rate": 30.0},
    ],
    ids=lambda size: f"{size['width']}x{size['height']}x{size['num_frames']}",
)
def test_frames_and_sound_equal_the_librarys_bit_for_bit(
    sides: Sides, size: dict[str, int]
) -> None:
    request = VideoRequest(**{"seed": 42, "prompt": PROMPT, **size})
    frames, sound = ours(sides.ours, request)
    their_frames, their_sound = theirs(sides, request, DISTILLED_SIGMA_VALUES, tiling=None)
    assert frames.shape == (request.num_frames, request.height, request.width, 3)
    assert np.array_equal(frames, their_frames)
    assert np.array_equal(sound, their_sound)
    assert frames.std() > 5  # a picture, not a constant that equals itself


def test_frames_decoded_in_tiles_equal_the_librarys(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "PIXELS_UNTILED", 64 * 64 * 72)  # this clip is one frame more
    request = VideoRequest(seed=42, prompt=PROMPT, height=64, width=64, num_frames=73)
    frames, _ = ours(sides.ours, request)
    tiling = TilingConfig(temporal_config=TemporalTilingConfig(64, 24))
    their_frames, _ = theirs(sides, request, DISTILLED_SIGMA_VALUES, tiling)
    assert np.array_equal(frames, their_frames)


def test_one_changed_sigma_changes_the_clip(sides: Sides) -> None:
    """That the comparison above can fail."""
    request = VideoRequest(seed=42, prompt=PROMPT, height=64, width=64, num_frames=9)
    frames, sound = ours(sides.ours, request)
    sigmas = [*DISTILLED_SIGMA_VALUES]
    sigmas[4] -= 0.01
    their_frames, their_sound = theirs(sides, request, sigmas, tiling=None)
    assert not np.array_equal(frames, their_frames)
    assert not np.array_equal(sound, their_sound)


TWO_STAGES = [
    {"height": 64, "width": 64, "num_frames": 1},
    {"height": 128, "width": 192, "num_frames": 9, "seed": 7, "frame_rate": 25.0},
    {"height": 192, "width": 64, "num_frames": 17, "seed": 2**53 - 1, "audio": False},
]


@pytest.mark.parametrize(
    "size", TWO_STAGES, ids=lambda size: f"{size['width']}x{size['height']}x{size['num_frames']}"
)
def test_two_stages_equal_the_librarys_pipeline_bit_for_bit(
    sides: Sides, size: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = VideoRequest(**{"seed": 42, "prompt": PROMPT, "stages": 2, **size})
    frames, sound = ours(sides.ours, request)
    their_frames, their_sound = theirs_in_two_stages(sides, request, monkeypatch)
    assert frames.shape == (request.num_frames, request.height, request.width, 3)
    assert np.array_equal(frames, their_frames)
    assert np.array_equal(sound, their_sound) if request.audio else sound is None
    assert frames.std() > 5
    in_one, _ = ours(sides.ours, request.model_copy(update={"stages": 1}))
    assert not np.array_equal(frames, in_one)


@pytest.mark.parametrize(
    ("size", "in_space"),
    [((64, 64, 73), None), ((192, 64, 33), SpatialTilingConfig(128, 64))],
    ids=["in time", "in space"],
)
def test_two_stages_decoded_in_tiles_equal_the_librarys(
    sides: Sides,
    size: tuple[int, int, int],
    in_space: SpatialTilingConfig | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    height, width, num_frames = size
    request = VideoRequest(
        seed=42, prompt=PROMPT, stages=2, height=height, width=width, num_frames=num_frames
    )
    monkeypatch.setattr(memory, "TILE_SIDE", 128)
    # Little enough that tiles are used: in time from 65 frames on, in space for twice the pixels.
    pixels = height * width * num_frames - 1
    monkeypatch.setattr(memory, "PIXELS_UNTILED", pixels // 2 if in_space else pixels)
    frames, sound = ours(sides.ours, request)
    tiling = TilingConfig(in_space, TemporalTilingConfig(64, 24))
    their_frames, their_sound = theirs_in_two_stages(sides, request, monkeypatch, tiling)
    in_one_piece, _ = theirs_in_two_stages(sides, request, monkeypatch)
    assert not np.array_equal(frames, in_one_piece)
    assert np.array_equal(frames, their_frames)
    assert np.array_equal(sound, their_sound)


class OtherNoise(GaussianNoiser):
    """A little less noise than the second stage's first level asks for."""

    def __call__(self, latent_state: LatentState, noise_scale: float = 1.0) -> LatentState:
        return super().__call__(latent_state, noise_scale if noise_scale == 1 else 0.9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STAGE_2_DISTILLED_SIGMA_VALUES", [0.909375, 0.725, 0.42, 0.0]),
        ("DISTILLED_SIGMA_VALUES", [*DISTILLED_SIGMA_VALUES[:7], 0.42, 0.0]),
        ("GaussianNoiser", OtherNoise),
        ("upsample_video", lambda latent, video_encoder, upsampler: upsampler(latent)),
    ],
)
def test_anything_else_in_two_stages_makes_another_clip(
    sides: Sides, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the comparisons above can fail."""
    request = VideoRequest(seed=42, prompt=PROMPT, stages=2, height=64, width=64, num_frames=9)
    frames, sound = ours(sides.ours, request)
    monkeypatch.setattr(distilled, name, value)
    their_frames, their_sound = theirs_in_two_stages(sides, request, monkeypatch)
    assert not np.array_equal(frames, their_frames)
    assert not np.array_equal(sound, their_sound)


def test_the_schedule_is_the_librarys() -> None:
    assert list(schedule.FIRST_STAGE) == DISTILLED_SIGMA_VALUES
    assert list(schedule.SECOND_STAGE) == STAGE_2_DISTILLED_SIGMA_VALUES


@pytest.mark.parametrize("prompt", [PROMPT, "  a cat  ", "a long prompt " * 60])
def test_contexts_equal_the_librarys_on_transformers_hidden_states(
    sides: Sides, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = sides.ours._context(prompt)
    reference = their_context(sides, prompt, monkeypatch)
    assert context.video.shape[:2] == (1, 1024)
    assert torch.equal(context.video, reference.video_encoding)
    assert reference.audio_encoding is not None
    assert torch.equal(context.audio, reference.audio_encoding)


def give_statistics(checkpoint: Path) -> None:
    """Give the tiny model's latents means and deviations, which are 0 and 1 as it is made."""
    weights = load_file(checkpoint)
    with safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
    generator = torch.Generator().manual_seed(0)
    for name, offset in (("mean-of-means", -0.5), ("std-of-means", 0.5)):
        values = torch.rand(128, generator=generator) + offset
        weights[f"vae.per_channel_statistics.{name}"] = values.bfloat16()
    save_file(weights, checkpoint, metadata)


def ours(pipeline: LtxPipeline, request: VideoRequest) -> tuple[np.ndarray, np.ndarray | None]:
    clip = pipeline.generate(request, lambda stage, step, steps: None)
    return np.concatenate(list(clip.frames)), clip.sound and clip.sound.samples


@torch.inference_mode()
def theirs(
    sides: Sides, request: VideoRequest, sigmas: list[float], tiling: TilingConfig | None
) -> tuple[np.ndarray, np.ndarray]:
    """One stage by the library: its loaders, states, loop and decoders."""
    assert request.seed is not None
    generator = torch.Generator().manual_seed(request.seed)
    context = sides.ours._context(request.prompt)
    step = simple_denoising_func(context.video, context.audio, sides.library.transformer())
    video, audio = denoise_audio_video(
        output_shape=VideoPixelShape(
            1, request.num_frames, request.height, request.width, request.frame_rate
        ),
        conditionings=[],
        noiser=GaussianNoiser(generator),
        sigmas=torch.Tensor(sigmas),
        stepper=EulerDiffusionStep(),
        denoising_loop_fn=lambda sigmas, video, audio, stepper: euler_denoising_loop(
            sigmas, video, audio, stepper, step
        ),
        components=PipelineComponents(torch.bfloat16, CPU),
        dtype=torch.bfloat16,
        device=CPU,
    )
    chunks = decode_video(video.latent, sides.library.video_decoder(), tiling, generator)
    frames = np.concatenate([chunk.numpy() for chunk in chunks])
    sound = decode_audio(audio.latent, sides.library.audio_decoder(), sides.library.vocoder())
    return frames, sound.waveform.numpy()


@torch.inference_mode()
def theirs_in_two_stages(
    sides: Sides,
    request: VideoRequest,
    monkeypatch: pytest.MonkeyPatch,
    tiling: TilingConfig | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The library's own pipeline, given the context."""
    context = sides.ours._context(request.prompt)
    encoded = SimpleNamespace(video_encoding=context.video, audio_encoding=context.audio)
    monkeypatch.setattr(distilled, "encode_prompts", lambda *args, **kwargs: [encoded])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    pipeline = distilled.DistilledPipeline(
        distilled_checkpoint_path=str(sides.folder.checkpoint),
        gemma_root=None,
        spatial_upsampler_path=str(sides.folder.upscaler),
        loras=[],
        device=CPU,
    )
    # The tiny model has no encoder. Without pictures to start from, all that is asked of it are
    # the latents' statistics, which are stored once for encoder and decoder.
    ledger = pipeline.model_ledger
    monkeypatch.setattr(ledger, "video_encoder", ledger.video_decoder)
    chunks, sound = pipeline(
        prompt=request.prompt,
        seed=request.seed,
        height=request.height,
        width=request.width,
        num_frames=request.num_frames,
        frame_rate=request.frame_rate,
        images=[],
        tiling_config=tiling,
    )
    return np.concatenate([chunk.numpy() for chunk in chunks]), sound.waveform.numpy()


@torch.inference_mode()
def their_context(
    sides: Sides, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> EmbeddingsProcessorOutput:
    """Whole Gemma by transformers, then the library's processor, told the tiny Gemma's size."""
    sizes = SimpleNamespace(hidden_size=HIDDEN, num_hidden_layers=LAYERS)
    monkeypatch.setattr(
        encoder_configurator, "GEMMA3_CONFIG_FOR_LTX", SimpleNamespace(text_config=sizes)
    )
    folder: Path = sides.folder.text_encoder
    gemma = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    pairs = LTXVGemmaTokenizer(str(folder), 1024).tokenize_with_weights(prompt)["gemma"]
    ids, mask = (torch.tensor([[int(pair[i]) for pair in pairs]]) for i in (0, 1))
    hidden = gemma.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    processor = sides.library.gemma_embeddings_processor()
    return processor.process_hidden_states(hidden.hidden_states, mask)
