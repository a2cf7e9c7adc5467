# SPDX-License-Identifier: Apache-2.0
"""The layout of released LLaVA-ST checkpoints (`model_type: llava_qwen`) as plain data: what their configuration says in our
words, and which of our parameters each of their tensors is.

The tables at the top are the facts. `register_original_checkpoint()` hands them to transformers, whose `from_pretrained` then
reads a released folder, sharded or not, as if it were ours.
"""

import re

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, Concatenate, WeightConverter, WeightRenaming

from .coordinates_llava_st import DEFAULT_NUM_BINS


ORIGINAL_MODEL_TYPE = "llava_qwen"

# Released key → ours, first to last, as regular expressions with plain replacements. Ours are un-prefixed, so that the
# model without head reads the same files.
KEY_RENAMES = {
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "vision_tower.",
    r"^model\.mm_projector\.0\.": "multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "multi_modal_projector.linear_2.",
    r"^model\.vision_resampler\.token_packer\.devide_attention\.": "packer.spatial.",
    r"^model\.vision_resampler\.token_packer_slow\.devide_attention\.": "packer.slow.",
    r"^model\.vision_resampler\.token_packer_fast\.devide_attention\.": "packer.fast.",
    r"^model\.layers\.": "language_model.layers.",
    r"^model\.norm\.": "language_model.norm.",
}
PACKER_RENAMES = {
    r"\.to_q\.0\.": ".query_mlp.linear_1.",
    r"\.to_q\.2\.": ".query_mlp.linear_2.",
    r"\.to_k\.0\.": ".key_mlp.linear_1.",
    r"\.to_k\.2\.": ".key_mlp.linear_2.",
    r"\.to_v\.0\.": ".value_mlp.linear_1.",
    r"\.to_v\.2\.": ".value_mlp.linear_2.",
    r"\.ln_q\.": ".query_norm.",
    r"\.ln_k\.": ".key_norm.",
    r"\.ln_v\.": ".value_norm.",
    r"\.attn\.out_proj\.": ".out_proj.",
    r"\.to_out\.": ".output_proj.",
}
# One fused tensor of theirs → three of ours.
PACKER_SPLITS = {f".attn.in_proj_{kind}": [f".{name}_proj.{kind}" for name in ("q", "k", "v")] for kind in ("weight", "bias")}
# Several tables of theirs, in vocabulary order → one matrix of ours.
VOCABULARY_PARTS = {
    "language_model.embed_tokens.weight": [
        "model.embed_tokens.weight",
        "model.temporal_input_embeddings.weight",
        "model.spatial_height_input_embeddings.weight",
        "model.spatial_width_input_embeddings.weight",
    ],
    "lm_head.weight": [
        "lm_head.weight",
        "model.temporal_output_embeddings.weight",
        "model.spatial_height_output_embeddings.weight",
        "model.spatial_width_output_embeddings.weight",
    ],
}

# Keys of the flat released config.json that describe the language model.
_TEXT_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_theta", "use_sliding_window",
    "sliding_window", "max_window_layers", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache",
)  # fmt: skip
_PACKER_TYPE = "fast_slow_resampler"
_VISION_TOWER = "siglip-so400m-patch14-384"


def translate_config(released: dict, name_or_path: str = "") -> dict:
    """Says in `LlavaSTConfig`'s words what a released config.json says, with the two compatibility flags of the released weights.

    Args:
        released: the parsed config.json, `model_type` "llava_qwen".
        name_or_path: where it comes from, for error messages.

    Raises:
        ValueError: where it describes another model of the LLaVA family, naming the key that tells.
    """
    where = f" in {name_or_path}" if name_or_path else ""
    if released.get("mm_resampler_type") != _PACKER_TYPE:
        raise ValueError(
            f"The configuration{where} is that of another LLaVA model: mm_resampler_type is {released.get('mm_resampler_type')!r}, "
            f"and LLaVA-ST has {_PACKER_TYPE!r}."
        )
    if not str(released.get("mm_vision_tower", _VISION_TOWER)).rstrip("/").endswith(_VISION_TOWER):
        raise ValueError(
            f"The configuration{where} names the vision tower {released['mm_vision_tower']!r}; LLaVA-ST has {_VISION_TOWER!r}."
        )
    if released.get("rope_scaling"):
        raise ValueError(f"The configuration{where} has rope_scaling {released['rope_scaling']!r}, which no released LLaVA-ST has.")
    # A stage-1 checkpoint has no coordinate tables, and says nothing of their sizes.
    use_coordinate_tokens = "num_temporal_tokens" in released
    temporal = released.get("num_temporal_tokens", DEFAULT_NUM_BINS)
    spatial = released.get("num_spatial_tokens", DEFAULT_NUM_BINS)
    text_config = {key: released[key] for key in _TEXT_KEYS if key in released}
    text_config["vocab_size"] += temporal + 2 * spatial if use_coordinate_tokens else 0
    translated = {
        "model_type": "llava_st",
        "architectures": ["LlavaSTForConditionalGeneration"],
        "text_config": text_config,
        "num_temporal_bins": temporal,
        "num_spatial_bins": spatial,
        "use_coordinate_tokens": use_coordinate_tokens,
        "use_downsample_image": bool(released.get("use_downsample_image", False)),
        "ignore_prompt_x_coordinates": True,
        "disable_fast_stream": True,
        "tie_word_embeddings": released.get("tie_word_embeddings", False),
    }
    if (dtype := released.get("dtype", released.get("torch_dtype"))) is not None:
        translated["dtype"] = dtype
    return translated


def rename_original_key(key: str) -> str:
    """Our name of a released tensor that is neither split nor joined, relative to the model without head."""
    for renames in (KEY_RENAMES, PACKER_RENAMES):
        for pattern, replacement in renames.items():
            key = re.sub(pattern, replacement, key, count=1)
    return key


class _LoadOnlyRenaming(WeightRenaming):
    """A renaming that `save_pretrained` does not undo: what was loaded from a released folder is saved in our layout."""

    __slots__ = ()

    def reverse_transform(self):
        return WeightRenaming(r"^(?!)", r"^(?!)")


class _LoadOnlyConverter(WeightConverter):
    """A join or split that `save_pretrained` does not undo."""

    __slots__ = ()

    def reverse_transform(self):
        return WeightRenaming(r"^(?!)", r"^(?!)")


def original_checkpoint_transforms() -> list:
    """The tables above as transformers' weight transforms, in the order in which they apply. No-ops on our own layout."""
    transforms = [_LoadOnlyRenaming(pattern, replacement) for pattern, replacement in KEY_RENAMES.items()]
    transforms += [_LoadOnlyRenaming(pattern, replacement) for pattern, replacement in PACKER_RENAMES.items()]
    transforms += [_LoadOnlyConverter(re.escape(fused), parts, operations=[Chunk(dim=0)]) for fused, parts in PACKER_SPLITS.items()]
    transforms += [
        _LoadOnlyConverter([f"^{re.escape(part)}$" for part in parts], whole, operations=[Concatenate(dim=0)])
        for whole, parts in VOCABULARY_PARTS.items()
    ]
    return transforms


def register_original_checkpoint() -> None:
    """Makes `from_pretrained` of both model classes read released folders. Called on import of the package."""
    register_checkpoint_conversion_mapping("llava_st", original_checkpoint_transforms(), overwrite=True)
