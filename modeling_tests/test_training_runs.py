# SPDX-License-Identifier: Apache-2.0
"""Training runs in separate processes: several processes equal one, and a run that is killed resumes with equal results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_tests.child_processes import call_in_child
from modeling_tests.one_training import main as run_here


REPOSITORY = Path(__file__).resolve().parents[1]
# Log entries that differ between runs: times, and sums since the start of the current process.
CLOCKS = ("_per_second", "_runtime")
OF_THE_PART = ("train_loss", "total_flos")


def run_in_two(folder: Path, timeout: float | None = None, **options) -> subprocess.CompletedProcess:
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m"]
    command = [sys.executable, "-W", "ignore", "-m", *launcher, "modeling_tests.one_training", str(folder), json.dumps(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment, timeout=timeout)


def log_of(folder: Path) -> list[dict]:
    """Entries of the log without those that differ between runs."""
    return [
        {name: value for name, value in entry.items() if not name.endswith(CLOCKS) and name not in OF_THE_PART}
        for entry in json.loads((folder / "log.json").read_text())
    ]


def assert_same_run(folder: Path, other: Path) -> None:
    changes, others = (torch.load(path / "changes.pt", weights_only=True) for path in (folder, other))
    assert changes.keys() == others.keys() and len(changes) > 50
    for name, change in changes.items():
        scale = max(float(change.abs().max()), 1e-3)  # size of a step; much smaller changes are rounding errors
        torch.testing.assert_close(others[name] / scale, change / scale, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert any(float(change.abs().max()) > 1e-2 for change in changes.values())
    for entry, same in zip(log_of(folder), log_of(other), strict=True):
        assert entry == pytest.approx(same, rel=1e-4)


def test_run_with_gradient_accumulation_or_two_processes_equals_one_large_batch(tmp_path):
    """Processes have different media: in some steps one has a video and the other only text."""
    run_here(tmp_path / "one", {"max_steps": 2, "per_device_train_batch_size": 4})
    run_here(tmp_path / "accumulated", {"max_steps": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4})
    assert_same_run(tmp_path / "one", tmp_path / "accumulated")
    finished = run_in_two(tmp_path / "two", max_steps=2, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_run_of_two_processes_ends_when_one_of_them_fails(tmp_path):
    """The other process waits in a collective operation until the launcher ends it."""
    finished = run_in_two(tmp_path, max_steps=4, fail_at=1, timeout=120)
    assert finished.returncode not in (0, None) and "RuntimeError: the last process fails" in finished.stderr


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_resumed_run_after_a_kill_equals_an_uninterrupted_run(tmp_path, strategy):
    """Killed in the second epoch, three steps after a checkpoint, with dropout on and a worker that loads ahead."""
    options = {
        "max_steps": 12, "save_strategy": "steps", "save_steps": 5, "logging_steps": 3, "lora_dropout": 0.3, "optim": "adamw_torch",
        "learning_rate": 1e-3, "train_sampling_strategy": strategy, "dataloader_num_workers": 1,
    }  # fmt: skip
    errors = tmp_path / "errors"
    assert call_in_child(run_here, tmp_path / "killed", {"kill_at": 8, **options}, errors=errors) == -9
    assert not (tmp_path / "killed/log.json").exists()
    for name in ("killed", "undisturbed"):
        assert call_in_child(run_here, tmp_path / name, dict(options), errors=errors) == 0, errors.read_text()[-3000:]
    log = log_of(tmp_path / "killed")
    assert log == log_of(tmp_path / "undisturbed")  # bitwise
    assert [entry["step"] for entry in log] == [3, 5, 6, 9, 10, 12, 12]
    weights = [(tmp_path / name / "run/checkpoint-12/adapter_model.safetensors").read_bytes() for name in ("killed", "undisturbed")]
    assert weights[0] == weights[1]
