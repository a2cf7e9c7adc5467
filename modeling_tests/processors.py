# SPDX-License-Identifier: Apache-2.0
"""Small processor for tests: a byte-level tokenizer without merges, with the special tokens in the order of the original checkpoints."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTImageProcessor, LlavaSTProcessor, LlavaSTVideoProcessor
from llava_st_hf.model.configuration_llava_st import SPECIAL_TOKENS
from llava_st_hf.model.tokenizer_llava_st import add_coordinate_tokens_to_tokenizer
from modeling_tests.factories import tiny_config, tiny_model
from modeling_tests.media import moving_frames


PICTURE = moving_frames(1, 48, 64)[0]
CHAT_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tiny_tokenizer(num_temporal_bins: int = 100, num_spatial_bins: int = 100, **kwargs) -> PreTrainedTokenizerFast:
    """Tokenizer with one token per byte, then the chat tokens, the fourteen special tokens and the coordinate tokens.

    With 0 bins it is the tokenizer of a stage-1 model, which has no coordinate tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", **kwargs)
    fast.add_tokens([*CHAT_TOKENS, *SPECIAL_TOKENS.values()], special_tokens=True)
    if num_temporal_bins:
        add_coordinate_tokens_to_tokenizer(fast, num_temporal_bins, num_spatial_bins)
    return fast


def tiny_processor(
    size: int = 126,
    num_frames: int = 10,
    num_temporal_bins: int = 100,
    num_spatial_bins: int = 100,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **kwargs,
) -> LlavaSTProcessor:
    """Processor of images of `size` pixels in 14×14 patches (126: 9×9), and of videos; 81 tokens per image, 28 per video."""
    square = {"height": size, "width": size}
    return LlavaSTProcessor(
        LlavaSTImageProcessor(size=square),
        tokenizer if tokenizer is not None else tiny_tokenizer(num_temporal_bins, num_spatial_bins),
        LlavaSTVideoProcessor(size=square, num_frames=num_frames),
        **kwargs,
    )


def settings_of(processor: LlavaSTProcessor) -> dict:
    """Settings of a processor and its parts without `auto_map`, which is set when they are saved."""
    parts = {name: dict(value) if isinstance(value, dict) else value for name, value in processor.to_dict().items()}
    for settings in (parts, *(value for value in parts.values() if isinstance(value, dict))):
        settings.pop("auto_map", None)
    return parts


def model_for(processor: LlavaSTProcessor, **overrides) -> LlavaSTForConditionalGeneration:
    """Tiny model with random weights that accepts the outputs of `processor`."""
    size = processor.image_processor.size["height"]
    if processor.num_temporal_bins:
        overrides |= {"num_temporal_bins": processor.num_temporal_bins, "num_spatial_bins": processor.num_spatial_bins}
    config = tiny_config(
        vision_config={"image_size": size, "patch_size": processor.patch_size},
        text_config={
            "vocab_size": len(processor.tokenizer),
            "pad_token_id": processor.tokenizer.pad_token_id,
            "eos_token_id": processor.tokenizer.eos_token_id,
        },
        packer_temporal_stride=processor.packer_temporal_stride,
        ignore_prompt_x_coordinates=processor.ignore_prompt_x_coordinates,
        use_downsample_image=processor.use_downsample_image,
        **overrides,
    )
    return tiny_model(config)


# Messages


def user(*content):
    return {"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


def answer(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def film(source, **clip):
    return {"type": "video", "video": source, **clip}


def photo(source=PICTURE):
    return {"type": "image", "image": source}


def encode(processor, *messages, **kwargs):
    return processor.apply_chat_template(list(messages), tokenize=True, return_dict=True, return_tensors="pt", **kwargs)
