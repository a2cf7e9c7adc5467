# SPDX-License-Identifier: Apache-2.0
"""Creates the stage-1 model from a LLaVA-OneVision-Qwen2 checkpoint and a newly initialized packer.

Language model, vision encoder and projector are loaded from either layout of such checkpoints: that of transformers
(`model_type: llava_onevision`), or that of their original training code (`model_type: llava_qwen`).
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, LlavaOnevisionConfig, PreTrainedConfig, PreTrainedTokenizerBase, Qwen2Config
from transformers.utils import logging

from ..model.configuration_llava_st import SPECIAL_TOKENS, LlavaSTConfig
from ..model.image_processing_llava_st import LlavaSTImageProcessor
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from ..model.original_checkpoint_llava_st import ORIGINAL_MODEL_TYPE, translate_config
from ..model.processing_llava_st import LlavaSTProcessor
from ..model.video_processing_llava_st import LlavaSTVideoProcessor


# Key in a `llava_onevision` file → ours, first to last. Such files exist with transformers' older names, with the newer ones, which are
# ours, and with a mixture that transformers 5 writes. `from_pretrained` of LLaVA-ST renames the keys of `llava_qwen`.
_ONEVISION_RENAMES = {
    r"^language_model\.model\.": "language_model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^vision_tower\.vision_model\.": "vision_tower.",
    r"^model\.vision_tower\.vision_model\.": "vision_tower.",
}
_CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
_NEWLINE = re.compile(r"(model\.)?image_newline")
_VISION_LAYER = re.compile(r"(?:model\.)?vision_tower\.(?:.+\.)?layers\.(\d+)\..+")
_NAMES_SHOWN = 5  # of tensors, in error messages


def create_stage1_model(
    checkpoint: str | os.PathLike, dtype: str | torch.dtype = "bfloat16", seed: int = 0, config_overrides: dict[str, Any] | None = None
) -> tuple[LlavaSTForConditionalGeneration, LlavaSTProcessor]:
    """
    Creates the model that stage 1 trains, and its processor. Writes no files.

    The eight visual and six placeholder tokens are the last ones of the vocabulary; their embeddings are initialized with the mean
    of all embeddings before them. The model has no coordinate tokens: see `conversion.add_coordinate_tokens`.

    Args:
        checkpoint: folder or hub id of a LLaVA-OneVision-Qwen2 model, in either layout, with its tokenizer.
        dtype: of the model's weights; that of the checkpoint does not matter. The weights are in memory once.
        seed: of the initialization of the packer. The global random state is not changed.
        config_overrides: sizes that differ from those of LLaVA-ST-7B, by their names in `LlavaSTConfig`.

    Raises:
        OSError: if the folder lacks its configuration, its weights or one of their shards.
        ValueError: naming what does not fit: the type of model, a setting, the tokenizer, a file or a tensor.
    """
    config = stage1_config(checkpoint, config_overrides)
    tokenizer, num_tokens = _read_tokenizer(checkpoint, config)
    processor = new_processor(config, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _load(checkpoint, config, dtype)
        add_special_tokens(model, num_tokens, len(tokenizer))
    return model, processor


def new_processor(config: LlavaSTConfig, tokenizer: PreTrainedTokenizerBase, **pixel_settings) -> LlavaSTProcessor:
    """Returns the processor of a stage-1 model.

    Args:
        config: of the model.
        tokenizer: with the special tokens.
        pixel_settings: of image and video processor, such as `image_mean`, where they are not those of SigLIP.
    """
    size = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    return LlavaSTProcessor(
        LlavaSTImageProcessor(size=size, **pixel_settings),
        tokenizer,
        LlavaSTVideoProcessor(size=size, **pixel_settings),
        patch_size=config.vision_config.patch_size,
        packer_spatial_stride=config.packer_spatial_stride,
        packer_temporal_stride=config.packer_temporal_stride,
        fast_spatial_stride=config.fast_spatial_stride,
        use_downsample_image=config.use_downsample_image,
    )


def stage1_config(checkpoint: str | os.PathLike, config_overrides: dict[str, Any] | None = None) -> LlavaSTConfig:
    """Returns the configuration of a stage-1 model with the vocabulary size of the checkpoint, including padding.

    Raises:
        OSError: if there is no configuration.
        ValueError: if it is that of another type of model, naming the setting that differs.
    """
    overrides = config_overrides or {}
    raw, _ = PreTrainedConfig.get_config_dict(checkpoint)
    if not raw:
        raise FileNotFoundError(f"{checkpoint} is not a checkpoint: it has no config.json.")
    model_type = raw.get("model_type")
    try:
        if model_type == LlavaOnevisionConfig.model_type:
            translated = _translate_onevision(raw, checkpoint, overrides)
        elif model_type == ORIGINAL_MODEL_TYPE:
            translated = _translate_qwen(raw, checkpoint)
        else:
            raise ValueError(
                f"{checkpoint} contains a model of type {model_type!r}; stage 1 starts from a LLaVA-OneVision-Qwen2 "
                f"({LlavaOnevisionConfig.model_type!r} or {ORIGINAL_MODEL_TYPE!r}). For a text decoder, give --vision-encoder as well."
            )
        # New models have neither of the bugs of the original training code that these flags reproduce.
        translated |= {"use_coordinate_tokens": False, "ignore_prompt_x_coordinates": False, "disable_fast_stream": False}
        config = LlavaSTConfig.from_dict(translated, **overrides)
    except StrictDataclassError as error:
        raise ValueError(f"The configuration of {checkpoint} is not valid: {error}") from error
    check_flags(config)
    return config


def check_flags(config: LlavaSTConfig) -> None:
    """Raises a `ValueError` if a configuration has settings that a stage-1 model does not have."""
    for name in ("use_coordinate_tokens", "ignore_prompt_x_coordinates", "disable_fast_stream"):
        if getattr(config, name):
            raise ValueError(f"{name} must not be set in config_overrides: it is False in a stage-1 model.")


def _translate_onevision(raw: dict, checkpoint: str | os.PathLike, overrides: dict) -> dict:
    """Translates a configuration of transformers' LLaVA-OneVision to the keys of `LlavaSTConfig`."""
    source = LlavaOnevisionConfig.from_dict(raw)
    text, vision = source.text_config, source.vision_config
    for name, found, expected in (
        ("text_config.model_type", text.model_type, "qwen2"),
        ("vision_config.model_type", vision.model_type, "siglip_vision_model"),
        ("vision_feature_select_strategy", source.vision_feature_select_strategy, "full"),
    ):
        if found != expected:
            raise ValueError(f"{checkpoint} has {name} {found!r}; a LLaVA-OneVision-Qwen2 has {expected!r}.")
    expected_vision = {**LlavaSTConfig().vision_config.to_dict(), **overrides.get("vision_config", {})}
    depth, layer = expected_vision["num_hidden_layers"], source.vision_feature_layer
    # Index 0 of the hidden states is the encoder's input, so the output of the last of 26 layers is the second-to-last of 27 layers.
    if not isinstance(layer, int) or (layer if layer >= 0 else vision.num_hidden_layers + 1 + layer) != depth:
        raise ValueError(
            f"{checkpoint} has vision_feature_layer {layer} of a vision tower of {vision.num_hidden_layers} layers; LLaVA-ST takes the "
            f"features after {depth} layers."
        )
    grid, expected_grid = vision.image_size // vision.patch_size, expected_vision["image_size"] // expected_vision["patch_size"]
    if grid != expected_grid:
        raise ValueError(
            f"{checkpoint} has a vision tower of {grid}×{grid} patches (image_size={vision.image_size}, patch_size={vision.patch_size}); "
            f"LLaVA-ST's has {expected_grid}×{expected_grid}."
        )
    return {
        "model_type": LlavaSTConfig.model_type,
        "text_config": without_dtype(text),
        "vision_config": {**without_dtype(vision), "num_hidden_layers": depth},
        "projector_hidden_act": source.projector_hidden_act,
        "tie_word_embeddings": source.tie_word_embeddings,
    }


def without_dtype(config: PreTrainedConfig) -> dict:
    """Returns a configuration without the dtype of its weights: the caller of `create_stage1_model` chooses it."""
    return {name: value for name, value in config.to_dict().items() if name not in ("dtype", "torch_dtype")}


def _translate_qwen(raw: dict, checkpoint: str | os.PathLike) -> dict:
    """Translates a configuration of the original training code, which is that of LLaVA-ST without the packer."""
    if raw.get("mm_resampler_type") is not None:
        raise ValueError(
            f"{checkpoint} has mm_resampler_type {raw['mm_resampler_type']!r}; a LLaVA-OneVision-Qwen2 has none, and "
            "stage 1 starts with a new packer."
        )
    for name, expected in (("mm_projector_type", "mlp2x_gelu"), ("mm_vision_select_layer", -2)):
        if raw.get(name, expected) != expected:
            raise ValueError(f"{checkpoint} has {name} {raw[name]!r}; a LLaVA-OneVision-Qwen2 has {expected!r}.")
    if "vocab_size" not in raw:
        raise ValueError(f"The configuration of {checkpoint} has no vocab_size.")
    return translate_config({**raw, "mm_resampler_type": "fast_slow_resampler"}, name_or_path=str(checkpoint))


def _read_tokenizer(checkpoint: str | os.PathLike, config: LlavaSTConfig) -> tuple[PreTrainedTokenizerBase, int]:
    """Returns the checkpoint's tokenizer with the special tokens added, and its number of tokens before."""
    # With this argument transformers does not read the configuration of the folder, whose type may be registered for LLaVA-ST.
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, config=Qwen2Config())
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in _CHAT_TOKENS if token not in vocabulary]
    if missing:  # transformers creates an empty tokenizer if a folder has none
        raise ValueError(f"{checkpoint} has no tokenizer of a Qwen2 chat model: it lacks {' and '.join(missing)}.")
    num_tokens, num_rows = len(tokenizer), config.text_config.vocab_size
    if num_tokens > num_rows:
        raise ValueError(f"The tokenizer of {checkpoint} has {num_tokens} tokens, but the model has only {num_rows} embeddings.")
    add_special_tokens_to_tokenizer(tokenizer, checkpoint)
    return tokenizer, num_tokens


def add_special_tokens_to_tokenizer(tokenizer: PreTrainedTokenizerBase, checkpoint: str | os.PathLike) -> None:
    """Adds the special tokens of LLaVA-ST after the last token, in place.

    Raises:
        ValueError: naming the checkpoint, if its tokenizer has one of them or its ids have gaps.
    """
    vocabulary, num_tokens = tokenizer.get_vocab(), len(tokenizer)
    present = [token for token in SPECIAL_TOKENS.values() if token in vocabulary]
    if present:
        raise ValueError(f"The tokenizer of {checkpoint} already has {', '.join(present)}: it is not that of a model without LLaVA-ST.")
    tokenizer.add_tokens(list(SPECIAL_TOKENS.values()), special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS.values()))
    if ids != list(range(num_tokens, num_tokens + len(ids))):
        raise ValueError(f"The ids of the {num_tokens} tokens of {checkpoint} have gaps: the special tokens get the ids {ids}.")


@contextmanager
def errors_only(checkpoint: str | os.PathLike) -> Iterator[None]:
    """Logs no warnings while weights are loaded: missing and unexpected tensors are checked afterwards, and most are expected.

    Raises:
        ValueError: if a file of weights is damaged.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"The weights in {checkpoint} are damaged: {error}") from error
    finally:
        logging.set_verbosity(verbosity)


def _load(checkpoint: str | os.PathLike, config: LlavaSTConfig, dtype: str | torch.dtype) -> LlavaSTForConditionalGeneration:
    """Loads the model from the checkpoint, with a newly initialized packer."""
    with errors_only(checkpoint):
        model, report = LlavaSTForConditionalGeneration.from_pretrained(
            checkpoint,
            config=config,
            dtype=dtype,
            key_mapping=_ONEVISION_RENAMES,
            ignore_mismatched_sizes=True,  # `_check_report` raises an error that names them
            output_loading_info=True,
        )
    _check_report(report, checkpoint, config)
    # With this attribute `save_pretrained` would write the names of the checkpoint, without it those registered for LLaVA-ST.
    del model._weight_conversions
    return model


def _check_report(report: dict, checkpoint: str | os.PathLike, config: LlavaSTConfig) -> None:
    """Raises an error if tensors of a LLaVA-OneVision-Qwen2 are missing, have another shape, or if there are others."""
    if report["mismatched_keys"]:
        key, found, expected = min(report["mismatched_keys"])
        raise ValueError(f"{key} in {checkpoint} has shape {tuple(found)}; its configuration requires {tuple(expected)}.")
    missing = [key for key in report["missing_keys"] if not key.startswith("model.packer.")]
    vision = [key for key in missing if key.startswith("model.vision_tower.")]
    if "model.vision_tower.embeddings.patch_embedding.weight" in vision:
        raise ValueError(
            f"{checkpoint} has no weights of the vision tower ({_listed(vision)}): it names the tower that it was trained with but does "
            "not contain it. Use a checkpoint with all weights."
        )
    if missing:
        raise ValueError(f"{checkpoint} lacks the tensors {_listed(missing)}.")
    depth = config.vision_config.num_hidden_layers
    unexpected = [key for key in report["unexpected_keys"] if not _NEWLINE.fullmatch(key) and _vision_layer(key) != depth]
    if unexpected:
        raise ValueError(f"{checkpoint} contains {_listed(unexpected)}, which LLaVA-ST does not have.")


def _vision_layer(key: str) -> int | None:
    """Returns the index of the vision layer of a tensor, or None. SigLIP so400m has one layer more than LLaVA-ST uses."""
    match = _VISION_LAYER.fullmatch(key)
    return int(match[1]) if match else None


def _listed(keys: list[str]) -> str:
    keys = sorted(keys)
    more = f" and {len(keys) - _NAMES_SHOWN} more" if len(keys) > _NAMES_SHOWN else ""
    return ", ".join(keys[:_NAMES_SHOWN]) + more


@torch.no_grad()
def add_special_tokens(model: LlavaSTForConditionalGeneration, num_tokens: int, new_num_tokens: int) -> None:
    """
    Removes padding embeddings and adds embeddings of new tokens, the last of which are the special tokens, in place.

    Args:
        model: without embeddings of the special tokens.
        num_tokens: of the tokenizer before tokens were added.
        new_num_tokens: of the tokenizer.
    """
    config = model.config
    for token_id, field in enumerate(SPECIAL_TOKENS, start=new_num_tokens - len(SPECIAL_TOKENS)):
        setattr(config, field, token_id)
    model.resize_token_embeddings(new_num_tokens, mean_resizing=False)
    config.validate()
    matrices = [model.get_input_embeddings().weight]
    if not config.tie_word_embeddings:
        matrices.append(model.get_output_embeddings().weight)
    for matrix in matrices:
        matrix[num_tokens:] = matrix[:num_tokens].mean(dim=0, dtype=torch.float32)  # a sum in bfloat16 would be inexact


__all__ = ["create_stage1_model", "stage1_config"]
