# SPDX-License-Identifier: Apache-2.0
"""Layout of the original LLaVA-ST checkpoints (`model_type: llava_qwen`): translation of their configuration to `LlavaSTConfig`, and of
their tensor names to this package's.

`register_original_checkpoint()` registers the tables below with transformers; `from_pretrained` then loads an original checkpoint,
sharded or not.
"""

import re

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, Concatenate, WeightConverter, WeightRenaming

from .coordinates_llava_st import DEFAULT_NUM_BINS


ORIGINAL_MODEL_TYPE = "llava_qwen"

# Original name → this package's, applied first to last, as regular expressions with plain replacements. The latter have no prefix, so
# that the model without head loads the same files.
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
# One fused tensor of the original → three of this package.
PACKER_SPLITS = {f".attn.in_proj_{kind}": [f".{name}_proj.{kind}" for name in ("q", "k", "v")] for kind in ("weight", "bias")}
# One matrix of this package → tables of the original, in vocabulary order.
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

# Keys of the original, flat config.json that describe the language model.
_TEXT_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_theta", "use_sliding_window",
    "sliding_window", "max_window_layers", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache",
)  # fmt: skip
_PACKER_TYPE = "fast_slow_resampler"
_VISION_TOWER = "siglip-so400m-patch14-384"


def translate_config(released: dict, name_or_path: str = "") -> dict:
    """
    Translates the config.json of an original checkpoint to the keys of `LlavaSTConfig` and sets the two compatibility flags that its
    weights need.

    Args:
        released (`dict`):
            The parsed config.json, with the `model_type` `"llava_qwen"`.
        name_or_path (`str`, *optional*, defaults to `""`):
            Origin of the configuration, for error messages.

    Returns:
        `dict`: keyword arguments of `LlavaSTConfig`.

    Raises:
        ValueError: If the configuration is that of another model of the LLaVA family, naming the key.
    """
    where = f" in {name_or_path}" if name_or_path else ""
    if released.get("mm_resampler_type") != _PACKER_TYPE:
        raise ValueError(
            f"The configuration{where} is that of another LLaVA model: mm_resampler_type is {released.get('mm_resampler_type')!r}, and "
            f"that of LLaVA-ST is {_PACKER_TYPE!r}."
        )
    if not str(released.get("mm_vision_tower", _VISION_TOWER)).rstrip("/").endswith(_VISION_TOWER):
        raise ValueError(
            f"The configuration{where} names the vision tower {released['mm_vision_tower']!r}; LLaVA-ST has {_VISION_TOWER!r}."
        )
    if released.get("rope_scaling"):
        raise ValueError(f"The configuration{where} has rope_scaling {released['rope_scaling']!r}, which LLaVA-ST does not have.")
    # A stage-1 checkpoint has no coordinate tables, and no keys for their sizes.
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
    """
    Translates the name of an original tensor that is neither split nor joined.

    Args:
        key (`str`):
            Name in an original checkpoint.

    Returns:
        `str`: its name in [`LlavaSTModel`].
    """
    for renames in (KEY_RENAMES, PACKER_RENAMES):
        for pattern, replacement in renames.items():
            key = re.sub(pattern, replacement, key, count=1)
    return key


class _LoadOnlyRenaming(WeightRenaming):
    """A renaming that `save_pretrained` does not revert: a model loaded from an original checkpoint is saved in this package's layout."""

    __slots__ = ()

    def reverse_transform(self):
        return WeightRenaming(r"^(?!)", r"^(?!)")


class _LoadOnlyConverter(WeightConverter):
    """A concatenation or split that `save_pretrained` does not revert."""

    __slots__ = ()

    def reverse_transform(self):
        return WeightRenaming(r"^(?!)", r"^(?!)")


def original_checkpoint_transforms() -> list:
    """Returns the tables above as transformers' weight transforms, in the order of application. They do not match the names of this
    package's layout."""
    transforms = [_LoadOnlyRenaming(pattern, replacement) for pattern, replacement in KEY_RENAMES.items()]
    transforms += [_LoadOnlyRenaming(pattern, replacement) for pattern, replacement in PACKER_RENAMES.items()]
    transforms += [_LoadOnlyConverter(re.escape(fused), parts, operations=[Chunk(dim=0)]) for fused, parts in PACKER_SPLITS.items()]
    transforms += [
        _LoadOnlyConverter([f"^{re.escape(part)}$" for part in parts], whole, operations=[Concatenate(dim=0)])
        for whole, parts in VOCABULARY_PARTS.items()
    ]
    return transforms


def register_original_checkpoint() -> None:
    """Registers the tables with transformers, so that `from_pretrained` of both model classes loads original checkpoints. Called on
    import of the package."""
    register_checkpoint_conversion_mapping("llava_st", original_checkpoint_transforms(), overwrite=True)
