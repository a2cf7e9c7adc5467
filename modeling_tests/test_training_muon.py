# SPDX-License-Identifier: Apache-2.0
"""Combined optimizer of Muon and AdamW: equality with torch's optimizers, schedulers, state dictionaries, parameter groups."""

import copy

import pytest
import torch
from datasets import Dataset

from llava_st_hf.training import LlavaSTTrainer, LlavaSTTrainingConfig, MuonAdamW, prepare_model_for_training
from llava_st_hf.training.trainable import part_of
from modeling_tests.corpora import mixed_rows
from modeling_tests.one_training import OPTIONS
from modeling_tests.processors import model_for, tiny_processor


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.Tanh(), torch.nn.Linear(20, 20), torch.nn.Tanh(), torch.nn.Linear(20, 5))


def matrices_and_vectors(model: torch.nn.Module) -> tuple[list, list]:
    return [parameter for parameter in model.parameters() if parameter.ndim == 2], [p for p in model.parameters() if p.ndim == 1]


def muon_adamw(model: torch.nn.Module) -> MuonAdamW:
    matrices, vectors = matrices_and_vectors(model)
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "muon": True, "lr": 0.02}]
    return MuonAdamW(groups, lr=0.01, betas=(0.9, 0.98), weight_decay=0.1)


def halving(optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)


def train(model: torch.nn.Module, parts: list, first: int, last: int) -> None:
    """Runs steps `first` to `last` - 1 of optimizers and schedulers."""
    for number in range(first, last):
        inputs = torch.randn(16, 12, generator=torch.Generator().manual_seed(number))
        model.zero_grad()
        model(inputs).square().sum().backward()
        for part in parts:
            part.step()


def test_muon_adamw_with_a_scheduler_equals_two_torch_optimizers():
    model, expected = network(), network()
    optimizer = muon_adamw(model)
    matrices, vectors = matrices_and_vectors(expected)
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(vectors, lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)
    train(model, [optimizer, halving(optimizer)], 0, 4)
    train(expected, [muon, adamw, halving(muon), halving(adamw)], 0, 4)
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_muon_adamw_resumed_from_its_state_equals_an_uninterrupted_run():
    model, expected = network(), network()
    optimizer = muon_adamw(expected)
    train(expected, [optimizer, halving(optimizer)], 0, 6)
    first = muon_adamw(model)
    scheduler = halving(first)
    train(model, [first, scheduler], 0, 3)
    second = muon_adamw(model)
    resumed = halving(second)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed.load_state_dict(scheduler.state_dict())
    train(model, [second, resumed], 3, 6)
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_muon_adamw_missing_or_zero_gradient_changes_nothing():
    frozen, zero = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(3, 4))
    zero.grad = torch.zeros(3, 4)
    MuonAdamW([{"params": [frozen, zero], "muon": True}]).step()
    assert torch.equal(frozen.detach(), torch.ones(3, 4)) and torch.equal(zero.detach(), torch.ones(3, 4))


def test_muon_adamw_vector_in_a_muon_group_raises():
    with pytest.raises(ValueError, match=r"2D.*\[7\]"):
        MuonAdamW([{"params": [torch.nn.Parameter(torch.ones(7))], "muon": True}])


def trainer_with_muon(folder, **options) -> LlavaSTTrainer:
    parts = ["projector", "packer", "input_embeddings", "output_embeddings", "language_model"]
    options = {**OPTIONS, "trainable_modules": parts, "max_steps": 1, "optim": "adamw_torch", "muon": True, **options}
    args = LlavaSTTrainingConfig(output_dir=str(folder / "run"), **options)
    processor = tiny_processor()
    model = prepare_model_for_training(model_for(processor), args.trainable_modules)
    return LlavaSTTrainer(model, args, Dataset.from_list(mixed_rows({}, 3)[2:]), processor)


def test_trainer_with_muon_updates_only_matrices_of_projector_packer_and_language_model_by_muon(tmp_path):
    trainer = trainer_with_muon(tmp_path, learning_rates={"language_model": 3e-3}, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, MuonAdamW)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            part = part_of(name)
            assert group["muon"] == (parameter.ndim == 2 and part in ("projector", "packer", "language_model")), name
            assert group["lr"] == (3e-3 if part == "language_model" else trainer.args.learning_rate)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
            seen.add((part, group["muon"]))
    assert {("language_model", True), ("language_model", False), ("input_embeddings", False), ("packer", True)} <= seen


def test_trainer_with_muon_reduces_the_loss(tmp_path):
    trainer = trainer_with_muon(tmp_path, learning_rate=1e-2, max_steps=8, logging_steps=1)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_trainer_with_muon_and_sharded_matrices_raises(tmp_path):
    trainer = trainer_with_muon(tmp_path)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="complete matrices"):
        trainer.create_optimizer()


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch_8bit"])
def test_training_config_muon_with_other_optimizer_than_adamw_raises(tmp_path, optim):
    with pytest.raises(ValueError, match=rf"muon=True.*adamw_torch.*{optim}"):
        LlavaSTTrainingConfig(output_dir=str(tmp_path), **{**OPTIONS, "muon": True, "optim": optim})
