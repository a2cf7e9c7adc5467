# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and models are there whole or not at all."""

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from llava_st_hf.training import get_last_checkpoint, saving
from llava_st_hf.training.saving import atomic_folder
from modeling_tests.one_training import make_trainer


SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "count": 3}


def test_checkpoints_appear_whole_and_nothing_is_left_beside_them(tmp_path):
    trainer = make_trainer(tmp_path, save_total_limit=1, **SAVING)
    trainer.train()
    assert sorted(os.listdir(tmp_path / "run")) == ["README.md", "checkpoint-4"]
    assert get_last_checkpoint(tmp_path / "run") == str(tmp_path / "run/checkpoint-4")
    files = set(os.listdir(tmp_path / "run/checkpoint-4"))
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= files
    trainer.save_model()
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json"} <= set(os.listdir(tmp_path / "run"))
    assert not (tmp_path / "run/.partial").exists()


@pytest.mark.parametrize("victim", ["optimizer.pt", "rng_state.pth"])
def test_a_full_disk_leaves_the_checkpoints_before_it_and_says_so(tmp_path, monkeypatch, victim):
    trainer = make_trainer(tmp_path, **SAVING)
    save = torch.save

    def full_disk(content, path, *args, **kwargs):
        if trainer.state.global_step == 4 and str(path).endswith(victim):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match=r"checkpoint-4 could not be saved .*No space left.*GiB are free"):
        trainer.train()
    assert get_last_checkpoint(tmp_path / "run") == str(tmp_path / "run/checkpoint-2")
    assert sorted(os.listdir(tmp_path / "run")) == ["README.md", "checkpoint-2"]


def test_a_write_that_the_system_cuts_off_leaves_no_model(tmp_path):
    """A real failure in the middle of the weights' file: the system allows no file of more than 20 kB."""
    trainer = make_trainer(tmp_path, **SAVING)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="checkpoint-2 could not be saved"):
            trainer.train()
        with pytest.raises(OSError, match="The model could not be saved"):
            trainer.save_model()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert get_last_checkpoint(tmp_path / "run") is None
    assert not (tmp_path / "run/adapter_config.json").exists()


def test_a_folder_written_anew_has_no_key_file_until_all_others_are_there(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "config.json").write_text("old")
        (folder / "weights").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as folder:
        (folder / "weights").write_text("half")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in target.iterdir()} == {"config.json": "old", "weights": "old"}
    with atomic_folder(target) as folder:
        (folder / "weights").write_text("new")
        (folder / "config.json").write_text("new")
    assert {path.name: path.read_text() for path in target.iterdir()} == {"config.json": "new", "weights": "new"}


def test_a_run_without_checkpoints_has_no_last_one(tmp_path):
    assert get_last_checkpoint(tmp_path / "none") is None
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial/checkpoint-3").mkdir()
    assert get_last_checkpoint(tmp_path) is None


def test_weights_in_fewer_files_take_the_place_of_those_in_more(tmp_path):
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "model.safetensors").write_text("old")
        (folder / "config.json").write_text("old")
    (tmp_path / "model/checkpoint-1").mkdir()
    with atomic_folder(tmp_path / "model") as folder:
        for name in ("model-00001-of-00001.safetensors", "model.safetensors.index.json", "config.json"):
            (folder / name).write_text("new")
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {"model-00001-of-00001.safetensors", "model.safetensors.index.json", "config.json", "checkpoint-1"}


def test_the_best_checkpoint_is_found_again_at_the_end(tmp_path):
    rows = list(make_trainer(tmp_path, **SAVING).train_dataset)
    options = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(tmp_path, learning_rate=3.0, **{**SAVING, **options}, eval_rows=rows)
    trainer.train()
    best = min((entry["eval_loss"], entry["step"]) for entry in trainer.state.log_history if "eval_loss" in entry)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"run/checkpoint-{best[1]}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best[0], rel=1e-5)


class _Hub:
    """What would be uploaded, by the patterns of the hub's own filter."""

    def __init__(self):
        self.files: set[str] = set()

    def upload_folder(self, *, folder_path, ignore_patterns, **kwargs):
        files = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        self.files = set(filter_repo_objects(files, ignore_patterns=ignore_patterns))


def test_neither_checkpoints_nor_bases_are_uploaded(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, **SAVING)
    trainer.train()
    (tmp_path / "run/base").mkdir()
    (tmp_path / "run/base/model.safetensors").touch()
    hub = _Hub()
    monkeypatch.setattr(saving, "upload_folder", hub.upload_folder)
    trainer.hub_model_id = "someone/model"
    trainer.push_to_hub()
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "processor_config.json"} <= hub.files
    assert not any("/" in name or name.startswith(".") for name in hub.files)
