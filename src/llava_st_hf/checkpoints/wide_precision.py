# SPDX-License-Identifier: Apache-2.0
"""Computation in float32 with weights in half precision, without a second copy of all weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel


@contextmanager
def float32_arithmetic(model: PreTrainedModel) -> Iterator[None]:
    """
    Makes a model compute in float32. Small modules are converted for the whole block; each layer of the decoder and the head only while
    it runs, and of the embeddings only the rows that are looked up. Weights are unchanged afterwards. Puts the model in evaluation mode
    inside the block.
    """
    originals: dict[nn.Parameter | torch.Tensor, torch.Tensor] = {}

    def widen(module: nn.Module, *_) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                originals[tensor] = tensor.data
                tensor.data = tensor.data.float()

    def restore(module: nn.Module, *_) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor in originals:
                tensor.data = originals.pop(tensor)

    base, decoder, head, embeddings = model.model, model.model.language_model, model.get_output_embeddings(), model.get_input_embeddings()
    layers = [*decoder.layers, head]
    large = {id(tensor) for module in (*layers, embeddings) for tensor in (*module.parameters(), *module.buffers())}
    small = [module for module in base.modules() if all(id(t) not in large for t in (*module.parameters(), *module.buffers()))]
    was_training, hooks = model.training, []
    try:
        model.eval()
        for module in small:
            widen(module)
        for layer in layers:
            hooks += [layer.register_forward_pre_hook(widen), layer.register_forward_hook(restore, always_call=True)]
        hooks.append(embeddings.register_forward_hook(lambda module, args, output: output.float()))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for tensor, original in originals.items():
            tensor.data = original
        model.train(was_training)
