# SPDX-License-Identifier: Apache-2.0
"""The trainer: loss, learning rates per module, logging, and handling of invalid samples."""

import math
from collections import Counter

import pytest
import torch
import yaml
from datasets import Dataset, IterableDataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments

from llava_st_hf.model.model_card_llava_st import TAGS
from llava_st_hf.training import LlavaSTTrainer, LlavaSTTrainingConfig, prepare_model_for_training
from llava_st_hf.training import trainer as trainer_module
from llava_st_hf.training.trainable import part_of
from modeling_tests.corpora import mixed_rows, row, write_media
from modeling_tests.one_training import OPTIONS, make_trainer
from modeling_tests.processors import model_for, tiny_processor


def trainer_of(folder, rows, eval_rows=None, parts=("packer", "lora"), **options):
    args = LlavaSTTrainingConfig(output_dir=str(folder / "run"), **{**OPTIONS, "trainable_modules": list(parts), "max_steps": 1, **options})
    processor = tiny_processor()
    model = prepare_model_for_training(model_for(processor), args.trainable_modules, lora_r=2, lora_dropout=0.0)
    evaluated = Dataset.from_list(eval_rows) if eval_rows else None
    return LlavaSTTrainer(model, args, Dataset.from_list(rows), processor, evaluated)


def test_trainer_logs_the_mean_loss_over_supervised_tokens_and_the_loss_of_each_task(tmp_path):
    rows = mixed_rows(write_media(tmp_path), 6)
    trainer = trainer_of(tmp_path, rows, per_device_train_batch_size=6)
    batch = trainer.data_collator(rows)
    tasks = batch.pop("tasks")
    del batch["skipped"]
    with torch.no_grad():
        outputs = trainer.model.train()(**batch)
    trainer.train()
    [entry, _] = trainer.state.log_history
    assert entry["loss"] == pytest.approx(float(outputs.loss), rel=1e-5)
    supervised = (batch["labels"][:, 1:] != -100).sum(1).tolist()
    losses = outputs.token_losses.split(supervised)
    for task in set(tasks):
        of_task = torch.cat([loss for loss, name in zip(losses, tasks, strict=True) if name == task])
        assert entry[f"loss_{task}"] == pytest.approx(float(of_task.mean()), rel=1e-5)
    errors = dict(zip(("time", "box"), bin_errors_by_hand(trainer, batch), strict=True))
    for name, error in errors.items():
        assert entry[f"{name}_bin_error"] == pytest.approx(error, abs=1e-3)
    assert entry["num_tokens"] == int(batch["attention_mask"].sum()) == trainer.state.num_input_tokens_seen
    assert entry["tokens_per_second"] > 0 and entry["samples_per_second"] > 0


def bin_errors_by_hand(trainer, batch) -> tuple[float, float]:
    """Computes the mean distance between argmax and target in bins, of time and of box tokens, from the logits."""
    model = trainer.model.eval()  # the LoRA has no effect yet: B is zero, and the step was small
    fresh = model_for(tiny_processor()).eval()
    vocabulary = model.config.coordinates
    with torch.no_grad():
        logits = fresh(**batch).logits[:, :-1]
    targets, positions = batch["labels"][:, 1:], batch["coordinate_values"][:, 1:]
    errors = {"time": [], "box": []}
    for axis in ("temporal", "height", "width"):
        ids = vocabulary.token_ids(axis)
        on_axis = (targets >= ids.start) & (targets < ids.stop)
        guess = logits[..., ids.start : ids.stop].argmax(-1)[on_axis]
        goal = positions[on_axis] * (len(ids) - 1)
        errors["time" if axis == "temporal" else "box"] += (guess - goal).abs().tolist()
    return tuple(sum(values) / len(values) for values in errors.values())


def test_create_optimizer_sets_learning_rates_per_module_and_decays_only_matrices(tmp_path):
    rates = {"lora": 3e-3, "packer": "4e-3"}  # YAML reads 4e-3 as text
    trainer = trainer_of(
        tmp_path, mixed_rows({}, 3)[2:], parts=("packer", "coordinate_embeddings", "lora"), learning_rates=rates, weight_decay=0.1
    )
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            part = part_of(names[id(parameter)])
            assert group["lr"] == {"lora": 3e-3, "packer": 4e-3, "coordinate_embeddings": 0.05}[part]
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
            seen.append(part)
    assert len(seen) == sum(parameter.requires_grad for parameter in trainer.model.parameters())


def test_trainer_on_error_skip_logs_invalid_samples_and_stops_beyond_max_errors(tmp_path, caplog):
    rows = mixed_rows(write_media(tmp_path), 3) + [row(n, "video", f"{n}.gone", "When?", "{<t0.1><t0.2>}", "tvg") for n in (91, 92, 93)]
    trainer = trainer_of(tmp_path, rows, max_steps=6, on_error="skip", max_errors=3, logging_steps=6)
    with caplog.at_level("WARNING"):
        trainer.train()
    assert trainer.state.log_history[0]["skipped_samples"] == 3
    for number in (91, 92, 93):
        assert f"Sample '{number}'" in caplog.text and f"{number}.gone" in caplog.text
    with pytest.raises(RuntimeError, match=r"3 samples could not be used, more than max_errors=2.*gone"):
        trainer_of(tmp_path, rows, max_steps=6, on_error="skip", max_errors=2).train()
    with pytest.raises(ValueError, match=r"Sample '9\d' of made"):
        trainer_of(tmp_path, rows, max_steps=6).train()


def test_max_errors_counts_different_samples_of_all_processes_together(tmp_path, monkeypatch):
    rows = [*mixed_rows(write_media(tmp_path), 3), row(91, "video", "91.gone", "When?", "{<t0.1><t0.2>}", "tvg")]
    options = {"max_steps": 4, "on_error": "skip", "logging_steps": 4}

    def gather(objects):  # as if another process had skipped the same sample and two others
        return [*objects, {*objects[0], "Sample '92'", "Sample '93'"}] if isinstance(objects[0], set) else objects

    monkeypatch.setattr(trainer_module, "gather_object", gather)
    trainer = trainer_of(tmp_path, rows, max_errors=3, **options)
    trainer.train()
    assert trainer.state.log_history[0]["skipped_samples"] == 3
    with pytest.raises(RuntimeError, match="3 samples could not be used, more than max_errors=2"):
        trainer_of(tmp_path, rows, max_errors=2, **options).train()


def test_trainer_batch_without_valid_samples_changes_no_weights(tmp_path):
    rows = [row(1, "video", "one.gone", "When?", "{<t0.1><t0.2>}", "tvg")]
    trainer = trainer_of(tmp_path, rows, on_error="skip")
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 0
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())


def test_evaluate_logs_the_loss_of_each_task(tmp_path):
    rows = mixed_rows(write_media(tmp_path), 6)
    trainer = trainer_of(tmp_path, rows[:3], rows, per_device_eval_batch_size=2)
    metrics = trainer.evaluate()
    [entry] = trainer.state.log_history
    names = {"eval_loss", "eval_loss_tvg", "eval_loss_rec", "eval_loss_conversation", "eval_time_bin_error", "eval_box_bin_error"}
    assert names <= entry.keys() and "eval_loss" in metrics
    assert all(math.isfinite(entry[name]) for name in names)
    assert trainer.state.num_input_tokens_seen == 0


def test_trainer_logs_metrics_to_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = trainer_of(tmp_path, mixed_rows(write_media(tmp_path), 3), report_to="tensorboard", max_steps=3)
    trainer.train()
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    tags = set(board.Tags()["scalars"])
    assert {"train/loss", "train/loss_tvg", "train/time_bin_error", "train/tokens_per_second", "train/samples_per_second"} <= tags
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(logged)


def test_progress_bar_shows_speed_and_remaining_time(tmp_path, capsys):
    trainer = trainer_of(tmp_path, mixed_rows({}, 3)[2:], max_steps=3, disable_tqdm=False)
    trainer.train()
    bar = capsys.readouterr().err
    assert "tokens/s" in bar and "samples/s" in bar and "3/3 [" in bar and "<00:00" in bar


def test_model_card_has_data_recipe_and_metrics(tmp_path):
    described = {"hub_license": "apache-2.0", "hub_datasets": ["some/data"]}
    trainer = make_trainer(tmp_path, max_steps=2, learning_rates={"lora": 0.01}, **described)
    trainer.base_model_name, trainer.card_data = "some/base", "| source | samples |\n|---|---|\n| made | 8 |"
    trainer.train()
    trainer.create_model_card(dataset_name="some/more", tags="mine")
    card = (tmp_path / "run/README.md").read_text()
    _, metadata, body = card.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "base_model": "some/base",
        "datasets": ["some/data", "some/more"],
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "video-text-to-text",
        "tags": [*TAGS, "trl", "sft", "mine"],
    }
    recipe = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert (
        recipe["trainable_modules"] == OPTIONS["trainable_modules"]
        and recipe["learning_rates"] == {"lora": 0.01}
        and recipe["max_steps"] == 2
    )
    assert "| made | 8 |" in body and "| loss_rec |" in body and str(tmp_path) not in card
    assert f"| loss | {trainer.state.log_history[-2]['loss']:.4g} | 2 |" in body


def test_trainer_frozen_vision_tower_stores_no_graph(tmp_path):
    trainer = make_trainer(tmp_path, gradient_checkpointing=True)
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)[:2]))
    del batch["tasks"]
    saved = []
    tower = trainer.model.get_base_model().model.vision_tower
    tower.register_forward_hook(lambda module, inputs, output: saved.append(output.last_hidden_state.requires_grad))
    trainer.model.train()(**batch).loss.backward()
    assert saved == [False, False]  # one pass for the image, one for the video
    assert all(parameter.grad is None for parameter in tower.parameters())


def test_trainer_arguments_of_another_class_raises(tmp_path):
    with pytest.raises(TypeError, match="LlavaSTTrainingConfig"):
        LlavaSTTrainer(None, TrainingArguments(output_dir=str(tmp_path)), Dataset.from_list(mixed_rows({}, 3)[2:]), tiny_processor())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"trainable_modules": ["packer", "head"]}, "'head'"),
        ({"trainable_modules": ["packer"], "learning_rates": {"lora": 1e-4}}, "lora, which is not trained"),
        ({"learning_rates": {"loar": 1e-4}}, "'loar'"),
        ({"packing": True}, "packing=True must be False"),
        ({"remove_unused_columns": True}, "remove_unused_columns=True must be False"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
        ({"loss_type": "dft"}, "loss_type='dft' must be 'nll'"),
        ({"assistant_only_loss": True}, "use loss_on"),
        ({"loss_on": "all"}, 'loss_on=\'all\' must be "assistant" or "original"'),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"max_errors": -1}, "max_errors=-1"),
        ({"learning_rates": {"lora": "fast"}}, "learning rate of lora must be a number.*'fast'"),
        ({"learning_rates": {"lora": -1}}, "learning rate of lora must be a number"),
        ({"learning_rates": "lora=1"}, "must be a dictionary"),
        ({"push_to_hub": True, "hub_strategy": "every_save"}, "hub_strategy must be"),
        ({"hub_license": "Apache 2"}, "license must be an identifier of the hub"),
        ({"hub_datasets": ["a b"]}, "must be a hub id such as owner/name, got 'a b'"),
    ],
)
def test_training_config_invalid_settings_raises(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        LlavaSTTrainingConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)


def test_trainer_model_and_processor_of_different_checkpoints_raises(tmp_path):
    args = LlavaSTTrainingConfig(output_dir=str(tmp_path), **OPTIONS)
    model = model_for(tiny_processor(num_temporal_bins=50))
    with pytest.raises(ValueError, match=r"do not belong together: .*number of temporal bins is 50 in the model and 100 in the processor"):
        LlavaSTTrainer(model, args, Dataset.from_list(mixed_rows({}, 3)[2:]), tiny_processor())


def test_trainer_stage_1_model_logs_no_bin_errors(tmp_path):
    rows = mixed_rows(write_media(tmp_path), 3, coordinates=False)
    processor = tiny_processor(num_temporal_bins=0, num_spatial_bins=0)
    args = LlavaSTTrainingConfig(
        output_dir=str(tmp_path / "run"), **{**OPTIONS, "trainable_modules": ["packer", "input_embeddings"], "max_steps": 1}
    )
    model = prepare_model_for_training(model_for(processor, use_coordinate_tokens=False), args.trainable_modules)
    trainer = LlavaSTTrainer(model, args, Dataset.from_list(rows), processor)
    trainer.train()
    assert "loss_rec" in trainer.state.log_history[0]
    assert not any("bin_error" in name for name in trainer.state.log_history[0])


def test_trainer_resume_of_a_finished_run_changes_nothing(tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "count": 5}
    make_trainer(tmp_path, **options).train()
    again = make_trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    again.save_model()
    assert again.state.global_step == 2
    saved = [(tmp_path / "run" / name / "adapter_model.safetensors").read_bytes() for name in ("checkpoint-2", "")]
    assert saved[0] == saved[1]


def test_evaluate_loss_is_the_mean_over_all_tokens_and_excludes_skipped_samples(tmp_path):
    rows = mixed_rows(write_media(tmp_path), 6)
    broken = row(91, "video", "91.gone", "When?", "{<t0.1><t0.2>}", "tvg")
    whole = trainer_of(tmp_path, rows[:3], rows, per_device_eval_batch_size=6).evaluate()
    apart = trainer_of(tmp_path, rows[:3], [broken, *rows], per_device_eval_batch_size=1, on_error="skip", max_errors=1)
    for _ in range(3):  # a sample counts once, although each evaluation reads it
        assert apart.evaluate()["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-5)
    assert apart.state.log_history[-1]["skipped_samples"] == 1


def test_trainer_resumed_run_counts_samples_skipped_before(tmp_path):
    rows = [*mixed_rows(write_media(tmp_path), 3), row(91, "video", "91.gone", "When?", "{<t0.1><t0.2>}", "tvg")]
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4, "on_error": "skip", "logging_steps": 1}
    trainer_of(tmp_path, rows, **options).train()
    again = trainer_of(tmp_path, rows, **{**options, "max_steps": 6})
    again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-4"))
    assert [entry["skipped_samples"] for entry in again.state.log_history if entry["step"] in (5, 6) and "loss" in entry] == [1, 1]


def test_trainer_batch_without_trained_tokens_changes_no_weights(tmp_path):
    trainer = trainer_of(tmp_path, mixed_rows({}, 3)[2:], parts=("packer",), gradient_checkpointing=False)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())


def test_trainer_streamed_dataset_trains_and_saves(tmp_path):
    rows = mixed_rows(write_media(tmp_path), 6)
    args = LlavaSTTrainingConfig(output_dir=str(tmp_path / "run"), **{**OPTIONS, "max_steps": 2, "save_strategy": "steps", "save_steps": 1})
    processor = tiny_processor()
    stream = IterableDataset.from_generator(lambda: iter(rows))
    trainer = LlavaSTTrainer(prepare_model_for_training(model_for(processor), args.trainable_modules, lora_r=2), args, stream, processor)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2]
    assert (tmp_path / "run/checkpoint-2/adapter_model.safetensors").is_file()


def test_trainer_empty_dataset_or_missing_column_raises(tmp_path):
    rows = mixed_rows({}, 3)[2:]
    with pytest.raises(ValueError, match="has no samples"):
        trainer_of(tmp_path, [])
    with pytest.raises(ValueError, match=r"lacks \['modality'\]"):
        trainer_of(tmp_path, [{k: v for k, v in row.items() if k != "modality"} for row in rows], train_sampling_strategy="group_by_length")


def test_trainer_half_precision_weights_without_mixed_precision_raises(tmp_path):
    processor = tiny_processor()
    args = LlavaSTTrainingConfig(output_dir=str(tmp_path / "run"), **OPTIONS)
    model = prepare_model_for_training(model_for(processor).to(torch.bfloat16), args.trainable_modules, lora_r=2)
    with pytest.raises(ValueError, match="bf16: true"):
        LlavaSTTrainer(model, args, Dataset.from_list(mixed_rows({}, 3)[2:]), processor)


def test_trainer_mixed_precision_keeps_trained_weights_in_float32(tmp_path):
    processor = tiny_processor()
    args = LlavaSTTrainingConfig(output_dir=str(tmp_path / "run"), **{**OPTIONS, "bf16": True, "max_steps": 1})
    model = prepare_model_for_training(model_for(processor).to(torch.bfloat16), args.trainable_modules, lora_r=2)
    trainer = LlavaSTTrainer(model, args, Dataset.from_list(mixed_rows(write_media(tmp_path), 3)), processor)
    for parameter in trainer.model.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
    adapter = trainer.model.get_base_model().model.language_model.layers[0].mlp.up_proj
    dtypes = set()
    adapter.lora_A["default"].register_forward_hook(lambda module, inputs, output: dtypes.add(inputs[0].dtype))
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])
    assert dtypes == {torch.bfloat16}  # by default PEFT converts the inputs to float32
    assert adapter.cast_input_dtype_enabled  # as without autocast


class HostWaits(TorchDispatchMode):
    """Counts operations by name. The host waits until a GPU has finished its queue for results that are numbers or have a size that depends
    on data, such as indexing by a mask, and for tensors made of numbers."""

    def __init__(self):
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(
            isinstance(tensor, torch.Tensor) and tensor.dtype == torch.bool
            for indices in args
            if type(indices) is list
            for tensor in indices
        ):
            name = "mask" if name.startswith(("index", "_index")) else name
        self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def test_trainer_training_step_waits_for_the_device_at_few_places(tmp_path):
    trainer = trainer_of(tmp_path, mixed_rows(write_media(tmp_path), 3), per_device_train_batch_size=3)
    waits, training_step = HostWaits(), trainer.training_step

    def counted(*args, **kwargs):
        with waits:
            return training_step(*args, **kwargs)

    trainer.training_step = counted
    trainer.train()
    assert waits.counts["nonzero"] == 1  # supervised positions
    assert waits.counts["mask"] == waits.counts["masked_select"] == waits.counts["lift_fresh"] == 0
    assert waits.counts["_local_scalar_dense"] <= 4  # number of features of images and of videos; two of transformers' attention mask


@pytest.mark.parametrize("pinned", [True, False])
def test_training_config_copies_pinned_batches_without_waiting_by_default(tmp_path, pinned):
    args = LlavaSTTrainingConfig(output_dir=str(tmp_path), **{**OPTIONS, "use_cpu": False, "dataloader_pin_memory": pinned})
    assert args.accelerator_config.non_blocking is pinned
    assert args.logging_nan_inf_filter is False
    for options in ({}, {"accelerator_config": {"split_batches": True}}):  # on a CPU there is no pinned memory
        args = LlavaSTTrainingConfig(output_dir=str(tmp_path), **OPTIONS, **options)
        assert args.accelerator_config.split_batches == bool(options) and not args.accelerator_config.non_blocking
