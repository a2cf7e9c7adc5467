# SPDX-License-Identifier: Apache-2.0
"""Compilation of the parts of a model that take most of the time of generation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel


def encoder_layers(vision_tower: PreTrainedModel) -> list[nn.Module]:
    """Returns the layers of a vision encoder: the entries of its longest list of modules."""
    lists = [list(module) for module in vision_tower.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


def compile_encoder_layers(vision_tower: PreTrainedModel) -> None:
    """Lets `torch.compile` compile the layers of a vision encoder at their first call, in place. They share the compiled code, so that the
    time of compilation does not grow with their number. A second number of frames per pass compiles once more, for any number."""
    for layer in encoder_layers(vision_tower):
        if layer._compiled_call_impl is None:
            layer.compile()


@contextmanager
def compiled_calls(module: nn.Module) -> Iterator[None]:
    """Within the block, calls of `module` run its compiled forward, which is kept for later blocks. Other calls are not compiled: a prompt
    has another length each time."""
    compiled = vars(module).get("_compiled_for_decoding")
    if compiled is None:
        compiled = torch.compile(module._call_impl)
        object.__setattr__(module, "_compiled_for_decoding", compiled)
    before, module._compiled_call_impl = module._compiled_call_impl, compiled
    try:
        yield
    finally:
        module._compiled_call_impl = before
