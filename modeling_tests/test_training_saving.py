# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and models of a run are written atomically, and the best ones are kept."""

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig

from llava_st_hf import LlavaSTForConditionalGeneration
from llava_st_hf.training import (
    LlavaSTGRPOTrainer,
    LlavaSTTrainer,
    LlavaSTTrainingConfig,
    get_last_checkpoint,
    prepare_model_for_training,
)
from modeling_tests.corpora import mixed_rows
from modeling_tests.one_training import make_trainer
from modeling_tests.processors import model_for, tiny_processor


SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "count": 3}


def test_save_checkpoint_leaves_complete_checkpoints_and_no_staging_folder(tmp_path):
    trainer = make_trainer(tmp_path, save_total_limit=1, **SAVING)
    trainer.train()
    assert sorted(os.listdir(tmp_path / "run")) == ["README.md", "checkpoint-4", "grounding.png"]
    assert get_last_checkpoint(tmp_path / "run") == str(tmp_path / "run/checkpoint-4")
    files = set(os.listdir(tmp_path / "run/checkpoint-4"))
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= files
    trainer.save_model()
    saved = {"adapter_config.json", "adapter_model.safetensors", "processor_config.json", "processing_llava_st.py"}
    assert saved <= set(os.listdir(tmp_path / "run"))
    assert not (tmp_path / "run/.partial").exists()


@pytest.mark.parametrize("victim", ["optimizer.pt", "rng_state.pth"])
def test_save_checkpoint_on_a_full_disk_keeps_earlier_checkpoints_and_names_the_folder(tmp_path, monkeypatch, victim):
    trainer = make_trainer(tmp_path, **SAVING)
    save = torch.save

    def full_disk(content, path, *args, **kwargs):
        if trainer.state.global_step == 4 and str(path).endswith(victim):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match=r"checkpoint-4 could not be saved to .*/run .*No space left.*GiB are free"):
        trainer.train()
    assert get_last_checkpoint(tmp_path / "run") == str(tmp_path / "run/checkpoint-2")
    assert sorted(os.listdir(tmp_path / "run")) == ["README.md", "checkpoint-2", "grounding.png"]


def test_save_model_with_a_write_that_fails_leaves_no_model(tmp_path):
    """Writing the weights fails in the middle of the file: the file size limit of the process is 20 kB."""
    trainer = make_trainer(tmp_path, **SAVING)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="checkpoint-2 could not be saved"):
            trainer.train()
        with pytest.raises(OSError, match=r"The model could not be saved to .*/run "):
            trainer.save_model()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert get_last_checkpoint(tmp_path / "run") is None
    assert not (tmp_path / "run/adapter_config.json").exists()


def test_get_last_checkpoint_skips_and_logs_folders_without_a_complete_trainer_state(tmp_path, caplog):
    assert get_last_checkpoint(tmp_path / "none") is None
    (tmp_path / ".partial/checkpoint-3").mkdir(parents=True)
    (tmp_path / "checkpoint-29").mkdir()
    assert get_last_checkpoint(tmp_path) is None
    for step, state in (
        (9, '{"global_step": 9}'),
        (20, '{"global_step": 20}'),
        (21, '{"global_step": 20}'),
        (30, '{"global_st'),
        (31, "[]"),
    ):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text(state)
    caplog.clear()
    assert get_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")
    for step in (21, 29, 30, 31):
        assert f"Skipping {tmp_path}/checkpoint-{step}" in caplog.text


@pytest.mark.parametrize("limit, kept", [(1, {"checkpoint-1"}), (2, {"checkpoint-1", "checkpoint-3"})])
def test_save_total_limit_keeps_the_best_checkpoint(tmp_path, limit, kept):
    rows = list(make_trainer(tmp_path, **SAVING).train_dataset)
    options = {"load_best_model_at_end": True, "metric_for_best_model": "number_of_steps", "greater_is_better": False}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 3, "save_total_limit": limit}
    trainer = make_trainer(tmp_path, **{**SAVING, **options}, eval_rows=rows)
    evaluate = trainer.evaluate
    # A metric whose best value is at the first step.
    trainer.evaluate = lambda *args, **kwargs: {**evaluate(*args, **kwargs), "eval_number_of_steps": trainer.state.global_step}
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run/checkpoint-1")
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == kept


def test_best_checkpoint_of_a_run_resumed_under_another_path_is_kept(tmp_path, monkeypatch):
    rows = list(make_trainer(tmp_path, **SAVING).train_dataset)
    options = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 2}
    options = {**SAVING, **options, "learning_rate": 3.0, "save_total_limit": 1}
    make_trainer(tmp_path, **{**options, "max_steps": 2}, eval_rows=rows).train()
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(Path("."), **options, eval_rows=rows)
    trainer.train(resume_from_checkpoint="run/checkpoint-2")
    best = min((entry["eval_loss"], entry["step"]) for entry in trainer.state.log_history if "eval_loss" in entry)
    assert trainer.state.best_model_checkpoint == f"run/checkpoint-{best[1]}"
    assert Path(trainer.state.best_model_checkpoint).is_dir()


def test_best_checkpoint_is_loaded_at_the_end(tmp_path):
    rows = list(make_trainer(tmp_path, **SAVING).train_dataset)
    options = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(tmp_path, learning_rate=3.0, **{**SAVING, **options}, eval_rows=rows)
    trainer.train()
    best = min((entry["eval_loss"], entry["step"]) for entry in trainer.state.log_history if "eval_loss" in entry)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"run/checkpoint-{best[1]}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best[0], rel=1e-5)


def test_trainer_push_to_hub_of_an_adapter_of_a_local_folder_raises_before_training(tmp_path):
    """The repository would be created by the constructor, and the upload would fail after training."""
    model_for(tiny_processor()).save_pretrained(tmp_path / "base")
    base = LlavaSTForConditionalGeneration.from_pretrained(tmp_path / "base")
    model = prepare_model_for_training(base, ["lora"], lora_r=2)
    options = {"use_cpu": True, "bf16": False, "push_to_hub": True}
    message = rf"set push_to_hub=False\. The adapter was trained on {tmp_path}/base, which is no hub id.*--base-model"
    dataset = Dataset.from_list(mixed_rows({}, 3)[2:])
    with pytest.raises(ValueError, match=message):
        args = LlavaSTTrainingConfig(output_dir=str(tmp_path / "run"), **options, hub_strategy="end")
        LlavaSTTrainer(model, args, dataset, tiny_processor())
    args = GRPOConfig(output_dir=str(tmp_path / "run"), **options)
    for started, peft_config in ((model, None), (str(tmp_path / "base"), LoraConfig())):
        with pytest.raises(ValueError, match=message):
            LlavaSTGRPOTrainer(started, [len], args, dataset, tiny_processor(), peft_config=peft_config)
