# SPDX-License-Identifier: Apache-2.0
"""Vision encoder and projector applied to frames in chunks; frozen weights keep no graph."""

from contextlib import nullcontext

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .backbones_llava_st import encoder_inputs, num_prefix_tokens


def _trains(module: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())


def _keeps_precision(vision_tower: nn.Module, device_type: str) -> bool:
    """Whether autocast would only add conversions: to float32 for norms, whose outputs are converted back for the next product."""
    if not torch.is_autocast_enabled(device_type):
        return False
    half = torch.get_autocast_dtype(device_type)
    return all(parameter.dtype == half for parameter in vision_tower.parameters())


def encode_frames(
    vision_tower: nn.Module,
    projector: nn.Module,
    frames: torch.Tensor,
    config: PreTrainedConfig,
    chunk_size: int | None = None,
    **kwargs,
) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
    """
    Applies encoder and projector to frames, at most `chunk_size` at a time.

    An encoder without trainable weights runs without a graph, also where a trainer lets its embeddings require gradients, and in
    evaluation mode: DINOv3 moves its position embeddings at random in training mode. With all weights in the type of autocast it runs
    without autocast: its norms compute in float32 in any case, and autocast would also store their outputs so. The temporary memory of a
    pass grows with `chunk_size`; the result does not depend on it, up to rounding.

    Args:
        vision_tower (`nn.Module`):
            The encoder.
        projector (`nn.Module`):
            Maps the encoder's last hidden states of patches to the width of the decoder. Class and register tokens are left out.
        frames (`torch.FloatTensor` of shape `(num_frames, 3, height, width)`):
            Normalized pixels.
        config (`PreTrainedConfig`):
            Configuration of the encoder.
        chunk_size (`int`, *optional*):
            Frames per pass; all at once by default.
        kwargs:
            Arguments of the encoder, such as `output_hidden_states`.

    Returns:
        `tuple(BaseModelOutputWithPooling, torch.FloatTensor)`: the encoder's output with everything it was asked to return, and the
        projected features of shape `(num_frames, num_patches, hidden_size)`.
    """
    tower_trains = _trains(vision_tower)
    projector_trains = tower_trains or _trains(projector)
    if vision_tower.training and not tower_trains and torch.is_grad_enabled():
        vision_tower.eval()
    prefix = num_prefix_tokens(config)
    device_type = frames.device.type
    without_autocast = not tower_trains and _keeps_precision(vision_tower, device_type)
    if without_autocast:
        frames = frames.to(torch.get_autocast_dtype(device_type))
    outputs, features = [], []
    for chunk in (frames,) if chunk_size is None else frames.split(chunk_size):
        with torch.set_grad_enabled(tower_trains), torch.autocast(device_type, enabled=False) if without_autocast else nullcontext():
            pixels, options = encoder_inputs(config, chunk)
            outputs.append(vision_tower(pixels, **options, return_dict=True, **kwargs))
        with torch.set_grad_enabled(projector_trains):
            features.append(projector(outputs[-1].last_hidden_state[:, prefix:]))  # (frames, patches, hidden)
    if len(outputs) == 1:
        return outputs[0], features[0]
    joined = BaseModelOutputWithPooling(
        last_hidden_state=torch.cat([output.last_hidden_state for output in outputs]),
        hidden_states=_join_layers([output.hidden_states for output in outputs]),
        attentions=_join_layers([output.attentions for output in outputs]),
    )
    return joined, torch.cat(features)


def _join_layers(chunks: list[tuple[torch.Tensor | None, ...] | None]) -> tuple[torch.Tensor | None, ...] | None:
    """Concatenates each layer's tensors over the chunks; None where the encoder did not return them."""
    if chunks[0] is None:
        return None
    return tuple(None if layer[0] is None else torch.cat(layer) for layer in zip(*chunks, strict=True))
