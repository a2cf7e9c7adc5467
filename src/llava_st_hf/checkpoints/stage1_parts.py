# SPDX-License-Identifier: Apache-2.0
"""Creates the stage-1 model from a text decoder and a vision encoder, with a newly initialized projector and packer."""

import os
from math import isqrt
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BaseImageProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..model.backbones_llava_st import (
    check_decoder_config,
    check_decoder_type,
    check_encoder_type,
    remove_unused_modules,
    set_image_size,
    without_backbone_settings,
)
from ..model.configuration_llava_st import LlavaSTConfig
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from ..model.processing_llava_st import LlavaSTProcessor
from .stage1_init import add_special_tokens, add_special_tokens_to_tokenizer, check_flags, errors_only, new_processor, without_dtype


_CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
_NEW_MODULES = ("model.packer.", "model.multi_modal_projector.")
# Of an encoder's image processor; ours resizes to a square and does not crop.
_PIXEL_SETTINGS = ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor", "resample")
_PROBE = "The quick brown fox jumps over the lazy dog."


def create_stage1_model_from_parts(
    decoder: str | os.PathLike,
    encoder: str | os.PathLike,
    dtype: str | torch.dtype = "bfloat16",
    seed: int = 0,
    config_overrides: dict[str, Any] | None = None,
) -> tuple[LlavaSTForConditionalGeneration, LlavaSTProcessor]:
    """
    Creates the model that stage 1 trains from a pretrained decoder and a pretrained encoder, and its processor. Writes no files.

    Features are the outputs of the encoder's second-to-last layer without final norm, as in LLaVA-ST. With `vision_use_final_norm` they
    are those of the last layer after the norm. Projector and packer are newly initialized, so stage 1 must train the projector as well
    (recipe `stage1_own_backbones.yaml`).

    Prompts are in ChatML. Its two tokens are added to a tokenizer that lacks them, then the special tokens of LLaVA-ST. The embeddings of
    added tokens are initialized with the mean of all others.

    Args:
        decoder: folder or hub id of a causal language model with its tokenizer.
        encoder: folder or hub id of a vision encoder, or of a model that contains one (SigLIP, CLIP), with its image processor.
        dtype: of the model's weights.
        seed: of the initialization of projector and packer. The global random state is not changed.
        config_overrides: by their names in `LlavaSTConfig`. With another `vision_config.image_size` than the encoder's, learned position
            embeddings are interpolated.

    Raises:
        OSError: if a folder lacks its configuration, its weights or its image processor.
        ValueError: naming what does not fit: the type of a model, a setting, the tokenizer or a tensor.
    """
    config = parts_config(decoder, encoder, config_overrides)
    tokenizer, num_tokens = _read_tokenizer(decoder, config)
    processor = new_processor(config, tokenizer, **_pixel_settings(encoder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _load(decoder, encoder, config, dtype, _probe_ids(tokenizer, num_tokens))
        add_special_tokens(model, num_tokens, len(tokenizer))
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, token_id in ends.items():
        setattr(model.config.text_config, name, token_id)
    model.generation_config = GenerationConfig(**ends)
    return model, processor


def parts_config(decoder: str | os.PathLike, encoder: str | os.PathLike, config_overrides: dict[str, Any] | None = None) -> LlavaSTConfig:
    """Returns the configuration of a stage-1 model of these parts, with the vocabulary size of the decoder, including padding.

    Raises:
        OSError: if there is no configuration.
        ValueError: naming the type of model or the setting that does not fit.
    """
    overrides = config_overrides or {}
    try:
        config = LlavaSTConfig.from_dict(parts_settings(decoder, encoder, overrides), **overrides)
    except StrictDataclassError as error:
        raise ValueError(f"A model of {decoder} and {encoder} is not valid: {error}") from error
    check_flags(config)
    return config


def parts_settings(decoder: str | os.PathLike, encoder: str | os.PathLike, config_overrides: dict[str, Any] | None = None) -> dict:
    """Returns the settings of the parts as a dictionary for `LlavaSTConfig.from_dict`, before overrides."""
    text, vision = AutoConfig.from_pretrained(decoder), _encoder_config(encoder)
    check_decoder_type(text.model_type)
    check_decoder_config(text)
    layers = vision.num_hidden_layers - (0 if (config_overrides or {}).get("vision_use_final_norm") else 1)
    return {
        "model_type": LlavaSTConfig.model_type,
        "text_config": without_dtype(text),
        "vision_config": {**without_dtype(vision), "num_hidden_layers": layers},
        "tie_word_embeddings": bool(text.tie_word_embeddings),
        "use_coordinate_tokens": False,
    }


def _encoder_config(encoder: str | os.PathLike) -> PreTrainedConfig:
    """Returns the configuration of an encoder, or of the encoder in a model of text and images."""
    config = AutoConfig.from_pretrained(encoder)
    config = getattr(config, "vision_config", config)
    check_encoder_type(config.model_type)
    set_image_size(config)
    return config


def _pixel_settings(encoder: str | os.PathLike) -> dict:
    """Returns normalization and interpolation of an encoder's image processor."""
    try:
        settings, _ = BaseImageProcessor.get_image_processor_dict(encoder)
    except OSError as error:
        raise FileNotFoundError(
            f"{encoder} has no preprocessor_config.json, which has the mean and standard deviation of pixels."
        ) from error
    missing = [name for name in ("image_mean", "image_std") if name not in settings]
    if missing:
        raise ValueError(f"The image processor of {encoder} has no {' and no '.join(missing)}.")
    return {name: settings[name] for name in _PIXEL_SETTINGS if name in settings}


def _read_tokenizer(decoder: str | os.PathLike, config: LlavaSTConfig) -> tuple[PreTrainedTokenizerBase, int]:
    """Returns the decoder's tokenizer with ChatML and special tokens, and the number of tokens that it had before."""
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    num_tokens, num_rows = len(tokenizer), config.text_config.vocab_size
    if not tokenizer.is_fast:
        raise ValueError(f"The tokenizer of {decoder} has no offsets of tokens in the text; a fast tokenizer (tokenizer.json) is needed.")
    if num_tokens > num_rows:
        raise ValueError(f"The tokenizer of {decoder} has {num_tokens} tokens, but the decoder has only {num_rows} embeddings.")
    vocabulary = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in _CHAT_TOKENS if token not in vocabulary], special_tokens=True)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"The tokenizer of {decoder} has neither a pad_token nor an eos_token. Set one of them.")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.eos_token = _CHAT_TOKENS[1]  # ends an answer
    add_special_tokens_to_tokenizer(tokenizer, decoder)
    return tokenizer, num_tokens


def _probe_ids(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> torch.Tensor:
    ids = [token_id for token_id in tokenizer(_PROBE)["input_ids"] if token_id < num_tokens]
    return torch.tensor([ids])  # (1, tokens)


@torch.no_grad()
def _load(decoder: str | os.PathLike, encoder: str | os.PathLike, config: LlavaSTConfig, dtype, probe: torch.Tensor):
    """Loads both parts into a model with new projector and packer, and checks that the decoder computes the same logits in it."""
    with errors_only(decoder):
        language_model, report = AutoModelForCausalLM.from_pretrained(decoder, dtype=dtype, output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"]:
        raise ValueError(
            f"The weights of {decoder} do not fit its configuration: missing {sorted(report['missing_keys'])}, unexpected "
            f"{sorted(report['unexpected_keys'])}."
        )
    language_model.eval()
    head = language_model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ValueError(f"The language modeling head of {decoder} has a bias, which LLaVA-ST's does not have: use another decoder.")
    logits = language_model(input_ids=probe).logits
    weights = {f"model.language_model.{name}": tensor for name, tensor in language_model.base_model.state_dict().items()}
    if not config.tie_word_embeddings:
        weights["lm_head.weight"] = head.weight
    weights |= {f"model.vision_tower.{name}": tensor for name, tensor in _load_encoder(encoder, config, dtype).items()}
    del language_model, head
    with errors_only(decoder):
        model, report = LlavaSTForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
        )
    missing = [name for name in report["missing_keys"] if not name.startswith(_NEW_MODULES)]
    if missing or report["unexpected_keys"] or report["mismatched_keys"]:
        raise ValueError(
            f"The weights of {decoder} and {encoder} do not fit: missing {missing}, unexpected {sorted(report['unexpected_keys'])}, of "
            f"another shape {report['mismatched_keys']}."
        )
    found = model.eval()(input_ids=probe).logits
    if not torch.allclose(found, logits, atol=1e-2 * logits.std().item(), rtol=0):
        raise ValueError(
            f"{decoder} computes other logits as a part of LLaVA-ST than alone (difference {(found - logits).abs().max().item():.3g}): its "
            f"type {config.text_config.model_type!r} scales embeddings or logits in a way that is not supported."
        )
    return model


def _load_encoder(encoder: str | os.PathLike, config: LlavaSTConfig, dtype) -> dict[str, torch.Tensor]:
    """Returns the weights of an encoder, with position embeddings for the image size of `config`."""
    own = _encoder_config(encoder)
    size = own.image_size
    settings = {"num_hidden_layers": config.vision_config.num_hidden_layers}
    if own.model_type.startswith("siglip"):
        settings["vision_use_head"] = False  # the pooled output is not used
    own = type(own)(**{**without_backbone_settings(own.to_dict()), **settings})
    with errors_only(encoder):
        model, report = AutoModel.from_pretrained(encoder, config=own, dtype=dtype, output_loading_info=True)
    remove_unused_modules(model, config.vision_use_final_norm)
    missing = [name for name in report["missing_keys"] if name in model.state_dict()]
    if missing:
        raise ValueError(f"{encoder} lacks the tensors {', '.join(sorted(missing))}.")
    weights = model.state_dict()
    if own.patch_size != config.vision_config.patch_size:
        raise ValueError(f"vision_config.patch_size={config.vision_config.patch_size} differs from that of {encoder}, {own.patch_size}.")
    if size != config.vision_config.image_size:
        _resize_positions(weights, model, config)
    return weights


def _resize_positions(weights: dict[str, torch.Tensor], encoder: PreTrainedModel, config: LlavaSTConfig) -> None:
    """Interpolates learned position embeddings of patches to another grid, in place. SigLIP 2 does it itself, DINOv3 has none."""
    if config.vision_config.model_type in ("siglip2_vision_model", "dinov3_vit"):
        return
    grid = config.grid_size
    [name] = [name for name in weights if name.split(".")[-1] == "position_embeddings" or name.endswith("position_embedding.weight")]
    table = weights[name]
    flat = table.reshape(-1, table.shape[-1])  # (tokens, hidden): a class token first, where the encoder has one
    old = isqrt(len(flat))
    prefix = len(flat) - old**2
    patches = flat[prefix:].float().view(1, old, old, -1).permute(0, 3, 1, 2)  # (1, hidden, rows, columns)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    resized = torch.cat((flat[:prefix], patches.flatten(2)[0].T.to(table.dtype)))
    weights[name] = resized.view(*table.shape[:-2], *resized.shape)


__all__ = ["create_stage1_model_from_parts", "parts_config"]
