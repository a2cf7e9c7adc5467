# SPDX-License-Identifier: Apache-2.0
"""Memory that answering a question about a video takes, computed from the configuration of a model."""

import torch

from ..model.backbones_llava_st import mlp_size
from ..model.configuration_llava_st import LlavaSTConfig
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration


# Tokens of a prompt template, of its question and of the answer, at most: that of the pipeline's default.
_TEXT_TOKENS, _ANSWER_TOKENS = 200, 2048


def inference_memory(config: LlavaSTConfig, dtype: torch.dtype, num_frames: int = 100) -> dict[str, int]:
    """
    Computes the memory for one question about one video, in bytes.

    Weights and keys and values are exact. Activations are those of the largest of three steps, counted as the tensors that a layer holds
    at a time without attention matrices: the vision encoder on `vision_chunk_size` frames (two of the width of its MLP and eight of its
    hidden width), projector and packer on all frames (three of the width of the decoder), the decoder on the prompt (three of the width
    of its MLP and four of its hidden width). Workspaces of libraries are not counted.

    Args:
        config: of the model.
        dtype: of weights and activations.
        num_frames: frames that are sampled of the video.

    Returns:
        `parameters` (their number), and in bytes `weights`, `activations`, `kv_cache` and their sum `total`.
    """
    with torch.device("meta"):
        model = LlavaSTForConditionalGeneration(config)
    parameters = sum(weight.numel() for weight in model.parameters())
    text, vision, size = config.text_config, config.vision_config, dtype.itemsize
    patches = config.grid_size**2
    chunk = num_frames if config.vision_chunk_size is None else min(num_frames, config.vision_chunk_size)
    slow_frames = -(-num_frames // config.packer_temporal_stride)
    prompt = num_frames * config.fast_grid_size**2 + slow_frames * config.packed_grid_size**2 + _TEXT_TOKENS
    steps = (
        chunk * patches * (2 * mlp_size(vision) + 8 * vision.hidden_size),
        num_frames * patches * (vision.hidden_size + 3 * text.hidden_size),
        prompt * (3 * text.intermediate_size + 4 * text.hidden_size),
    )
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * heads * head_dim * (prompt + _ANSWER_TOKENS)
    values = {"weights": parameters * size, "activations": max(steps) * size, "kv_cache": cache * size}
    return {"parameters": parameters, **values, "total": sum(values.values())}
