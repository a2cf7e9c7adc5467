# SPDX-License-Identifier: Apache-2.0
"""The vision pass: frames → patch features, without a graph and in the largest micro-batches that fit where it is frozen."""

import math

import torch
from torch import distributed, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling


# Memory for the temporary tensors of one micro-batch: this share of what is free on an accelerator, so many bytes elsewhere.
_FREE_SHARE = 0.7
_HOST_BYTES = 2**30


def world_size() -> int:
    """Processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _bytes_per_frame(config, itemsize: int) -> int:
    """Temporary memory of one encoder layer for one frame: the residual stream, queries, keys and values, and both sides of
    the wide layer; with eager attention also its scores."""
    patches = (config.image_size // config.patch_size) ** 2
    width = 8 * config.hidden_size + 2 * config.intermediate_size
    if config._attn_implementation == "eager":
        width += 3 * config.num_attention_heads * patches
    return patches * width * itemsize


def frames_at_once(config, frames: torch.Tensor) -> int:
    """
    How many frames one pass of a frozen encoder takes.

    Args:
        config: of the encoder.
        frames: (num_frames, 3, height, width) pixels.

    Returns:
        As many as fit into what is free on the device at this moment, at least 1.
    """
    memory = _HOST_BYTES
    if frames.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(frames.device)
        # What the allocator holds and nobody uses is free too.
        free += torch.cuda.memory_reserved(frames.device) - torch.cuda.memory_allocated(frames.device)
        memory = int(free * _FREE_SHARE)
    return max(1, memory // _bytes_per_frame(config, frames.element_size()))


def encode_frames(
    vision_tower: nn.Module, projector: nn.Module, frames: torch.Tensor, in_step: bool = False, **kwargs
) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
    """
    Encoder and projector, applied to frames.

    An encoder without a weight to train keeps no graph and takes its frames in micro-batches; so does such a projector.

    Args:
        frames: (num_frames, 3, height, width) pixels.
        in_step: whether all processes of a training run make this call at the same time. They then make equally many
            micro-batches: where weights are sharded over processes (ZeRO-3, FSDP), each pass gathers them.
        kwargs: for the encoder.

    Returns:
        `(vision_outputs, features)`: the encoder's output, and (num_frames, num_patches, hidden_size).
    """
    trains, trains_projector = (
        torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())
        for module in (vision_tower, projector)
    )
    wants_more = kwargs.get("output_hidden_states") or kwargs.get("output_attentions")
    if trains or wants_more or torch.compiler.is_compiling():
        vision_outputs = vision_tower(frames, return_dict=True, **kwargs)
        return vision_outputs, projector(vision_outputs.last_hidden_state)

    count = math.ceil(len(frames) / frames_at_once(vision_tower.config, frames))
    if in_step and world_size() > 1:
        agreed = torch.tensor(count, device=frames.device)
        distributed.all_reduce(agreed, distributed.ReduceOp.MAX)
        count = int(agreed)
    with torch.no_grad():
        outputs: list[torch.Tensor] = []
        done = 0
        for chunk in frames.tensor_split(count):
            # A process with fewer frames than micro-batches takes part with one that nobody reads.
            states = vision_tower(chunk if len(chunk) else frames[:1], return_dict=True, **kwargs).last_hidden_state
            parts = (states,) if trains_projector else (states, projector(states))
            if count == 1:
                outputs = list(parts)
                break
            if not outputs:
                # (frames, patches, vision_hidden) and (frames, patches, hidden), filled in place
                outputs = [part.new_empty(len(frames), *part.shape[1:]) for part in parts]
            for output, part in zip(outputs, parts, strict=True):
                output[done : done + len(chunk)] = part[: len(chunk)]
            done += len(chunk)
    features = projector(outputs[0]) if trains_projector else outputs[1]
    return BaseModelOutputWithPooling(last_hidden_state=outputs[0]), features
