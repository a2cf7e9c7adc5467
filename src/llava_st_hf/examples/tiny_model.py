# SPDX-License-Identifier: Apache-2.0
"""Builds a LLaVA-ST with random weights, small enough to build in a second, to try code without a checkpoint.

python -m llava_st_hf.examples.tiny_model tiny-random-llava-st
"""

import sys

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2Tokenizer

from ..model.configuration_llava_st import SPECIAL_TOKENS, LlavaSTConfig
from ..model.coordinates_llava_st import DEFAULT_NUM_BINS
from ..model.image_processing_llava_st import LlavaSTImageProcessor
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from ..model.processing_llava_st import LlavaSTProcessor
from ..model.tokenizer_llava_st import add_coordinate_tokens_to_tokenizer
from ..model.video_processing_llava_st import LlavaSTVideoProcessor


# ============================================================ Tokenizer


def build_tokenizer(num_bins: int = DEFAULT_NUM_BINS) -> Qwen2Tokenizer:
    """Builds a byte-level tokenizer with the chat tokens of Qwen2 and the special tokens of LLaVA-ST, in the order of the published
    checkpoint. A stage-1 model has `num_bins=0`."""
    vocabulary = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    chat_tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in [*chat_tokens, *SPECIAL_TOKENS.values()]])
    tokenizer = Qwen2Tokenizer(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None)
    add_coordinate_tokens_to_tokenizer(tokenizer, num_bins, num_bins)
    return tokenizer


# ============================================================ Model


def build_model(
    tokenizer: Qwen2Tokenizer, seed: int = 0, image_size: int = 384, use_coordinate_tokens: bool = True
) -> LlavaSTForConditionalGeneration:
    """Builds the published architecture with two narrow layers in each module; by default with 27×27 patches, 100 frames and 100 bins."""
    torch.manual_seed(seed)
    config = LlavaSTConfig(
        use_coordinate_tokens=use_coordinate_tokens,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": image_size,
            "patch_size": 14,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        packer_hidden_size=32,
        packer_num_attention_heads=4,
    )
    return LlavaSTForConditionalGeneration(config).eval()


def save_tiny_model(folder: str, seed: int = 0) -> None:
    """Writes model and processor to `folder`, a checkpoint for all Auto classes."""
    tokenizer = build_tokenizer()
    processor = LlavaSTProcessor(
        image_processor=LlavaSTImageProcessor(),
        tokenizer=tokenizer,
        video_processor=LlavaSTVideoProcessor(),
    )
    build_model(tokenizer, seed).save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    save_tiny_model(sys.argv[1])
