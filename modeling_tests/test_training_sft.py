# SPDX-License-Identifier: Apache-2.0
"""`launch/sft.py`: lock on the output folder, and end of a run."""

import pytest
from trl import ModelConfig

from llava_st_hf.launch import sft
from llava_st_hf.locking import locked_folder
from llava_st_hf.training import LlavaSTTrainingConfig


@pytest.fixture
def arguments(tmp_path):
    training_args = LlavaSTTrainingConfig(output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False)
    return sft.DataArguments(mixture="mixture.yaml"), training_args, ModelConfig(model_name_or_path="model")


def is_locked(folder: str) -> bool:
    try:
        with locked_folder(folder):
            return False
    except ValueError:
        return True


def test_main_locks_the_output_folder_until_all_processes_have_finished(arguments, monkeypatch):
    events = []
    folder = arguments[1].output_dir
    monkeypatch.setattr(sft, "train", lambda *args: events.append(("train", is_locked(folder))))
    monkeypatch.setattr(sft, "shut_down_processes", lambda: events.append(("shut down", is_locked(folder))))
    sft.main(*arguments)
    assert events == [("train", True), ("shut down", True)] and not is_locked(folder)


def test_main_after_an_error_releases_the_lock_without_waiting_for_other_processes(arguments, monkeypatch):
    def fail(*args):
        raise KeyError

    monkeypatch.setattr(sft, "train", fail)
    monkeypatch.setattr(sft, "shut_down_processes", lambda: pytest.fail("would wait for the other processes"))
    with pytest.raises(KeyError):
        sft.main(*arguments)
    assert not is_locked(arguments[1].output_dir)


def test_main_output_folder_in_use_raises(arguments, monkeypatch):
    monkeypatch.setattr(sft, "train", lambda *args: pytest.fail("must not start"))
    with locked_folder(arguments[1].output_dir), pytest.raises(ValueError, match=r"run is in use by process \d+ on host"):
        sft.main(*arguments)
