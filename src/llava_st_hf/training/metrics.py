# SPDX-License-Identifier: Apache-2.0
"""Training metrics in addition to the loss: loss per task, bin errors of coordinates, and speed."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object

from ..model.batch_feature_llava_st import PADDING
from ..model.coordinates_llava_st import CoordinateVocabulary


class TrainingMetrics:
    """
    Sums over the batches since the last report. They stay on the device until then, so that a step does not wait for the device.

    Args:
        vocabulary: coordinate tokens of the model; None in a model without.
    """

    def __init__(self, vocabulary: CoordinateVocabulary | None):
        self.vocabulary = vocabulary
        self.reset()

    def reset(self) -> None:
        self._task_losses: list[tuple[list[str], torch.Tensor]] = []
        self._bin_errors: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._tokens: list[torch.Tensor] = []
        self._samples = 0
        self._start = time.monotonic()

    def add(self, inputs: dict, outputs, tasks: list[str], bins: torch.Tensor) -> None:
        """
        Args:
            inputs: a batch, with `labels` and `attention_mask`, or `segment_ids` in its place where rows have several conversations.
            outputs: of the model, with `token_losses` and `bin_errors`.
            tasks: one name per conversation of the batch.
            bins: (num_conversations,) booleans: whether the inputs of a conversation's answer coordinates were bins.
        """
        targets = inputs["labels"][:, 1:]
        losses = outputs.token_losses.float()
        # Positions of the supervised tokens, batch-major as token_losses. Indexing by the mask would wait for the device to count them.
        places = (targets == -100).flatten().byte().argsort(stable=True)[: len(losses)]
        ids, segment_ids = targets.flatten()[places], inputs.get("segment_ids")
        owners = places // targets.shape[1] if segment_ids is None else segment_ids[:, 1:].flatten()[places]  # place in `tasks`
        sums = torch.zeros(len(tasks), 2, device=ids.device)
        sums.index_add_(0, owners, torch.stack((losses, torch.ones_like(losses)), dim=-1))  # (tasks, 2): loss and tokens
        self._task_losses.append((tasks, sums))
        if outputs.bin_errors is not None:
            errors = outputs.bin_errors
            known, is_time = ~errors.isnan(), self._is_time(ids)
            from_bins = bins.to(ids.device, non_blocking=True)[owners]
            for name, mask in (("time_bin_error", known & is_time), ("box_bin_error", known & ~is_time)):
                for kind, of_kind in (("", mask), ("_from_bins", mask & from_bins)):
                    self._bin_errors[name + kind].append(torch.stack((errors.nan_to_num().mul(of_kind).sum(), of_kind.sum())))
        self._tokens.append(inputs["attention_mask"].sum() if segment_ids is None else (segment_ids != PADDING).sum())
        self._samples += len(tasks)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock during the block, which is not training."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._start += time.monotonic() - start

    def _is_time(self, ids: torch.Tensor) -> torch.Tensor:
        times = self.vocabulary.token_ids("temporal")
        is_time = (ids >= times.start) & (ids < times.stop)
        for placeholder in self.vocabulary.placeholder_token_ids[:2]:
            is_time |= ids == placeholder
        return is_time

    def report(self) -> dict[str, float]:
        """
        Computes the metrics of the batches since the last report, over all processes; all of them must call it.

        Returns:
            `loss`, `loss_<task>`: mean over all supervised tokens and over those of the task; `time_bin_error`, `box_bin_error`: mean
            distance between the most likely bin and the target, in bins; the same with `_from_bins`: of the answers whose coordinate inputs
            were bins, as in generation, where there are such; `tokens_per_second`, `samples_per_second` of all processes
            together; `num_tokens`, without padding.
        """
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for tasks, batch in self._task_losses:
            for task, (loss, count) in zip(tasks, batch.tolist(), strict=True):
                _add(sums, "loss", loss, count)
                _add(sums, f"loss_{task}", loss, count)
        for name, errors in self._bin_errors.items():
            for error, count in torch.stack(errors).tolist():
                _add(sums, name, error, count)
        tokens = sum(torch.stack(self._tokens).tolist()) if self._tokens else 0
        mine = (dict(sums), tokens, self._samples)
        seconds = time.monotonic() - self._start
        self.reset()
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        tokens = samples = 0
        for their_sums, their_tokens, their_samples in gather_object([mine]):
            tokens, samples = tokens + their_tokens, samples + their_samples
            for name, (total, count) in their_sums.items():
                _add(totals, name, total, count)
        report = {name: total / count for name, (total, count) in sorted(totals.items()) if count}
        if tokens:
            report |= {"tokens_per_second": tokens / seconds, "samples_per_second": samples / seconds, "num_tokens": tokens}
        return report


def _add(sums: dict[str, list[float]], name: str, total: float, count: float) -> None:
    entry = sums[name]
    entry[0] += total
    entry[1] += count
