"""Encodes a prompt to the two contexts that the transformer attends to, for picture and for sound.

transformers loads and runs Gemma by the configuration in its folder; ltx-core's feature extractor
and connectors process its hidden states. The pipeline caches contexts and manages memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ltx_core.text_encoders.gemma import EmbeddingsProcessor
from ltx_core.text_encoders.gemma.embeddings_connector import (
    AudioEmbeddings1DConnectorConfigurator,
    Embeddings1DConnector,
    Embeddings1DConnectorConfigurator,
)
from ltx_core.text_encoders.gemma.feature_extractor import FeatureExtractorV1, FeatureExtractorV2
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import set_tqdm_hook

from ltxq.errors import InvalidRequest, ModelUnusable
from ltxq_worker.models.catalog import how_to_repair

MAX_TOKENS = 1024  # the connectors' sequence length; ltx-core would cut a longer prompt silently


@dataclass(frozen=True)
class TextContext:
    """An encoded prompt: the embeddings the transformer attends to."""

    video: torch.Tensor  # bf16 [1, 1024, D]
    audio: torch.Tensor  # bf16 [1, 1024, D']


@dataclass
class TextEncoder:
    """Tokenizer, Gemma and the embeddings processor, loaded."""

    tokenizer: PreTrainedTokenizerBase
    gemma: PreTrainedModel
    embeddings: EmbeddingsProcessor

    def tokenize(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, both int64 [1, 1024], padded on the left as the model was trained.

        Raises:
            InvalidRequest: the prompt has more than 1,024 tokens; it is not truncated.
        """
        ids = self.tokenizer(prompt.strip(), verbose=False)["input_ids"]
        if len(ids) > MAX_TOKENS:
            raise InvalidRequest(
                f"The prompt has {len(ids):,} tokens, more than the model's {MAX_TOKENS:,}.",
                hint="Shorten it.",
                problems=(("prompt", f"must have at most {MAX_TOKENS} tokens, not {len(ids)}"),),
            )
        padding = MAX_TOKENS - len(ids)
        return (
            torch.tensor([[self.tokenizer.pad_token_id] * padding + ids]),
            torch.tensor([[0] * padding + [1] * len(ids)]),
        )

    @torch.inference_mode()
    def encode(self, prompt: str, *, padded: bool = True) -> TextContext:
        """The contexts of one prompt, on Gemma's device. Raises InvalidRequest as `tokenize`.

        `padded`: run Gemma over all 1,024 positions, as the model was trained. Else over the
        prompt's positions only: the result is equal up to rounding, since Gemma's attention is
        causal and the padding is masked.
        """
        device = next(self.gemma.parameters()).device
        ids, mask = (tensor.to(device) for tensor in self.tokenize(prompt))
        if not padded:
            return self._encode_without_padding(ids, int(mask.sum()))
        hidden = self.gemma(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        encoded = self.embeddings.process_hidden_states(hidden, mask)
        return TextContext(video=encoded.video_encoding, audio=encoded.audio_encoding)

    def _encode_without_padding(self, ids: torch.Tensor, count: int) -> TextContext:
        ids = ids[:, -count:]
        hidden = self.gemma(
            input_ids=ids,
            position_ids=torch.arange(MAX_TOKENS - count, MAX_TOKENS, device=ids.device)[None],
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        processor = self.embeddings
        video, audio = processor.feature_extractor(hidden, torch.ones_like(ids), "left")
        return TextContext(
            video=_connected(processor.video_connector, video),
            audio=_connected(processor.audio_connector, audio),
        )


def _connected(connector: Embeddings1DConnector, features: torch.Tensor) -> torch.Tensor:
    """A connector's output for a prompt's features [1, tokens, D], followed by the registers.

    The library puts the registers in place of the padding and passes a mask of zeros, which masks
    nothing but excludes the fast attention kernels.
    """
    registers = connector.learnable_registers
    after = registers.tile(MAX_TOKENS // len(registers), 1)[None, features.shape[1] :]
    without_registers = copy.copy(connector)
    without_registers.num_learnable_registers = None
    encoded: torch.Tensor
    encoded, _ = without_registers(torch.cat((features, after), dim=1), None)
    return encoded


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a text encoder's folder.

    Raises:
        ModelUnusable: the files cannot be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as exc:  # tokenizers raises a bare Exception for a damaged file
        raise _unreadable(folder, "tokenizer", exc) from exc
    if tokenizer.pad_token_id is None:  # as ltx-core does
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def gemma_size(folder: Path) -> tuple[int, int]:
    """Width and number of layers of the Gemma in `folder`, by its configuration.

    Raises:
        ModelUnusable: the configuration cannot be read.
    """
    try:
        text = Gemma3Config.from_pretrained(folder, local_files_only=True).text_config
    except Exception as exc:  # transformers raises its own validation errors, of several bases
        raise _unreadable(folder, "configuration", exc) from exc
    return text.hidden_size, text.num_hidden_layers


def load_gemma(
    folder: Path, device: torch.device, report: Callable[[float], None]
) -> PreTrainedModel:
    """Gemma's language model in bf16: token ids to hidden states. The vision tower is not returned.

    transformers maps the files into memory and copies each weight to the device. `report` receives
    the share of weights that are loaded.

    Raises:
        ModelUnusable: a weight is missing, unexpected or has the wrong shape.
    """
    try:
        with _weights_counted(report):
            model, loading = Gemma3ForConditionalGeneration.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,  # never a pickle
                dtype=torch.bfloat16,
                device_map={"": device},
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError) as exc:
        if isinstance(exc, torch.OutOfMemoryError):
            raise
        raise _unreadable(folder, "weights", exc) from exc
    wrong = {kind: sorted(map(str, keys)) for kind, keys in loading.items() if keys}
    if wrong:
        kind, keys = next(iter(wrong.items()))
        raise ModelUnusable(
            f"{folder} does not hold the Gemma its config.json describes: "
            f"{kind.replace('_', ' ')}: {', '.join(keys[:3])} ({len(keys)} in all).",
            hint=how_to_repair(folder / "model.safetensors"),
        )
    return model.model.language_model.eval().requires_grad_(False)


@contextmanager
def _weights_counted(report: Callable[[float], None]) -> Iterator[None]:
    """Redirects transformers' progress bar to `report`."""

    def count(_bar: Any, args: tuple[Collection[Any]], _options: Any) -> Iterator[Any]:
        for done, weight in enumerate(args[0]):
            report(done / len(args[0]))
            yield weight

    before = set_tqdm_hook(count)
    try:
        yield
    finally:
        set_tqdm_hook(before)


def build_embeddings(config: dict[str, Any], hidden_size: int, layers: int) -> EmbeddingsProcessor:
    """ltx-core's feature extractor and connectors for a checkpoint and a Gemma of any size.

    ltx-core's own configurator has Gemma 12B's sizes built in. LTX-2.3 projects the hidden states
    of all layers (and the embeddings) before the connectors, separately for picture and sound;
    LTX-2 projects them once for both, and again in the transformer.
    """
    transformer = config["transformer"]
    flat = hidden_size * (layers + 1)
    if transformer.get("caption_proj_before_connector", False):
        video = transformer["num_attention_heads"] * transformer["attention_head_dim"]
        audio = transformer["audio_num_attention_heads"] * transformer["audio_attention_head_dim"]
        extractor: torch.nn.Module = FeatureExtractorV2(
            video_aggregate_embed=torch.nn.Linear(flat, video),
            embedding_dim=hidden_size,
            audio_aggregate_embed=torch.nn.Linear(flat, audio),
        )
    else:
        extractor = FeatureExtractorV1(torch.nn.Linear(flat, hidden_size, bias=False), is_av=True)
    return EmbeddingsProcessor(
        feature_extractor=extractor,
        video_connector=Embeddings1DConnectorConfigurator.from_config(config),
        audio_connector=AudioEmbeddings1DConnectorConfigurator.from_config(config),
    )


def _unreadable(folder: Path, what: str, exc: Exception) -> ModelUnusable:
    reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
    return ModelUnusable(
        f"The text encoder's {what} in {folder} cannot be read: {reason}",
        hint=how_to_repair(folder / "model.safetensors"),
    )
