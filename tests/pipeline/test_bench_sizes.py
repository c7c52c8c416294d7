"""What `bench/clip.py` builds on a GPU, built without its numbers: sizes, shapes, arithmetic and
which arms a card holds, so that the first run on a card finds nothing that a CPU could have.
"""

from __future__ import annotations

import pytest
import torch
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.model.audio_vae import decode_audio
from ltx_core.model.upsampler import upsample_video
from ltx_core.model.video_vae import decode_video
from ltx_core.tools import AudioLatentTools, VideoLatentTools
from ltx_core.types import AudioLatentShape, VideoLatentShape

from bench.harness import flops, plan, workloads
from bench.harness.weights import Kind, Sizes, build_shared, build_transformer, draw
from ltxq_worker.models.weights.text import MAX_TOKENS, TextContext, _connected
from ltxq_worker.pipeline import memory
from ltxq_worker.pipeline.denoise import LibraryTransformer
from ltxq_worker.pipeline.device import KEPT_FREE
from ltxq_worker.pipeline.fast.transformer import FastTransformer

pytestmark = pytest.mark.extended

META = torch.device("meta")


@pytest.fixture(params=["ltx-2-19b", "ltx-2.3-22b"])
def sizes(request: pytest.FixtureRequest) -> Sizes:
    return Sizes.of(request.param, tiny_one=False)


def test_the_transformer_has_the_published_number_of_weights(sizes: Sizes) -> None:
    billions = {"ltx-2-19b": 18.876, "ltx-2.3-22b": 18.989}[sizes.base]
    model = build_transformer(sizes, META, "bf16")
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.001)


def test_the_parts_have_the_published_sizes(sizes: Sizes) -> None:
    """In GB: those of the whole checkpoint but for the encoders, which a worker leaves out."""
    shared, transformer = plan.shared_bytes(sizes), plan.transformer_bytes
    assert shared / 1e9 == pytest.approx({"ltx-2-19b": 28.6, "ltx-2.3-22b": 32.0}[sizes.base], 0.01)
    assert transformer(sizes, "bf16") / 1e9 == pytest.approx(37.9, 0.01)
    assert transformer(sizes, "fp8") / 1e9 == pytest.approx(21.7, 0.01)


@pytest.mark.parametrize(("workload", "teraflop"), [("a", 471), ("c", 5027)])
def test_the_arithmetic_is_what_all_blocks_do(workload: str, teraflop: int) -> None:
    """Against a count over all 48 blocks, made once."""
    sizes = Sizes.of("ltx-2-19b", tiny_one=False)
    counted = flops.denoising(sizes, workloads.request(workload, 0, tiny=False))
    assert counted.total / 1e12 == pytest.approx(teraflop, abs=1)
    assert 0.5 < counted.in_8_bits / counted.total < 0.85


@pytest.mark.parametrize("kind", ["bf16", "fp8_cast", "fp8"])
def test_a_step_and_the_decoders_go_through_in_full_size(sizes: Sizes, kind: Kind) -> None:
    """With seven blocks, of which one is for FP8: the others are like it."""
    size = flops.pixel_shape(workloads.request("c", 0, tiny=False))
    picture = VideoLatentTools(
        VideoLatentPatchifier(patch_size=1), VideoLatentShape.from_pixel_shape(size), size.fps
    )
    sound = AudioLatentTools(
        AudioPatchifier(patch_size=1), AudioLatentShape.from_video_pixel_shape(size)
    )
    model = build_transformer(sizes.with_blocks(flops.WIDE_BLOCKS + 1), META, kind)
    with torch.inference_mode():
        video, audio = (
            tools.create_initial_state(META, torch.bfloat16) for tools in (picture, sound)
        )
        texts = (
            torch.empty(1, MAX_TOKENS, width, dtype=torch.bfloat16, device=META)
            for width in sizes.context_widths
        )
        context = TextContext(*texts)
        for transformer in (LibraryTransformer(model), FastTransformer(model)):
            step = transformer.bind(video, audio, context, (1.0, 0.0))
            clean = step(video.latent, audio.latent, 0)
            assert [part.shape for part in clean] == [video.latent.shape, audio.latent.shape]
        if kind != "bf16":
            return
        shared = build_shared(sizes, META)
        latent = picture.unpatchify(video).latent
        doubled = upsample_video(latent, shared.video_decoder, shared.upsampler)
        assert doubled.shape[-2:] == (2 * 1024 // 32, 2 * 1536 // 32)
        (frames,) = decode_video(latent, shared.video_decoder)
        assert frames.shape == (121, 1024, 1536, 3)
        waveform = decode_audio(
            sound.unpatchify(audio).latent, shared.audio_decoder, shared.vocoder
        ).waveform
        assert len(waveform) == 2


def test_a_prompt_goes_through_gemma_and_the_connectors_in_full_size(sizes: Sizes) -> None:
    shared = build_shared(sizes, META)
    ids = torch.zeros(1, MAX_TOKENS, dtype=torch.int64, device=META)
    with torch.inference_mode():
        hidden = shared.gemma(
            input_ids=ids,
            attention_mask=dict.fromkeys(("full_attention", "sliding_attention")),  # looks at none
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        assert len(hidden) == 49
        parts = shared.embeddings
        video, audio = parts.feature_extractor(hidden, torch.ones_like(ids), "left")
        contexts = (
            _connected(parts.video_connector, video),
            _connected(parts.audio_connector, audio),
        )
    for context, width in zip(contexts, sizes.context_widths, strict=True):
        assert context.shape == (1, MAX_TOKENS, width)


@pytest.mark.parametrize(
    ("gigabytes", "groups"),
    [
        (150, [["library", "library-fp8", "ltxq", "ltxq-fp8"]]),  # an H200
        (85.9, [["library", "ltxq"], ["library-fp8", "ltxq-fp8"]]),  # an H100
        (60, [["library"], ["ltxq"], ["library-fp8"], ["ltxq-fp8"]]),  # bf16 fits none
    ],
)
@pytest.mark.parametrize("workload", ["a", "b"])
def test_arms_take_turns_where_the_card_holds_them(
    sizes: Sizes, gigabytes: float, groups: list[list[str]], workload: str
) -> None:
    specs = plan.specs(plan.ARMS, [], "auto", "cuda")
    request = workloads.request(workload, 0, tiny=False)
    packed = plan.groups(specs, sizes, request, int(gigabytes * 1e9))
    assert [[spec.name for spec in group] for group in packed] == groups


@pytest.mark.parametrize("kind", ["bf16", "fp8"])
@pytest.mark.parametrize("gigabytes", range(70, 160, 5))
def test_no_arm_decodes_in_tiles_for_the_others_sake(
    sizes: Sizes, gigabytes: int, kind: Kind
) -> None:
    """What a clip is decoded in depends on what is free; a worker is alone on its card."""
    room = gigabytes * 10**9
    request = workloads.request("c", 0, tiny=False)
    shape = memory.Shape(request.height, request.width, request.num_frames, request.stages)
    whole = memory.bytes_needed(sizes.config, shape, in_one_piece=True)
    held = plan.shared_bytes(sizes) + plan.decoder_bytes(sizes)
    alone = room - held - plan.transformer_bytes(sizes, kind) - KEPT_FREE
    specs = plan.specs(plan.ARMS, ["decode"], "auto", "cuda")
    for group in plan.groups(specs, sizes, request, room):
        kinds = {spec.weights for spec in group}
        if kind not in kinds:
            continue
        weights = sum(plan.transformer_bytes(sizes, weights) for weights in kinds)
        own = sum(plan.own_bytes(spec, sizes, request) for spec in group)
        beside = room - plan.shared_bytes(sizes) - weights - own - KEPT_FREE
        if whole <= alone - 3e9:  # a worker's clip is decoded in one piece, and not just barely
            assert whole <= beside


def test_arms_of_the_same_weights_are_parted_where_recorded_steps_do_not_fit(sizes: Sizes) -> None:
    specs = plan.specs(["ltxq-fp8"], ["each"], "all", "cuda")
    request = workloads.request("c", 0, tiny=False)
    (all_of_them,) = plan.groups(specs, sizes, request, int(150e9))
    assert all_of_them == specs
    packed = plan.groups(specs, sizes, request, int(85.9e9))
    assert len(packed) > 1
    assert sorted(spec.name for group in packed for spec in group) == sorted(s.name for s in specs)


def test_each_optimization_can_be_left_out() -> None:
    arms = {
        spec.name: spec for spec in plan.specs(["library", "ltxq-fp8"], ["each"], "all", "cuda")
    }
    on = arms["ltxq-fp8"].optimizations
    assert on is not None
    for name in vars(on):
        without = arms[f"ltxq-fp8 −{name}"].optimizations
        assert without is not None
        assert not getattr(without, name)
        off = {other for other in vars(on) if not getattr(without, other)}
        stand_on_lean = {"attention", "compile", "graphs"}
        assert off == {name} | (stand_on_lean if name == "hoist" else set())
    with pytest.raises(ValueError, match="there is no 'speed'"):
        plan.specs(["ltxq"], ["speed"], "all", "cuda")


def test_weights_are_of_realistic_size_and_the_same_each_time() -> None:
    for name, like in (
        ("transformer.transformer_blocks.3.attn1.to_q.weight", torch.empty(96, 256)),
        ("transformer.transformer_blocks.3.ff.net.2.bias", torch.empty(256)),
        ("transformer.scale_shift_table", torch.empty(2, 256)),
        ("text.video_connector.learnable_registers", torch.empty(128, 256)),
        ("vae.conv_in.conv.weight", torch.empty(64, 128, 3, 3, 3)),
        ("gemma.norm.weight", torch.empty(256)),
    ):
        drawn = draw(name, like)
        assert drawn.shape == like.shape
        assert drawn.isfinite().all()
        assert drawn.any()
        assert torch.equal(drawn, draw(name, like))
        assert not torch.equal(drawn, draw(f"another.{name}", like))
    linear = draw("transformer.proj.weight", torch.empty(512, 256)).float()
    assert float(linear.std()) == pytest.approx(256**-0.5, rel=0.02)
