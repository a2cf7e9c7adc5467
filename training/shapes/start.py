# SPDX-License-Identifier: Apache-2.0
"""
Creates the model that stage 1 of the demo model's training starts from: a tokenizer trained on the texts of the Shapes dataset, a
pretrained vision encoder (vision_pretraining.py), and a projector and decoder with hand-designed initialization (initialization.py).

    python training/shapes/start.py runs/shapes/data runs/shapes/start
"""

import argparse
import json
import re
from pathlib import Path

import torch
from initialization import WIDTH, init_attention_heads, init_word_embeddings, pretrain_projector
from safetensors.torch import load_file, save_file
from transformers import Qwen2Tokenizer
from vision_pretraining import IMAGE_SIZE, NUM_FRAMES, PATCH_SIZE, load_frames, train_vision

import llava_st_hf
from llava_st_hf.model.configuration_llava_st import SPECIAL_TOKENS
from llava_st_hf.model.inline_coordinates_llava_st import INLINE_COORDINATE
from llava_st_hf.model.tasks_llava_st import TASKS


SPATIAL_STRIDE, TEMPORAL_STRIDE, FAST_STRIDE = 2, 10, 2
TEXTS = ("stage2_images", "stage2_videos", "stage3_images", "stage3_videos")  # annotation files that the tokenizer is trained on
VOCABULARY = 640  # tokens before the special tokens


def build_tokenizer(annotations: list[Path]) -> Qwen2Tokenizer:
    """Trains a byte-level BPE tokenizer with Qwen2's pre-tokenization on the prompt templates and on annotation files (JSONL)."""
    texts = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 2000 + [task.prompt for task in TASKS.values()] * 2000
    for path in annotations:
        with path.open(encoding="utf-8") as lines:
            for _, line in zip(range(30000), lines, strict=False):
                row = json.loads(line)
                found = [row.get("text", ""), *(item["text"] for item in row.get("objects", ()))]
                found += [message["content"] for message in row.get("messages", ())]
                texts += [piece for text in found for piece in INLINE_COORDINATE.sub("\0", text).split("\0")]
    texts += [" During {", "}. Object bounding box: ", ":[", "].", "]", "Ends in ", ", "] * 2000
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, VOCABULARY)
    chat = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [*chat[1:], *SPECIAL_TOKENS.values()]})
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer


def build_model(tokenizer: Qwen2Tokenizer, seed: int = 0) -> llava_st_hf.LlavaSTForConditionalGeneration:
    """Builds the stage-1 model of 3 million weights, without coordinate tokens."""
    torch.manual_seed(seed)
    config = llava_st_hf.LlavaSTConfig(
        use_coordinate_tokens=False,
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 288,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "initializer_range": WIDTH**-0.5,
            "intermediate_size": 448,
            "num_hidden_layers": 6,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        packer_hidden_size=128,
        initializer_range=WIDTH**-0.5,
        packer_num_attention_heads=4,
        packer_spatial_stride=SPATIAL_STRIDE,
        packer_temporal_stride=TEMPORAL_STRIDE,
        fast_spatial_stride=FAST_STRIDE,
        use_downsample_image=True,
    )
    model = llava_st_hf.LlavaSTForConditionalGeneration(config)
    init_word_embeddings(model, tokenizer)
    init_attention_heads(model)
    return model


def build_processor(tokenizer: Qwen2Tokenizer) -> llava_st_hf.LlavaSTProcessor:
    """Builds the processor of the model of `build_model`: NUM_FRAMES frames of IMAGE_SIZE × IMAGE_SIZE pixels."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return llava_st_hf.LlavaSTProcessor(
        image_processor=llava_st_hf.LlavaSTImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=llava_st_hf.LlavaSTVideoProcessor(size=size, num_frames=NUM_FRAMES),
        patch_size=PATCH_SIZE,
        packer_spatial_stride=SPATIAL_STRIDE,
        packer_temporal_stride=TEMPORAL_STRIDE,
        fast_spatial_stride=FAST_STRIDE,
        use_downsample_image=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=re.sub(r"\s+", " ", __doc__.split("\n\n")[0]))
    parser.add_argument("data", type=Path, help="folder that write_training_data wrote")
    parser.add_argument("output", type=Path, help="folder to write the model and processor to")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the vision encoder")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and of the encoder's training")
    arguments = parser.parse_args()
    tokenizer = build_tokenizer([arguments.data / f"{name}.jsonl" for name in TEXTS])
    processor = build_processor(tokenizer)
    model = build_model(tokenizer, arguments.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} weights, {len(tokenizer)} tokens", flush=True)
    media, weights = arguments.data / "media", arguments.output / "vision_tower.safetensors"
    if not weights.is_file():  # it exists if an interrupted run has trained it
        torch.manual_seed(arguments.seed)
        log = train_vision(model, load_frames(media, processor), arguments.steps)
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "vision_log.json").write_text(json.dumps(log, indent=1), encoding="utf-8")
        save_file(model.model.vision_tower.state_dict(), weights)
    model.model.vision_tower.load_state_dict(load_file(weights))
    missing = pretrain_projector(model, load_frames(media, processor, 400))
    print(f"Projector pretraining: remaining error {missing:.1%} of the target.", flush=True)
    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
