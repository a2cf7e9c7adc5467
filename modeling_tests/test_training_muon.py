# SPDX-License-Identifier: Apache-2.0
"""Muon beside AdamW: what each updates, that both agree with torch's own, and that a run can go on from its state."""

import copy
from unittest.mock import patch

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_st_hf.training import LlavaSTTrainer, LlavaSTTrainingConfig, MuonAdamW, muon, prepare_model_for_training
from llava_st_hf.training.muon import orthogonal
from llava_st_hf.training.trainable import part_of
from modeling_tests.corpora import mixed_rows
from modeling_tests.one_training import OPTIONS
from modeling_tests.processors import model_for, tiny_processor


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.Tanh(), torch.nn.Linear(20, 20), torch.nn.Tanh(), torch.nn.Linear(20, 5))


def optimizer_of(model: torch.nn.Module, **options) -> MuonAdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return MuonAdamW([{"params": matrices, "muon": True}, {"params": vectors}], lr=0.01, betas=(0.9, 0.98), weight_decay=0.1, **options)


def steps(model: torch.nn.Module, optimizer: MuonAdamW, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        inputs = torch.randn(16, 12, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()


def test_updates_are_those_of_torch():
    ours, theirs = network(), network()
    before = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    matrices = [parameter for parameter in theirs.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in theirs.parameters() if parameter.ndim == 1]
    options = {"lr": 0.01, "weight_decay": 0.1}
    optimizers = [
        optimizer_of(ours),
        torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **options),
        torch.optim.AdamW(vectors, betas=(0.9, 0.98), **options),
    ]
    for number in range(5):
        generator = torch.Generator().manual_seed(number)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = other.grad = torch.randn(mine.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        change, expected = mine - before[name], other - before[name]
        tolerance = 0.1 if mine.ndim == 2 else 1e-6  # torch iterates in bfloat16
        assert (change - expected).norm() < tolerance * expected.norm(), name


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000), st.floats(1e-6, 1e6))
@pytest.mark.parametrize(("has_tiles", "tolerance"), [(False, 1e-2), (True, 0.15)])
def test_orthogonal_keeps_directions_and_evens_out_how_long_they_are(has_tiles, tolerance, count, height, width, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    side = min(height, width)
    left = torch.linalg.qr(torch.randn(count, height, side, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(count, width, side, generator=generator, dtype=torch.float64)).Q
    lengths = torch.rand(count, 1, side, generator=generator, dtype=torch.float64) * 0.9 + 0.1
    with patch.object(muon, "TILES", has_tiles):  # of processors, whose units for bfloat16 are used where they have some
        found = orthogonal((left * lengths @ right.mT * scale).float())
    assert found.shape == (count, height, width) and found.dtype == torch.float32
    seen = left.mT @ found.double() @ right  # diagonal, where the directions are the same
    diagonal = seen.diagonal(dim1=-2, dim2=-1)
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
    assert (seen - torch.diag_embed(diagonal)).abs().max() < tolerance


def test_a_matrix_without_gradient_stays():
    model = network()
    optimizer = optimizer_of(model)
    model[2].weight.requires_grad_(False)
    before = model[2].weight.clone()
    steps(model, optimizer, 2)
    assert torch.equal(model[2].weight, before)


def test_a_gradient_of_zero_moves_nothing_and_makes_no_nan():
    matrix = torch.nn.Parameter(torch.ones(3, 4))
    matrix.grad = torch.zeros(3, 4)
    MuonAdamW([{"params": [matrix], "muon": True}]).step()
    assert torch.equal(matrix.detach(), torch.ones(3, 4))


def test_a_run_goes_on_from_its_state():
    whole, parts = network(), network()
    steps(whole, optimizer_of(whole), 6)
    first = optimizer_of(parts)
    steps(parts, first, 3)
    second = optimizer_of(parts)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(parts, second, 3, first=3)
    for mine, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"matrices.*\(7,\)"):
        MuonAdamW([{"params": [torch.nn.Parameter(torch.ones(7))], "muon": True}])


def trainer_with_muon(folder, **options) -> LlavaSTTrainer:
    parts = ["projector", "packer", "input_embeddings", "output_embeddings", "language_model"]
    options = {**OPTIONS, "trainable_modules": parts, "max_steps": 1, "optim": "adamw_torch", "muon": True, **options}
    args = LlavaSTTrainingConfig(output_dir=str(folder / "run"), **options)
    processor = tiny_processor()
    model = prepare_model_for_training(model_for(processor), args.trainable_modules)
    return LlavaSTTrainer(model, args, Dataset.from_list(mixed_rows({}, 3)[2:]), processor)


def test_the_trainer_gives_muon_the_matrices_between_features(tmp_path):
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


def test_the_trainer_trains_with_it(tmp_path):
    trainer = trainer_with_muon(tmp_path, learning_rate=1e-2, max_steps=8, logging_steps=1)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_divided_matrices_are_refused(tmp_path):
    trainer = trainer_with_muon(tmp_path)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="whole matrices"):
        trainer.create_optimizer()


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch_8bit"])
def test_another_optimizer_beside_it_is_refused(tmp_path, optim):
    with pytest.raises(ValueError, match=rf"muon=True.*adamw_torch.*{optim}"):
        LlavaSTTrainingConfig(output_dir=str(tmp_path), **{**OPTIONS, "muon": True, "optim": optim})
