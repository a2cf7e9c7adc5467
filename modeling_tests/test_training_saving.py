# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and models are there whole or not at all."""

import errno
import os
import resource
import signal

import pytest
import torch

from llava_st_hf.training import last_checkpoint
from llava_st_hf.training.saving import whole_folder
from modeling_tests.one_training import make_trainer


SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "count": 3}


def test_checkpoints_appear_whole_and_nothing_is_left_beside_them(tmp_path):
    trainer = make_trainer(tmp_path, save_total_limit=1, **SAVING)
    trainer.train()
    assert sorted(os.listdir(tmp_path / "run")) == ["README.md", "checkpoint-4"]
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run/checkpoint-4")
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
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run/checkpoint-2")
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
    assert last_checkpoint(tmp_path / "run") is None
    assert not (tmp_path / "run/adapter_config.json").exists()


def test_a_folder_written_anew_has_no_key_file_until_all_others_are_there(tmp_path):
    target = tmp_path / "model"
    with whole_folder(target) as folder:
        (folder / "config.json").write_text("old")
        (folder / "weights").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_folder(target) as folder:
        (folder / "weights").write_text("half")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in target.iterdir()} == {"config.json": "old", "weights": "old"}
    with whole_folder(target) as folder:
        (folder / "weights").write_text("new")
        (folder / "config.json").write_text("new")
    assert {path.name: path.read_text() for path in target.iterdir()} == {"config.json": "new", "weights": "new"}


def test_a_run_without_checkpoints_has_no_last_one(tmp_path):
    assert last_checkpoint(tmp_path / "none") is None
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial/checkpoint-3").mkdir()
    assert last_checkpoint(tmp_path) is None
