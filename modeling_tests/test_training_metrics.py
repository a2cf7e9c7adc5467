# SPDX-License-Identifier: Apache-2.0
"""Training metrics: throughput without paused time."""

from types import SimpleNamespace

import pytest
import torch

from llava_st_hf.training import metrics
from llava_st_hf.training.metrics import TrainingMetrics


def test_training_metrics_speed_excludes_the_time_in_which_the_clock_is_paused(monkeypatch):
    now = 0.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    sums = TrainingMetrics(None)
    inputs = {"labels": torch.tensor([[-100, 5, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    outputs = SimpleNamespace(token_losses=torch.tensor([1.0, 3.0]), bin_errors=None)
    for _ in range(2):  # each pause is excluded from both reports
        now += 2.0
        with pytest.raises(KeyError), sums.paused():
            now += 100.0
            raise KeyError
        now += 1.0
        sums.add(inputs, outputs, ["tvg"], torch.tensor([False]))
        report = sums.report()
        assert report["tokens_per_second"] == pytest.approx(3 / 3.0) and report["samples_per_second"] == pytest.approx(1 / 3.0)
        assert report["loss"] == report["loss_tvg"] == 2.0
