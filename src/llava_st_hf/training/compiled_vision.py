# SPDX-License-Identifier: Apache-2.0
"""Compilation of the layers of a frozen vision encoder."""

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from ..model.modeling_llava_st import LlavaSTForConditionalGeneration


def encoder_layers(vision_tower: PreTrainedModel) -> list[nn.Module]:
    """Returns the layers of a vision encoder: the entries of its longest list of modules."""
    return list(max((module for module in vision_tower.modules() if isinstance(module, nn.ModuleList)), key=len))


def compile_vision_tower(model: LlavaSTForConditionalGeneration | PeftModel, **options) -> None:
    """
    Lets `torch.compile` compile the layers of the vision encoder at their first call, in place.

    The layers share the compiled code, so that the time of compilation does not grow with their number. A second number of frames per
    pass compiles once more, for any number.

    Args:
        model: whose vision encoder is frozen.
        options: of `torch.compile`.

    Raises:
        ValueError: if a weight of the vision encoder is trained.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    tower = base.model.vision_tower
    if any(parameter.requires_grad for parameter in tower.parameters()):
        raise ValueError("The vision encoder has trained weights: only a frozen one is compiled.")
    for layer in encoder_layers(tower):
        layer.compile(**options)
