"""The tiny model's text encoder: a Gemma 3 of less than half a megabyte, and a tokenizer for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

HIDDEN, LAYERS = 64, 4  # Gemma's width and depth; 3,840 and 48 in Gemma 3 12B

Fill = Callable[[str, torch.Tensor, torch.Generator], torch.Tensor]
"""Random values for a weight: arguments are its name, a tensor of its shape, and the generator."""

# The text the tokenizer's merges are learned from: a token is about three characters of English.
_ENGLISH = """
a cat walks along the beach at sunset while the waves roll in and the camera follows slowly
the woman in the red coat turns and smiles, soft light, shallow depth of field, film grain
an old lighthouse in the storm, rain on the glass, thunder and wind, a ship in the distance
close-up of hands on a piano, warm light, quiet music and the sound of people talking
drone shot over the mountains in the morning, clouds, a river and a forest of green trees
"""


def write_text_encoder(folder: Path, seed: int, fill: Fill) -> None:
    """Gemma's weights, configuration and tokenizer, as transformers saves them."""
    tokenizer = make_tokenizer()
    config = Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 512,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        boi_token_index=len(tokenizer) - 3,
        eoi_token_index=len(tokenizer) - 2,
        image_token_index=len(tokenizer) - 1,
    )
    model = Gemma3ForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "norm" in name:  # Gemma's norms multiply by 1 + weight
                weight.zero_()
            else:
                weight.copy_(fill(name, weight, generator))
    disable_progress_bar()  # the caller reports progress
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE tokenizer with byte fallback, Gemma's special tokens and its mark for a space."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))  # noqa: S106
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    words = (f" {word}" for word in _ENGLISH.split())  # so that no merge crosses a word
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.add_special_tokens(["<start_of_image>", "<end_of_image>", "<image_soft_token>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", special.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        **{f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")},
    )
