# SPDX-License-Identifier: Apache-2.0
"""Compilation of the layers of a vision encoder, and its option in training."""

from functools import partial

import pytest
import torch

from llava_st_hf.model.backbones_llava_st import VISION_ENCODERS
from llava_st_hf.model.compilation_llava_st import compile_encoder_layers, encoder_layers
from llava_st_hf.training import LlavaSTTrainer, LlavaSTTrainingConfig, prepare_model_for_training
from modeling_tests.factories import mixed_batch, tiny_model
from modeling_tests.one_training import make_trainer
from modeling_tests.test_backbones_llava_st import pair_config


def loss_and_gradients(model) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = mixed_batch(model.config)
    loss = model(**batch, labels=batch["input_ids"], vision_chunk_size=3).loss
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


def test_compile_encoder_layers_compiles_one_layer_for_all_and_keeps_loss_and_gradients(monkeypatch):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = prepare_model_for_training(tiny_model(), ["packer"]).train()
    loss, gradients = loss_and_gradients(model)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    compile_encoder_layers(model.model.vision_tower)
    same_loss, same_gradients = loss_and_gradients(model)
    torch.testing.assert_close(same_loss, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient)
    layers = encoder_layers(model.model.vision_tower)
    assert len(layers) == model.config.vision_config.num_hidden_layers == 2
    assert 0 < len(graphs) <= 2


@pytest.mark.parametrize("encoder", VISION_ENCODERS)
def test_encoder_layers_are_those_of_the_configuration(encoder):
    model = tiny_model(pair_config("qwen2", encoder))
    assert len(encoder_layers(model.model.vision_tower)) == model.config.vision_config.num_hidden_layers


def test_trainer_with_compile_vision_tower_compiles_the_layers_before_training(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, count=3, compile_vision_tower=True)
    tower = trainer.model.get_base_model().model.vision_tower
    assert all(layer._compiled_call_impl is not None for layer in encoder_layers(tower))


def test_trainer_with_sharded_weights_warns_and_does_not_compile(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(LlavaSTTrainer, "_shards_weights", True)
    trainer = make_trainer(tmp_path, max_steps=1, count=3, compile_vision_tower=True)
    tower = trainer.model.get_base_model().model.vision_tower
    assert all(layer._compiled_call_impl is None for layer in encoder_layers(tower))
    assert "no effect with ZeRO-3 and FSDP" in caplog.text


def test_training_config_compile_vision_tower_with_trained_encoder_raises(tmp_path):
    with pytest.raises(ValueError, match="remove vision_tower from trainable_modules"):
        LlavaSTTrainingConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, compile_vision_tower=True, trainable_modules=["vision_tower"]
        )
