# SPDX-License-Identifier: Apache-2.0
"""Frames per pass of the vision encoder in a training step, chosen from the free memory of the device."""

import torch
from transformers import PreTrainedConfig

from ..model.backbones_llava_st import mlp_size


# Share of the free memory that the temporary tensors of one pass may take.
_FREE_SHARE = 0.7


def bytes_per_frame(config: PreTrainedConfig, itemsize: int) -> int:
    """
    Estimates the temporary memory of one encoder layer for one frame: the residual stream, queries, keys and values, and both sides of
    the MLP; with eager attention also its scores.

    Args:
        config: of the vision encoder.
        itemsize: bytes per value.
    """
    patches = (config.image_size // config.patch_size) ** 2
    width = 8 * config.hidden_size + 2 * mlp_size(config)
    if config._attn_implementation == "eager":
        width += 3 * config.num_attention_heads * patches
    return patches * width * itemsize


def free_bytes(device: torch.device) -> int | None:
    """Returns the memory that new tensors on a CUDA device can take, None for other devices."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    # The allocator's unused memory is free as well.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def choose_vision_chunk_size(config: PreTrainedConfig, inputs: dict, sharded: bool) -> int | None:
    """
    Chooses the argument `vision_chunk_size` of a model's forward.

    Args:
        config: of the vision encoder.
        inputs: model inputs, with `pixel_values` (num_images, 3, height, width) and `pixel_values_videos` (num_videos, num_frames, 3,
            height, width) as far as there are any.
        sharded: whether the weights are sharded over processes (ZeRO-3, FSDP). Each pass then gathers them, so all processes must make
            equally many: one for images and one for videos, whatever their number of frames.

    Returns:
        Number of frames of at least 1; None for the model's default, without pixels and on devices whose free memory is not known.
    """
    pixels = [inputs[name] for name in ("pixel_values", "pixel_values_videos") if inputs.get(name) is not None]
    if not pixels:
        return None
    if sharded:
        return max(frames.shape[:-3].numel() for frames in pixels)
    free = free_bytes(pixels[0].device)
    if free is None:
        return None
    return max(1, int(free * _FREE_SHARE) // bytes_per_frame(config, pixels[0].element_size()))
