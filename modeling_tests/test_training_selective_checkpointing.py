# SPDX-License-Identifier: Apache-2.0
"""Selective activation checkpointing: which results are kept, and equal gradients."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llava_st_hf.training import LlavaSTTrainingConfig, prepare_model_for_training
from llava_st_hf.training.selective_checkpointing import enable_selective_checkpointing, keeps_result
from modeling_tests.factories import enable_checkpointing, mixed_batch, tiny_model
from modeling_tests.one_training import make_trainer


aten = torch.ops.aten
PARTS = ["packer", "input_embeddings", "coordinate_embeddings", "lora"]


class Operations(TorchDispatchMode):
    """Counts operations of the backward pass that compute a forward pass again: those run with gradients."""

    def __init__(self):
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.is_grad_enabled():
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def step(kept: str | None) -> tuple[torch.Tensor, dict[str, torch.Tensor], Counter]:
    """Loss, gradients, and operations that the backward pass repeats, of a model with LoRA and dropout."""
    model = prepare_model_for_training(tiny_model(), PARTS, lora_r=2, lora_dropout=0.5).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero in a new adapter
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    enable_checkpointing(model, use_reentrant=False)
    if kept is not None:
        enable_selective_checkpointing(model, kept)
    batch = mixed_batch(model.config)
    torch.manual_seed(0)  # dropout
    loss = model(**batch, labels=batch["input_ids"]).loss
    operations = Operations()
    with operations:
        loss.backward()
    return loss.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}, operations.counts


def test_selective_checkpointing_has_the_gradients_of_complete_recomputation_and_repeats_fewer_products():
    loss, gradients, repeated = step(None)
    counts = [repeated]
    for kept in ("reductions", "matmuls"):
        same_loss, same_gradients, repeated = step(kept)
        assert torch.equal(same_loss, loss)
        assert same_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(same_gradients[name], gradient, rtol=0, atol=0, msg=name)
        counts.append(repeated)
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    products = [count["mm"] + count["addmm"] for count in counts]
    assert products[0] > products[1] > products[2]
    assert counts[0][attention] > counts[1][attention] == counts[2][attention]


def test_keeps_result_depends_on_operation_and_width_of_the_result():
    states = torch.empty(5, 32, device="meta")

    def product(in_features: int, out_features: int, kept: str) -> bool:
        weight = torch.empty(in_features, out_features, device="meta")
        plain = keeps_result(kept, aten.mm.default, (states, weight))
        assert plain == keeps_result(kept, aten.addmm.default, (torch.empty(out_features, device="meta"), states, weight))
        return plain

    assert [product(*widths, "reductions") for widths in ((32, 8), (32, 32), (32, 100), (2, 32))] == [True, False, False, False]
    assert [product(*widths, "matmuls") for widths in ((32, 8), (32, 32), (32, 100), (2, 32))] == [True, True, True, False]
    assert keeps_result("reductions", aten._scaled_dot_product_flash_attention.default, ())
    assert not keeps_result("matmuls", aten.mul.Tensor, (states, states))


def test_trainer_with_selective_checkpointing_trains_the_same_weights(tmp_path):
    weights = []
    for kept in (None, "matmuls"):
        trainer = make_trainer(tmp_path / str(kept), max_steps=1, count=3, gradient_checkpointing=True, selective_checkpointing=kept)
        trainer.train()
        weights.append([parameter.detach().clone() for parameter in trainer.model.parameters() if parameter.requires_grad])
        layer = trainer.model.get_base_model().model.language_model.layers[0]
        assert ("context_fn" in layer._gradient_checkpointing_func.keywords) == (kept is not None)
    for plain, selective in zip(*weights, strict=True):
        assert torch.equal(plain, selective)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selective_checkpointing": "attention"}, "'attention' must be one of reductions, matmuls, or null"),
        ({"selective_checkpointing": "matmuls", "gradient_checkpointing": False}, "with gradient_checkpointing: true only"),
    ],
)
def test_training_config_wrong_selective_checkpointing_raises(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        LlavaSTTrainingConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)


def test_enable_selective_checkpointing_without_or_with_reentrant_checkpointing_raises():
    model = tiny_model()
    with pytest.raises(ValueError, match="set gradient_checkpointing: true"):
        enable_selective_checkpointing(model, "matmuls")
    enable_checkpointing(model, use_reentrant=True)
    with pytest.raises(ValueError, match="use_reentrant: false"):
        enable_selective_checkpointing(model, "matmuls")
