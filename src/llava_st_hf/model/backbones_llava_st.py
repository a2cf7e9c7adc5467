# SPDX-License-Identifier: Apache-2.0
"""Text decoders and vision encoders that a LLaVA-ST model can consist of, and what differs between them."""

from dataclasses import dataclass
from functools import cache
from math import isqrt

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


DEFAULT_DECODER = "qwen2"
DEFAULT_ENCODER = "siglip_vision_model"


@dataclass(frozen=True)
class VisionEncoder:
    """
    Layout of the outputs of a type of vision encoder.

    Args:
        final_norm (`str`, *optional*): name of the norm module between the last layer and `last_hidden_state`; None if there is none.
        num_class_tokens (`int`, *optional*, defaults to 1): tokens before the register tokens and the patches.
        unused (`tuple[str]`, *optional*): modules of the encoder that do not contribute to features of patches.
    """

    final_norm: str | None
    num_class_tokens: int = 1
    unused: tuple[str, ...] = ()


# Types of encoders whose patches are a square grid in row-major order, after class and register tokens. Others order their tokens
# differently (YOLOS has detection tokens after the patches), or have no grid of one size (Swin, Hiera).
VISION_ENCODERS = {
    DEFAULT_ENCODER: VisionEncoder("post_layernorm", num_class_tokens=0),
    "siglip2_vision_model": VisionEncoder("post_layernorm", num_class_tokens=0),
    "clip_vision_model": VisionEncoder(None, unused=("post_layernorm",)),  # the norm of the pooled class token
    "dinov2": VisionEncoder("layernorm"),
    "dinov2_with_registers": VisionEncoder("layernorm"),
    "dinov3_vit": VisionEncoder("norm"),
    "vit": VisionEncoder("layernorm", unused=("pooler",)),
    "ijepa": VisionEncoder("layernorm", num_class_tokens=0, unused=("pooler",)),
}
# Weights of checkpoints that belong to modules of encoders which are not used.
UNUSED_ENCODER_WEIGHTS = r"vision_tower\.(.*(post_layernorm|head)\.|(layernorm|norm|pooler)\.|.*position_ids)"
# Settings of decoders that change logits after the head, or that multiply hidden states before it, and their values without effect.
_LOGIT_SETTINGS = {
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "lm_head_multiplier": (None, 1),
    "output_multiplier_scale": (None, 1),
}


# Settings of `AutoBackbone`, which name layers that a configuration with fewer layers does not have.
_BACKBONE_SETTINGS = ("out_features", "out_indices", "stage_names")


def without_backbone_settings(config: dict) -> dict:
    """Returns the settings of a vision encoder without those of `AutoBackbone`: features are always those of the last layer."""
    return {name: value for name, value in config.items() if name not in _BACKBONE_SETTINGS}


def sub_config_type(config: dict | PreTrainedConfig, default: str) -> str:
    """Returns the model type of the configuration of a decoder or encoder, `default` for a dictionary without a type."""
    return config.get("model_type", default) if isinstance(config, dict) else config.model_type


def check_decoder_type(model_type: str) -> None:
    """Raises a `ValueError` for a type of model that is not a text decoder of transformers."""
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"text_config has the model_type {model_type!r}, which transformers does not have.")
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"text_config has the model_type {model_type!r}, which is not a causal language model of transformers. Use a text decoder such "
            "as 'qwen2', 'qwen3', 'llama' or 'smollm3'."
        )


def check_encoder_type(model_type: str) -> None:
    """Raises a `ValueError` for a type of model that is not one of `VISION_ENCODERS`."""
    if model_type in VISION_ENCODERS:
        return
    hint = ""
    if model_type in CONFIG_MAPPING and "vision_config" in CONFIG_MAPPING[model_type].sub_configs:
        part = CONFIG_MAPPING[model_type].sub_configs["vision_config"].model_type
        hint = f" A model of this type contains a vision encoder: give the vision_config of it, of the type {part!r}."
    raise ValueError(
        f"vision_config has the model_type {model_type!r}; a vision encoder must have a square grid of patches of one size. Supported are "
        f"{', '.join(VISION_ENCODERS)}.{hint}"
    )


def check_decoder_config(config: PreTrainedConfig) -> None:
    """
    Refuses decoders whose outputs depend on more than embeddings, layers, final norm and a linear head.

    Raises:
        ValueError: naming the type of the decoder and the setting.
    """
    name = f"text_config of the model_type {config.model_type!r}"
    if config.get_text_config() is not config:
        raise ValueError(f"{name} is the configuration of a multimodal model. Give the text_config of it.")
    if config.is_encoder_decoder:
        raise ValueError(f"{name} has is_encoder_decoder=True; an encoder-decoder model is not supported. Use a decoder.")
    for setting, neutral in _LOGIT_SETTINGS.items():
        value = getattr(config, setting, None)
        if value not in neutral:
            raise ValueError(f"{name} has {setting}={value!r}, which changes logits outside of the language modeling head: not supported.")
    if getattr(config, "hidden_size_per_layer_input", None):
        raise ValueError(f"{name} computes inputs of layers from token ids, which visual features do not have: not supported.")
    if getattr(config, "output_router_logits", False):
        raise ValueError(f"{name} has output_router_logits=True, but the loss of the router is not computed. Set it to False.")
    if config.model_type != DEFAULT_DECODER:
        check_decoder_modules(config.model_type)


def check_embeddings(decoder: PreTrainedModel) -> None:
    """Raises a `ValueError` if the embeddings of a decoder do not have the shape `(vocab_size, hidden_size)`."""
    expected, found = (decoder.config.vocab_size, decoder.config.hidden_size), tuple(decoder.embed_tokens.weight.shape)
    if found != expected:
        raise ValueError(
            f"The decoder of the model_type {decoder.config.model_type!r} has embeddings of shape {found}; they must have the shape "
            f"{expected} (vocab_size, hidden_size)."
        )


@cache
def check_decoder_modules(model_type: str) -> None:
    """
    Refuses types of decoders that do not have the modules of Llama, whose names training, adapters and saved weights rely on.

    Raises:
        ValueError: naming the type and what it lacks.
    """
    with torch.device("meta"):  # allocates no memory
        decoder = AutoModel.from_config(CONFIG_MAPPING[model_type]())
    if decoder._is_stateful:
        raise ValueError(
            f"text_config has the model_type {model_type!r}, a decoder with a recurrent state instead of keys and values of all tokens. "
            "Use a decoder with attention in all layers."
        )
    lacking = [name for name in ("embed_tokens", "layers", "norm") if decoder._modules.get(name) is None]
    if lacking:
        raise ValueError(
            f"text_config has the model_type {model_type!r}, whose decoder has no {' and no '.join(lacking)}. Use a decoder with the "
            "modules of Llama: embed_tokens, layers and norm."
        )


def set_image_size(config: PreTrainedConfig) -> None:
    """Adds `image_size` in pixels to the configuration of a SigLIP 2 encoder, which has the number of patches instead."""
    if config.model_type == "siglip2_vision_model" and getattr(config, "image_size", None) is None:
        if isqrt(config.num_patches) ** 2 != config.num_patches:
            raise ValueError(f"vision_config.num_patches must be a square number, got {config.num_patches}.")
        config.image_size = isqrt(config.num_patches) * config.patch_size


def num_prefix_tokens(config: PreTrainedConfig) -> int:
    """Returns the number of class and register tokens before the patches in the outputs of an encoder."""
    return VISION_ENCODERS[config.model_type].num_class_tokens + getattr(config, "num_register_tokens", 0)


def mlp_size(config: PreTrainedConfig) -> int:
    """Returns the width of the MLP of an encoder. DINOv2 has a multiple of `hidden_size` instead of `intermediate_size`."""
    size = getattr(config, "intermediate_size", None)
    return int(config.hidden_size * config.mlp_ratio) if size is None else size


def remove_unused_modules(encoder: PreTrainedModel, use_final_norm: bool) -> None:
    """
    Removes the modules of an encoder that do not contribute to features, in place.

    Args:
        encoder (`PreTrainedModel`): of one of the types of `VISION_ENCODERS`.
        use_final_norm (`bool`): whether the norm after the last layer is kept.
    """
    layout = VISION_ENCODERS[encoder.config.model_type]
    for name in layout.unused:
        setattr(encoder, name, None if name == "pooler" else nn.Identity())
    if not use_final_norm and layout.final_norm is not None:
        setattr(encoder, layout.final_norm, nn.Identity())
    freeze_unused_parameters(encoder)


def freeze_unused_parameters(encoder: nn.Module) -> None:
    """Freezes the mask token of an encoder, which only its pretraining uses, in place."""
    for name, parameter in encoder.named_parameters():
        if name.split(".")[-1] == "mask_token":
            parameter.requires_grad_(False)


def encoder_inputs(config: PreTrainedConfig, frames: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Returns the first argument of an encoder for frames, and its further ones.

    Args:
        config (`PreTrainedConfig`): of the encoder.
        frames (`torch.FloatTensor` of shape `(num_frames, 3, image_size, image_size)`): normalized pixels.
    """
    if config.model_type != "siglip2_vision_model":
        return frames, {}
    # SigLIP 2 takes flat patches with the channel as the last axis, and the grid of each image. All patches are those of a square here.
    size = config.patch_size
    grid = config.image_size // size
    patches = frames[..., : grid * size, : grid * size].unflatten(-1, (grid, size)).unflatten(-3, (grid, size))
    patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (frames, grid², size·size·3)
    return patches, {
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long, device=frames.device),
        "spatial_shapes": torch.full((len(frames), 2), grid, device=frames.device),
    }
