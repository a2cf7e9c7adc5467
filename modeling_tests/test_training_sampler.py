# SPDX-License-Identifier: Apache-2.0
"""Samplers: each sample once per epoch, reproducible order per seed and epoch, batches of one modality and similar length."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_st_hf.training.sampler import BucketSampler, EpochSampler


@given(st.integers(0, 300), st.integers(0, 10), st.integers(0, 5))
def test_epoch_sampler_order_depends_on_seed_and_epoch_only(count, seed, epoch):
    sampler = EpochSampler(count, seed)
    sampler.set_epoch(epoch)
    again = EpochSampler(count, seed)
    again.set_epoch(epoch)
    torch.rand(3)  # other random numbers have no effect
    assert list(sampler) == list(again) and sorted(sampler) == list(range(count))
    assert len(sampler) == count


def test_epoch_sampler_order_differs_between_epochs():
    sampler = EpochSampler(100, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1000)), min_size=1, max_size=400), st.integers(1, 8))
def test_bucket_sampler_batches_have_one_modality_except_the_last_ones(samples, batch_size):
    kinds, lengths = (torch.tensor(values) for values in zip(*samples, strict=True))
    sampler = BucketSampler(kinds, lengths, batch_size, seed=1)
    order = torch.tensor(list(sampler))
    assert sorted(order.tolist()) == list(range(len(samples)))
    whole = sum(int((kinds == kind).sum()) // batch_size for kind in range(3))
    for batch in order[: whole * batch_size].view(-1, batch_size):
        assert len(kinds[batch].unique()) == 1


def test_bucket_sampler_batches_have_similar_lengths_and_random_order():
    lengths = torch.randint(0, 10_000, (6400,), generator=torch.Generator().manual_seed(0))
    sampler = BucketSampler(torch.zeros(6400), lengths, 16, seed=0)
    batches = lengths[sampler.order()].view(-1, 16).float()
    spread = (batches.amax(1) - batches.amin(1)).mean()
    assert spread < 10_000 / 16  # in random batches it would be near 10,000
    longest = batches.amax(1)
    # Also within each section of one bucket, whose batches were sorted by length.
    for stretch in (*longest.split(64), longest):
        assert float(torch.corrcoef(torch.stack((stretch, torch.arange(float(len(stretch))))))[0, 1].abs()) < 0.5
