"""ltx-core's transformer without its waste: what a clip or a step needs once is made once.

The blocks, their weights and their arithmetic are the library's own. What it works out anew for
every token, block or step, though it is the same, is worked out here and handed in. Equal to
`LibraryTransformer` up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from ltx_core.guidance.perturbations import BatchedPerturbationConfig
from ltx_core.model.transformer import Modality, X0Model
from ltx_core.model.transformer.attention import Attention, PytorchAttention
from ltx_core.model.transformer.transformer_args import (
    MultiModalTransformerArgsPreprocessor,
    TransformerArgs,
)
from ltx_core.types import LatentState
from ltx_core.utils import to_denoised

from ltxq_worker.models.text import TextContext
from ltxq_worker.pipeline.denoise import Predict

Streams = tuple[torch.Tensor, torch.Tensor]  # picture and sound, [1, tokens, width]
RunBlock = Callable[..., Streams]


@dataclass(frozen=True)
class Bound:
    """What stays the same in all steps of a clip."""

    video: TransformerArgs  # positions and text; the rest is each step's
    audio: TransformerArgs
    # The text as each block takes it: keys and values where they stay the same, which is when
    # the noise level does not modulate the text (LTX-2 19B); else the context itself.
    text: tuple[tuple[Any, Any], ...]
    masks: tuple[torch.Tensor, torch.Tensor]  # of one token: a step's timestep is it × sigma

    def tensors(self) -> Iterator[torch.Tensor]:
        """All of it, in an order that depends on the model alone."""
        for args in (self.video, self.audio):
            yield from args.positional_embeddings
            yield from args.cross_positional_embeddings
        for block in self.text:
            for part in block:
                yield from part if isinstance(part, tuple) else (part,)
        yield from self.masks


class FastTransformer:
    """A `Transformer` over ltx-core's modules, which it shares and leaves as they are."""

    def __init__(self, model: X0Model, run_block: RunBlock | None = None) -> None:
        """`run_block`: what runs a block in place of `run_block` of this module."""
        self._model = model.velocity_model
        self._text_is_fixed = not self._model.cross_attention_adaln
        self._blocks = [
            _shared(block, fixed_text=self._text_is_fixed)
            for block in self._model.transformer_blocks
        ]
        self._run_block = run_block or run_one_block

    def bind(self, video: LatentState, audio: LatentState, context: TextContext) -> Predict:
        """As `Transformer.bind`: positions, projected text, and keys and values of it."""
        bound = self.prepare(video, audio, context)
        return lambda *noisy: self.predict(bound, *noisy)

    def prepare(self, video: LatentState, audio: LatentState, context: TextContext) -> Bound:
        """What `predict` needs of a clip."""
        sigma = torch.ones((), device=video.latent.device)
        noisy_video = _modality(video, context.video, sigma)
        noisy_audio = _modality(audio, context.audio, sigma)
        video_args = self._model.video_args_preprocessor.prepare(noisy_video, noisy_audio)
        audio_args = self._model.audio_args_preprocessor.prepare(noisy_audio, noisy_video)
        return Bound(
            video=video_args,
            audio=audio_args,
            text=tuple(
                (
                    self._text(block.attn2, video_args.context),
                    self._text(block.audio_attn2, audio_args.context),
                )
                for block in self._model.transformer_blocks
            ),
            masks=(video.denoise_mask[:, :1], audio.denoise_mask[:, :1]),
        )

    def _text(self, attention: torch.nn.Module, context: torch.Tensor) -> Any:
        if not self._text_is_fixed:
            return context
        return attention.k_norm(attention.to_k(context)), attention.to_v(context)

    def predict(
        self, bound: Bound, video: torch.Tensor, audio: torch.Tensor, sigma: torch.Tensor
    ) -> Streams:
        """One step; nothing in it waits for the device."""
        model = self._model
        video_mask, audio_mask = bound.masks
        video_args = _at(model.video_args_preprocessor, bound.video, video, video_mask, sigma)
        audio_args = _at(model.audio_args_preprocessor, bound.audio, audio, audio_mask, sigma)
        vx, ax = video_args.x, audio_args.x
        for block, (video_text, audio_text) in zip(self._blocks, bound.text, strict=True):
            vx, ax = self._run_block(
                block,
                replace(video_args, x=vx, context=video_text),
                replace(audio_args, x=ax, context=audio_text),
            )
        vx = model._process_output(
            model.scale_shift_table,
            model.norm_out,
            model.proj_out,
            vx,
            video_args.embedded_timestep,
        )
        ax = model._process_output(
            model.audio_scale_shift_table,
            model.audio_norm_out,
            model.audio_proj_out,
            ax,
            audio_args.embedded_timestep,
        )
        return (
            to_denoised(video, vx, video_mask * sigma),
            to_denoised(audio, ax, audio_mask * sigma),
        )


def run_one_block(
    block: torch.nn.Module, video: TransformerArgs, audio: TransformerArgs
) -> Streams:
    """A block's picture and sound."""
    video, audio = block(video, audio, _UNPERTURBED)
    return video.x, audio.x


def _modality(state: LatentState, context: torch.Tensor, sigma: torch.Tensor) -> Modality:
    """A clip at any noise level, which one token tells of: the others are as noisy."""
    return Modality(
        latent=state.latent,
        sigma=sigma,
        timesteps=state.denoise_mask[:, :1] * sigma,
        positions=state.positions,
        context=context,
    )


def _at(
    preprocessor: MultiModalTransformerArgsPreprocessor,
    args: TransformerArgs,
    noisy: torch.Tensor,
    mask: torch.Tensor,
    sigma: torch.Tensor,
) -> TransformerArgs:
    """`args` for a step: the latents projected, and what the noise level modulates."""
    inner, batch, dtype = preprocessor.simple_preprocessor, noisy.shape[0], noisy.dtype
    timesteps, embedded = inner._prepare_timestep(mask * sigma, inner.adaln, batch, dtype)
    prompt = None
    if inner.prompt_adaln is not None:
        prompt, _ = inner._prepare_timestep(sigma, inner.prompt_adaln, batch, dtype)
    cross, gate = preprocessor._prepare_cross_attention_timestep(
        sigma.view(1, 1, 1), inner.timestep_scale_multiplier, batch, dtype
    )
    return replace(
        args,
        x=inner.patchify_proj(noisy),
        timesteps=timesteps,
        embedded_timestep=embedded,
        prompt_timestep=prompt,
        cross_scale_shift_timestep=cross,
        cross_gate_timestep=gate,
    )


def _shared(block: torch.nn.Module, *, fixed_text: bool) -> torch.nn.Module:
    """`block` with the same weights. With `fixed_text` its attention to the text takes the keys
    and values for the context, as a pair.
    """
    view = _view(block)
    view.idx = 0  # which only perturbations ask for; compiled code must not depend on it
    for name, part in block.named_children():
        if isinstance(part, Attention):
            attention = _view(part)
            attention.attention_function = _ATTENTION
            if fixed_text and name in ("attn2", "audio_attn2"):
                attention.to_k, attention.to_v = _Part(0), _Part(1)
                attention.k_norm = torch.nn.Identity()
            setattr(view, name, attention)
    return view


def _view(module: torch.nn.Module) -> torch.nn.Module:
    """Another module with the same parts, whose parts may be exchanged."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view


class _Part(torch.nn.Module):
    """One of a pair."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self._index = index

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return pair[self._index]


class _One:
    """Times a tensor it is that tensor, at no cost."""

    def __rmul__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


class _Unperturbed(BatchedPerturbationConfig):
    """No attention is skipped. The library's own multiplies both streams by a tensor of ones."""

    def mask_like(self, *_: Any) -> Any:
        # The compiler knows no _One, and what a 1.0 is worth.
        return 1.0 if torch.compiler.is_compiling() else _One()

    def any_in_batch(self, *_: Any) -> bool:
        return False

    def all_in_batch(self, *_: Any) -> bool:
        return False


_UNPERTURBED = _Unperturbed([])
# The library's default, which it looks up at each call through an enum no compiler sees through.
_ATTENTION = PytorchAttention()
