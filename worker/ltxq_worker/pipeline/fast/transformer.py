"""ltx-core's transformer without repeated work: values that the library recomputes for every token,
block or step are computed once and passed in.

The blocks, their weights and their arithmetic are the library's. Equal to `LibraryTransformer` up
to rounding.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from ltx_core.guidance.perturbations import BatchedPerturbationConfig
from ltx_core.model.transformer import X0Model
from ltx_core.model.transformer.attention import Attention, PytorchAttention
from ltx_core.model.transformer.transformer_args import (
    MultiModalTransformerArgsPreprocessor,
    TransformerArgs,
)
from ltx_core.types import LatentState
from ltx_core.utils import to_denoised

from ltxq_worker.models.weights.text import TextContext
from ltxq_worker.pipeline.denoise import Step, modality
from ltxq_worker.pipeline.fast.attention import AttentionKernels

Streams = tuple[torch.Tensor, torch.Tensor]  # picture and sound, [1, tokens, width]
RunBlock = Callable[[torch.nn.Module, TransformerArgs, TransformerArgs], Streams]


Tree = torch.Tensor | tuple["Tree", ...]
# The rotary embeddings of a stream's self-attention and cross-attention, and the denoise mask of
# one token: the noise level at a step is the mask times sigma.
StepConstants = tuple[Tree, Tree, torch.Tensor]
T = TypeVar("T", bound=Tree)


@dataclass(frozen=True)
class PreparedInputs:
    """The inputs that are constant over all steps of a clip."""

    # The text each block attends to, for picture and for sound: keys and values if the noise level
    # does not modulate the text (LTX-2 19B); else the context itself, the same for all blocks.
    text: Tree
    # For picture and for sound.
    rest: tuple[StepConstants, StepConstants]


def leaves(tree: Tree) -> Iterator[torch.Tensor]:
    """The tensors of `tree`, in order."""
    if isinstance(tree, torch.Tensor):
        yield tree
    else:
        for part in tree:
            yield from leaves(part)


def mapped(change: Callable[[torch.Tensor], torch.Tensor], tree: T) -> T:
    """`tree` with `change` applied to every tensor, once for a tensor that occurs repeatedly."""
    once = functools.cache(change)  # by the tensor's identity

    def walk(tree: Tree) -> Tree:
        return tuple(map(walk, tree)) if isinstance(tree, tuple) else once(tree)

    return cast("T", walk(tree))


class FastTransformer:
    """A `Transformer` over ltx-core's modules, which it shares and does not modify."""

    def __init__(
        self,
        model: X0Model,
        *,
        run_block: RunBlock | None = None,
        attention: AttentionKernels | None = None,
    ) -> None:
        """`run_block`: runs a block; None: `run_one_block`. `attention`: the order of attention
        kernels; None: torch's order.
        """
        self._model = model.velocity_model
        self._text_is_fixed = not self._model.cross_attention_adaln
        self._blocks = [
            _shared(block, fixed_text=self._text_is_fixed)
            for block in self._model.transformer_blocks
        ]
        self._run_block = run_block or run_one_block
        self._attention = attention or AttentionKernels()

    def bind(
        self,
        video: LatentState,
        audio: LatentState,
        context: TextContext,
        levels: Sequence[float],
    ) -> Step:
        """As `Transformer.bind`. Prepares positions, projected text, and its keys and values."""
        prepared = self.prepare(video, audio, context)
        sigmas = noise_levels(tuple(levels), video.latent.device)
        return lambda video, audio, index: self.step(
            prepared, video, audio, sigmas[index], sigmas[index + 1]
        )

    def step(
        self,
        prepared: PreparedInputs,
        video: torch.Tensor,
        audio: torch.Tensor,
        sigma: torch.Tensor,
        after: torch.Tensor,
    ) -> Streams:
        """One denoising step from noise level `sigma` to `after`, both scalars on the device."""
        with self._attention.kernels(video.shape[1]):
            clean_video, clean_audio = self.predict(prepared, video, audio, sigma)
        return (
            _euler_step(clean_video, video, sigma, after),
            _euler_step(clean_audio, audio, sigma, after),
        )

    def prepare(
        self, video: LatentState, audio: LatentState, context: TextContext
    ) -> PreparedInputs:
        """Compute a clip's constant inputs for `predict`."""
        sigma = torch.ones((), device=video.latent.device)
        # One token carries the timestep, since all have the same.
        video, audio = (
            replace(state, denoise_mask=state.denoise_mask[:, :1]) for state in (video, audio)
        )
        noisy_video = modality(video, video.latent, context.video, sigma)
        noisy_audio = modality(audio, audio.latent, context.audio, sigma)
        of_video = self._model.video_args_preprocessor.prepare(noisy_video, noisy_audio)
        of_audio = self._model.audio_args_preprocessor.prepare(noisy_audio, noisy_video)
        return PreparedInputs(
            text=tuple(
                (
                    self._text(block.attn2, of_video.context),
                    self._text(block.audio_attn2, of_audio.context),
                )
                for block in self._model.transformer_blocks
            ),
            rest=(_step_constants(of_video, video), _step_constants(of_audio, audio)),
        )

    def _text(self, attention: Attention, context: torch.Tensor) -> Tree:
        if not self._text_is_fixed:
            return context
        return attention.k_norm(attention.to_k(context)), attention.to_v(context)

    def predict(
        self,
        prepared: PreparedInputs,
        video: torch.Tensor,
        audio: torch.Tensor,
        sigma: torch.Tensor,
    ) -> Streams:
        """The predicted clean picture and sound. Never waits for the device."""
        model = self._model
        for_video, for_audio = prepared.rest
        video_args = _at(model.video_args_preprocessor, for_video, video, sigma)
        audio_args = _at(model.audio_args_preprocessor, for_audio, audio, sigma)
        vx, ax = video_args.x, audio_args.x
        for block, (video_text, audio_text) in zip(self._blocks, prepared.text, strict=True):
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
            to_denoised(video, vx, for_video[-1] * sigma),
            to_denoised(audio, ax, for_audio[-1] * sigma),
        )


@functools.lru_cache(maxsize=16)
def noise_levels(levels: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """A schedule as a tensor, cached on the device: each upload would wait for the device."""
    return torch.tensor(levels, device=device)


def run_one_block(
    block: torch.nn.Module, video: TransformerArgs, audio: TransformerArgs
) -> Streams:
    """Run one block: its picture and sound."""
    video, audio = block(video, audio, _UNPERTURBED)
    return video.x, audio.x


def _euler_step(
    clean: torch.Tensor, noisy: torch.Tensor, sigma: torch.Tensor, after: torch.Tensor
) -> torch.Tensor:
    """The Euler step, with the same rounding as the library's, which waits for sigma's value."""
    velocity = ((noisy.float() - clean.float()) / sigma).to(noisy.dtype)
    return (noisy.float() + velocity.float() * (after - sigma)).to(noisy.dtype)


def _step_constants(args: TransformerArgs, state: LatentState) -> StepConstants:
    return args.positional_embeddings, args.cross_positional_embeddings, state.denoise_mask


def _at(
    preprocessor: MultiModalTransformerArgsPreprocessor,
    constants: StepConstants,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
) -> TransformerArgs:
    """The blocks' inputs at a step: projected latents, and modulations by the noise level."""
    inner, batch, dtype = preprocessor.simple_preprocessor, noisy.shape[0], noisy.dtype
    positions, cross_positions, mask = constants
    timesteps, embedded = inner._prepare_timestep(mask * sigma, inner.adaln, batch, dtype)
    prompt = None
    if inner.prompt_adaln is not None:
        prompt, _ = inner._prepare_timestep(sigma, inner.prompt_adaln, batch, dtype)
    cross, gate = preprocessor._prepare_cross_attention_timestep(
        sigma.view(1, 1, 1), inner.timestep_scale_multiplier, batch, dtype
    )
    return TransformerArgs(
        x=inner.patchify_proj(noisy),
        context=None,  # set for each block
        context_mask=None,
        timesteps=timesteps,
        embedded_timestep=embedded,
        positional_embeddings=positions,
        cross_positional_embeddings=cross_positions,
        cross_scale_shift_timestep=cross,
        cross_gate_timestep=gate,
        enabled=True,
        prompt_timestep=prompt,
    )


def _shared(block: torch.nn.Module, *, fixed_text: bool) -> torch.nn.Module:
    """A copy of `block` that shares its weights. With `fixed_text`, its text attention takes a pair
    of keys and values as the context.
    """
    view = _view(block)
    view.idx = 0  # used by perturbations only; one compiled function must serve all blocks
    for name, part in block.named_children():
        if isinstance(part, Attention):
            attention = _view(part)
            attention.attention_function = _ATTENTION
            if fixed_text and name in ("attn2", "audio_attn2"):
                attention.to_k, attention.to_v = _Part(0), _Part(1)
                attention.k_norm = torch.nn.Identity()
            setattr(view, name, attention)
    return view


def _view(module: torch.nn.Module) -> Any:
    """A shallow copy of a module, whose submodules can be replaced independently."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view


class _Part(torch.nn.Module):
    """Returns one element of a pair."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self._index = index

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return pair[self._index]


class _One:
    """Multiplicative identity: returns the tensor without launching a kernel."""

    def __rmul__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


class _Unperturbed(BatchedPerturbationConfig):
    """Skips no attention. The library's config multiplies both streams by a tensor of ones."""

    def mask_like(self, *_: Any) -> Any:
        # The compiler does not support _One, but removes a multiplication by 1.0.
        return 1.0 if torch.compiler.is_compiling() else _One()

    def any_in_batch(self, *_: Any) -> bool:
        return False

    def all_in_batch(self, *_: Any) -> bool:
        return False


_UNPERTURBED = _Unperturbed([])
# The library's default. It selects it at each call through an enum, which torch cannot compile.
_ATTENTION = PytorchAttention()
