# SPDX-License-Identifier: Apache-2.0
"""Where training begins: the stage-1 model, made of a LLaVA-OneVision-Qwen2 checkpoint and a fresh packer.

Language model, vision encoder and projector are taken over, from either layout that such checkpoints have: transformers' own
(`model_type: llava_onevision`) or that of the program they were trained with (`model_type: llava_qwen`).
"""

import os
import re
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


# Key in a `llava_onevision` file → ours, first to last. Such files exist with transformers' older names, with the newer ones, and
# with a mixture that transformers 5 writes; our own names are the newer ones. Those of `llava_qwen` are known to `from_pretrained`.
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
    The model that stage 1 trains, and its processor. Nothing is written.

    The vocabulary ends with the eight visual and six placeholder tokens; their rows start as the mean of the rows of all
    tokens before them. There are no coordinate tokens yet: see `conversion_llava_st.add_coordinate_tokens`.

    Args:
        checkpoint: folder or hub id of a LLaVA-OneVision-Qwen2, in either layout, with its tokenizer.
        dtype: of the model's weights, whatever the checkpoint's. The weights are held in memory once.
        seed: of the packer's fresh weights; the global random state stays as it is.
        config_overrides: sizes that are not the released ones, by the names of `LlavaSTConfig`.

    Raises:
        OSError: where the folder lacks its configuration, its weights or one of their shards.
        ValueError: naming what does not fit: the kind of model, a setting, the tokenizer, a file, a tensor.
    """
    config = stage1_config(checkpoint, config_overrides)
    tokenizer, num_tokens = _read_tokenizer(checkpoint, config)
    size = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    processor = LlavaSTProcessor(
        LlavaSTImageProcessor(size=size),
        tokenizer,
        LlavaSTVideoProcessor(size=size),
        patch_size=config.vision_config.patch_size,
        packer_spatial_stride=config.packer_spatial_stride,
        packer_temporal_stride=config.packer_temporal_stride,
        fast_spatial_stride=config.fast_spatial_stride,
        use_downsample_image=config.use_downsample_image,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _load(checkpoint, config, dtype)
        _add_special_rows(model, num_tokens)
    return model, processor


def stage1_config(checkpoint: str | os.PathLike, config_overrides: dict[str, Any] | None = None) -> LlavaSTConfig:
    """Configuration of a stage-1 model whose vocabulary is still the checkpoint's, padding included.

    Raises:
        OSError: where there is no configuration.
        ValueError: where it is that of another kind of model, naming the setting that tells.
    """
    overrides = config_overrides or {}
    raw, _ = PreTrainedConfig.get_config_dict(checkpoint)
    if not raw:
        raise FileNotFoundError(f"{checkpoint} is no checkpoint: it has no config.json.")
    model_type = raw.get("model_type")
    try:
        if model_type == LlavaOnevisionConfig.model_type:
            translated = _translate_onevision(raw, checkpoint, overrides)
        elif model_type == ORIGINAL_MODEL_TYPE:
            translated = _translate_qwen(raw, checkpoint)
        else:
            raise ValueError(
                f"{checkpoint} holds a model of type {model_type!r}; stage 1 starts from a LLaVA-OneVision-Qwen2 "
                f"({LlavaOnevisionConfig.model_type!r} or {ORIGINAL_MODEL_TYPE!r})."
            )
        # A model trained here has neither slip of the released program.
        translated |= {"use_coordinate_tokens": False, "ignore_prompt_x_coordinates": False, "disable_fast_stream": False}
        config = LlavaSTConfig.from_dict(translated, **overrides)
    except StrictDataclassError as error:
        raise ValueError(f"The configuration of {checkpoint} is not valid: {error}") from error
    for name in ("use_coordinate_tokens", "ignore_prompt_x_coordinates", "disable_fast_stream"):
        if getattr(config, name):
            raise ValueError(f"{name} cannot be set in a model that stage 1 starts from.")
    return config


def _translate_onevision(raw: dict, checkpoint: str | os.PathLike, overrides: dict) -> dict:
    """Says in `LlavaSTConfig`'s words what the configuration of transformers' LLaVA-OneVision says."""
    source = LlavaOnevisionConfig.from_dict(raw)
    text, vision = source.text_config, source.vision_config
    for name, found, expected in (
        ("text_config.model_type", text.model_type, "qwen2"),
        ("vision_config.model_type", vision.model_type, "siglip_vision_model"),
        ("vision_feature_select_strategy", source.vision_feature_select_strategy, "full"),
    ):
        if found != expected:
            raise ValueError(f"{checkpoint} has {name} {found!r}; a LLaVA-OneVision-Qwen2 has {expected!r}.")
    released = {**LlavaSTConfig().vision_config.to_dict(), **overrides.get("vision_config", {})}
    depth, layer = released["num_hidden_layers"], source.vision_feature_layer
    # Layer 0 of the hidden states is the encoder's input, so the last of 26 layers is the second-to-last of 27.
    if not isinstance(layer, int) or (layer if layer >= 0 else vision.num_hidden_layers + 1 + layer) != depth:
        raise ValueError(
            f"{checkpoint} has vision_feature_layer {layer} of a vision tower of {vision.num_hidden_layers} layers; LLaVA-ST takes the "
            f"features after {depth} layers."
        )
    grid, released_grid = vision.image_size // vision.patch_size, released["image_size"] // released["patch_size"]
    if grid != released_grid:
        raise ValueError(
            f"{checkpoint} has a vision tower of {grid}×{grid} patches (image_size={vision.image_size}, patch_size={vision.patch_size}); "
            f"LLaVA-ST's has {released_grid}×{released_grid}."
        )
    return {
        "model_type": LlavaSTConfig.model_type,
        "text_config": _without_dtype(text),
        "vision_config": {**_without_dtype(vision), "num_hidden_layers": depth},
        "projector_hidden_act": source.projector_hidden_act,
        "tie_word_embeddings": source.tie_word_embeddings,
    }


def _without_dtype(config: PreTrainedConfig) -> dict:
    """The model is loaded in the type that the caller names."""
    return {name: value for name, value in config.to_dict().items() if name not in ("dtype", "torch_dtype")}


def _translate_qwen(raw: dict, checkpoint: str | os.PathLike) -> dict:
    """The same for a flat configuration, which differs from LLaVA-ST's own in the packer that it lacks."""
    if raw.get("mm_resampler_type") is not None:
        raise ValueError(
            f"{checkpoint} has mm_resampler_type {raw['mm_resampler_type']!r}; a LLaVA-OneVision-Qwen2 has none, and stage 1 starts with "
            "a fresh packer."
        )
    for name, expected in (("mm_projector_type", "mlp2x_gelu"), ("mm_vision_select_layer", -2)):
        if raw.get(name, expected) != expected:
            raise ValueError(f"{checkpoint} has {name} {raw[name]!r}; a LLaVA-OneVision-Qwen2 has {expected!r}.")
    if "vocab_size" not in raw:
        raise ValueError(f"The configuration of {checkpoint} has no vocab_size.")
    return translate_config({**raw, "mm_resampler_type": "fast_slow_resampler"}, name_or_path=str(checkpoint))


def _read_tokenizer(checkpoint: str | os.PathLike, config: LlavaSTConfig) -> tuple[PreTrainedTokenizerBase, int]:
    """The checkpoint's tokenizer with the special tokens added, and how many tokens it had before."""
    # Given a configuration, transformers does not read the folder's, which may be of a type that is LLaVA-ST's here.
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, config=Qwen2Config())
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in _CHAT_TOKENS if token not in vocabulary]
    if missing:  # transformers makes an empty tokenizer where a folder has none
        raise ValueError(f"{checkpoint} has no tokenizer of a Qwen2 chat model: there is no {' and no '.join(missing)} in it.")
    present = [token for token in SPECIAL_TOKENS.values() if token in vocabulary]
    if present:
        raise ValueError(f"The tokenizer of {checkpoint} has {', '.join(present)} already: it is not that of a LLaVA-OneVision-Qwen2.")
    num_tokens, num_rows = len(tokenizer), config.text_config.vocab_size
    if num_tokens > num_rows:
        raise ValueError(f"The tokenizer of {checkpoint} has {num_tokens} tokens, and the model only {num_rows} rows for them.")
    tokenizer.add_tokens(list(SPECIAL_TOKENS.values()), special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS.values()))
    if ids != list(range(num_tokens, num_tokens + len(ids))):
        raise ValueError(f"The ids of the {num_tokens} tokens of {checkpoint} have gaps: the special tokens get the ids {ids}.")
    return tokenizer, num_tokens


def _load(checkpoint: str | os.PathLike, config: LlavaSTConfig, dtype: str | torch.dtype) -> LlavaSTForConditionalGeneration:
    """The model with everything from the checkpoint but the packer."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of missing and unexpected tensors is checked below, where most are meant
    try:
        model, report = LlavaSTForConditionalGeneration.from_pretrained(
            checkpoint,
            config=config,
            dtype=dtype,
            key_mapping=_ONEVISION_RENAMES,
            ignore_mismatched_sizes=True,  # to name them ourselves
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ValueError(f"The weights in {checkpoint} are damaged: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    _check_report(report, checkpoint, config)
    # transformers would write the checkpoint's names again. Without this note it takes those registered for our model.
    del model._weight_conversions
    return model


def _check_report(report: dict, checkpoint: str | os.PathLike, config: LlavaSTConfig) -> None:
    """Refuses a checkpoint that does not bring just what a LLaVA-OneVision-Qwen2 has."""
    if report["mismatched_keys"]:
        key, found, expected = min(report["mismatched_keys"])
        raise ValueError(f"{key} in {checkpoint} has shape {tuple(found)}; by its configuration it has {tuple(expected)}.")
    missing = [key for key in report["missing_keys"] if not key.startswith("model.packer.")]
    vision = [key for key in missing if key.startswith("model.vision_tower.")]
    if "model.vision_tower.embeddings.patch_embedding.weight" in vision:
        raise ValueError(
            f"{checkpoint} has no weights of the vision tower ({_listed(vision)}): it names the tower that it was trained with but does "
            "not hold it. Use a checkpoint that was saved as a whole."
        )
    if missing:
        raise ValueError(f"{checkpoint} lacks the tensors of {_listed(missing)}.")
    depth = config.vision_config.num_hidden_layers
    unexpected = [key for key in report["unexpected_keys"] if not _NEWLINE.fullmatch(key) and _vision_layer(key) != depth]
    if unexpected:
        raise ValueError(f"{checkpoint} holds {_listed(unexpected)}, which LLaVA-ST has no place for.")


def _vision_layer(key: str) -> int | None:
    """Index of the vision layer that a tensor belongs to. One beyond the last is where so400m's own last layer stands."""
    match = _VISION_LAYER.fullmatch(key)
    return int(match[1]) if match else None


def _listed(keys: list[str]) -> str:
    keys = sorted(keys)
    more = f" and {len(keys) - _NAMES_SHOWN} more" if len(keys) > _NAMES_SHOWN else ""
    return ", ".join(keys[:_NAMES_SHOWN]) + more


@torch.no_grad()
def _add_special_rows(model: LlavaSTForConditionalGeneration, num_tokens: int) -> None:
    """Cuts padding rows off, and adds rows for the special tokens, in place."""
    config = model.config
    for token_id, field in enumerate(SPECIAL_TOKENS, start=num_tokens):
        setattr(config, field, token_id)
    model.resize_token_embeddings(num_tokens + len(SPECIAL_TOKENS), mean_resizing=False)
    config.validate()
    matrices = [model.get_input_embeddings().weight]
    if not config.tie_word_embeddings:
        matrices.append(model.get_output_embeddings().weight)
    for matrix in matrices:
        matrix[num_tokens:] = matrix[:num_tokens].mean(dim=0, dtype=torch.float32)  # a sum in bf16 would be far off


__all__ = ["create_stage1_model", "stage1_config"]
