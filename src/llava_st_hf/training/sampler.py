# SPDX-License-Identifier: Apache-2.0
"""Samplers whose order depends on seed and epoch only, so that a resumed run continues with the same data order."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


# Number of batches within which samples are sorted by length: enough for similar lengths in a batch, few enough to stay random.
_BATCHES_PER_BUCKET = 64


class EpochSampler(Sampler[int]):
    """
    Random order of all samples, another one in each epoch.

    Args:
        num_samples: number of samples.
        seed: random seed; the epoch is added to it.
    """

    def __init__(self, num_samples: int, seed: int):
        self.num_samples, self.seed, self.epoch = num_samples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + self.epoch)

    def order(self) -> torch.Tensor:
        """Returns (num_samples,) indices of this epoch."""
        return torch.randperm(self.num_samples, generator=self._generator())

    def __iter__(self) -> Iterator[int]:
        for chunk in self.order().split(2**16):  # a list of millions of Python integers would need more memory than the data
            yield from chunk.tolist()


class BucketSampler(EpochSampler):
    """
    Order in which each batch has samples of one modality and of similar length, and batches are shuffled. Batches need little padding,
    and all processes have the same amount of work at the same time.

    Args:
        kinds: (num_samples,) modality of each sample, as an integer.
        lengths: (num_samples,) length of each sample's text, in tokens or a proportional unit.
        batch_size: of all processes together.
        seed: random seed; the epoch is added to it.
    """

    def __init__(self, kinds: torch.Tensor, lengths: torch.Tensor, batch_size: int, seed: int):
        super().__init__(len(lengths), seed)
        self.kinds, self.lengths, self.batch_size = kinds, lengths, batch_size

    def order(self) -> torch.Tensor:
        generator = self._generator()
        shuffled = torch.randperm(self.num_samples, generator=generator)
        batches, rest = [], []
        for kind in self.kinds.unique():
            of_kind = shuffled[self.kinds[shuffled] == kind]
            for bucket in of_kind.split(self.batch_size * _BATCHES_PER_BUCKET):
                bucket = bucket[self.lengths[bucket].argsort(stable=True)]
                whole = len(bucket) - len(bucket) % self.batch_size
                batches.append(bucket[:whole].view(-1, self.batch_size))  # (batches, batch_size)
                rest.append(bucket[whole:])  # fewer than a batch: at the end, mixed
        batches = torch.cat(batches)
        batches = batches[torch.randperm(len(batches), generator=generator)]
        return torch.cat((batches.flatten(), *rest))
