# SPDX-License-Identifier: Apache-2.0
"""Inputs of answer coordinates in training: exact positions, bins, or half of the conversations with either."""

import pytest
import torch
from datasets import Dataset

from llava_st_hf.data import pack_by_video
from llava_st_hf.training import LlavaSTTrainer, LlavaSTTrainingConfig, prepare_model_for_training
from llava_st_hf.training.answer_coordinates import answer_coordinate_inputs, choose_bins
from modeling_tests.corpora import mixed_rows, row, write_media
from modeling_tests.factories import NAN, mixed_batch, tiny_config, tiny_model
from modeling_tests.one_training import OPTIONS
from modeling_tests.processors import model_for, tiny_processor


def test_choose_bins_mixed_chooses_half_and_the_same_with_the_same_seed():
    chosen = choose_bins("mixed", 4000, [3, 5, 0, 0])
    assert 0.45 < float(chosen.float().mean()) < 0.55
    assert torch.equal(chosen, choose_bins("mixed", 4000, [3, 5, 0, 0]))
    assert not torch.equal(chosen, choose_bins("mixed", 4000, [3, 6, 0, 0]))
    assert choose_bins("bins", 3, []).all() and not choose_bins("exact", 3, []).any()


def test_answer_coordinate_inputs_removes_values_of_chosen_answers_only():
    values = torch.tensor([[0.1, NAN, 0.2, 0.3], [0.4, 0.5, NAN, 0.6]])
    labels = torch.tensor([[-100, -100, 7, 8], [-100, 9, 9, 9]])
    found = answer_coordinate_inputs(values, labels, None, torch.tensor([False, True]))
    expected = torch.tensor([[0.1, NAN, 0.2, 0.3], [0.4, NAN, NAN, NAN]])
    torch.testing.assert_close(found, expected, equal_nan=True)
    segments = torch.tensor([[-1, 0, 0, 1], [2, 2, 3, -2]])
    labels = torch.tensor([[-100, 7, 7, 8], [5, 9, 9, -100]])
    found = answer_coordinate_inputs(values, labels, segments, torch.tensor([True, False, False, True]))
    torch.testing.assert_close(found, torch.tensor([[0.1, NAN, NAN, 0.3], [0.4, 0.5, NAN, 0.6]]), equal_nan=True)


def test_forward_coordinate_targets_replace_the_exact_inputs_as_targets():
    """The loss is that of two-hot targets, computed from the logits of the other inputs."""
    config = tiny_config()
    model, batch = tiny_model(config), mixed_batch(config)
    targets = batch["coordinate_values"]
    inputs = {**batch, "coordinate_values": torch.full_like(targets, NAN)}
    labels = batch["input_ids"].masked_fill(targets.isnan(), -100)
    with torch.no_grad():
        loss = model(**inputs, labels=labels, coordinate_targets=targets).loss
        scores = model(**inputs).logits[:, :-1].log_softmax(-1)
    lower, upper, weight = config.coordinates.between_tokens(labels[:, 1:].clamp(min=0), targets[:, 1:])
    of_token = (1 - weight) * scores.gather(-1, lower[..., None])[..., 0] + weight * scores.gather(-1, upper[..., None])[..., 0]
    torch.testing.assert_close(loss, -of_token[labels[:, 1:] != -100].mean(), atol=1e-5, rtol=1e-5)


def trainer_of(folder, dataset, eval_dataset=None, **options) -> LlavaSTTrainer:
    args = LlavaSTTrainingConfig(output_dir=str(folder / "run"), **{**OPTIONS, "trainable_modules": ["packer"], "max_steps": 1, **options})
    processor = tiny_processor()
    model = prepare_model_for_training(model_for(processor), args.trainable_modules)
    return LlavaSTTrainer(model, args, dataset, processor, eval_dataset)


@pytest.mark.parametrize("packed", [False, True])
def test_trainer_answer_coordinates_bins_has_the_loss_of_nearest_bins_as_inputs(tmp_path, packed):
    media = write_media(tmp_path)
    dataset = Dataset.from_list(
        [row(n, "image", media["image"], "Where is <w0.77>?", f"[<w0.1{n}><h0.2><w0.5><h0.9>]", "rec") for n in range(3)]
    )
    dataset = pack_by_video(dataset, 3) if packed else dataset
    losses = {}
    for choice in ("exact", "bins", "mixed"):
        trainer = trainer_of(
            tmp_path, dataset, dataset, answer_coordinates=choice, per_device_train_batch_size=3, eval_strategy="steps", eval_steps=1
        )
        batch = trainer.data_collator(list(dataset))
        trainer.train()
        losses[choice], evaluated, _ = trainer.state.log_history
        # Evaluation has bins as inputs, whatever the choice. The weights changed by one step of SGD in between.
        assert evaluated["eval_box_bin_error"] == evaluated["eval_box_bin_error_from_bins"]
    assert "box_bin_error_from_bins" not in losses["exact"]
    assert losses["bins"]["box_bin_error_from_bins"] == losses["bins"]["box_bin_error"]
    assert len({round(entry["loss"], 6) for entry in losses.values()}) == 3  # seed 3 chooses some of the three, not all
    values = batch["coordinate_values"].masked_fill(batch["labels"] != -100, NAN)
    inputs = {name: value for name, value in batch.items() if name not in ("tasks", "skipped", "segment_ids")}
    if packed:
        return
    with torch.no_grad():
        outputs = model_for(tiny_processor()).train()(
            **{**inputs, "coordinate_values": values}, coordinate_targets=batch["coordinate_values"]
        )
    assert losses["bins"]["loss"] == pytest.approx(float(outputs.loss), rel=1e-5)


def test_trainer_answer_coordinates_mixed_choices_differ_between_steps_and_micro_batches(tmp_path):
    trainer = trainer_of(tmp_path, Dataset.from_list(mixed_rows(write_media(tmp_path), 6)), answer_coordinates="mixed")
    first, second = trainer._choose_bins("train", 64), trainer._choose_bins("train", 64)
    assert not torch.equal(first, second)
    trainer.state.global_step = 1
    third = trainer._choose_bins("train", 64)
    assert not torch.equal(first, third)
    again = trainer_of(tmp_path, trainer.train_dataset, answer_coordinates="mixed")
    again.state.global_step = 1  # as after a resume from the checkpoint of step 1
    assert torch.equal(third, again._choose_bins("train", 64))


def test_training_config_unknown_answer_coordinates_raises_an_error(tmp_path):
    with pytest.raises(ValueError, match="answer_coordinates='tokens' must be one of exact, bins, mixed"):
        LlavaSTTrainingConfig(output_dir=str(tmp_path), answer_coordinates="tokens", use_cpu=True, bf16=False)
