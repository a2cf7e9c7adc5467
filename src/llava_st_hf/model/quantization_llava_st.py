# SPDX-License-Identifier: Apache-2.0
"""`from_pretrained(…, quantization_config=…)`: modules that stay in floating point, and layers that a library computes wrongly."""

import copy

import torch
from torch import nn
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin


HEAD = "lm_head"
_VISUAL_MODULES = ("vision_tower", "multi_modal_projector", "packer")
# Names in the whole model and in the model without head: transformers compares names from their start.
FLOATING_POINT_MODULES = [HEAD, *(f"model.{name}" for name in _VISUAL_MODULES), *_VISUAL_MODULES]
# The argument of a configuration of transformers that lists the modules which are not quantized; a configuration has one of them.
_LISTS = ("llm_int8_skip_modules", "modules_to_not_convert")


def leave_in_floating_point(config: QuantizationConfigMixin | dict) -> QuantizationConfigMixin:
    """
    Returns a copy of a quantization configuration that leaves the head, and by default all but the decoder, in floating point.

    Visual features contain rows of the head (LLaVA-ST, section 3.2), so that it is never quantized. Vision encoder, projector and packer
    have 6 % of the weights of the published model. The encoder has layers with 4304 inputs, which blocks of 64 weights do not divide.

    Args:
        config (`QuantizationConfigMixin` or `dict`):
            Of `from_pretrained`. Modules listed in `llm_int8_skip_modules` or `modules_to_not_convert` replace the default, except for
            the head.

    Returns:
        `QuantizationConfigMixin`: a configuration that lists the modules. One without such a list is returned as it is.

    Raises:
        ValueError: If the head would be quantized nevertheless, because `include_input_output_embeddings` is set.
    """
    config = AutoQuantizationConfig.from_dict(config) if isinstance(config, dict) else copy.copy(config)
    if getattr(config, "include_input_output_embeddings", False):
        raise ValueError(
            f"include_input_output_embeddings=True quantizes {HEAD}, and visual features contain rows of its weight. Leave it out."
        )
    for name in _LISTS:
        if name in vars(config):
            listed = getattr(config, name)
            if listed is None:
                listed = FLOATING_POINT_MODULES
            elif should_convert_module(HEAD, listed):
                listed = [*listed, HEAD]
            setattr(config, name, list(listed))
    return config


def check_four_bit_layers(model: nn.Module) -> None:
    """
    Checks that bitsandbytes computes the layers of 4 bits correctly: on a CPU, its kernels look up the scales of wrong blocks where a layer
    has a number of inputs that the size of a block (64 weights) does not divide, and report nothing.

    Args:
        model (`nn.Module`):
            A model with weights.

    Raises:
        ValueError: Naming the layer, if a layer on the CPU has such a number of inputs.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or layer.weight.dtype != torch.uint8 or layer.weight.device.type != "cpu":
            continue
        size = layer.weight.blocksize
        if layer.in_features % size:
            raise ValueError(
                f"{name} has {layer.in_features} inputs, which blocks of {size} weights do not divide: bitsandbytes gives wrong results "
                "for such a layer on a CPU. Add it to llm_int8_skip_modules, use 8 bits, or load the model on a GPU."
            )
