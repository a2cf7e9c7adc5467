# SPDX-License-Identifier: Apache-2.0
"""The order of samples: all of them once, another in each epoch, the same for the same seed; buckets of one kind and like length."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_st_hf.training.sampler import BucketSampler, EpochSampler


@given(st.integers(0, 300), st.integers(0, 10), st.integers(0, 5))
def test_every_sample_is_seen_once_in_an_order_of_seed_and_epoch_alone(count, seed, epoch):
    sampler = EpochSampler(count, seed)
    sampler.set_epoch(epoch)
    again = EpochSampler(count, seed)
    again.set_epoch(epoch)
    torch.rand(3)  # what else draws random numbers does not matter
    assert list(sampler) == list(again) and sorted(sampler) == list(range(count))
    assert len(sampler) == count


def test_each_epoch_has_an_order_of_its_own():
    sampler = EpochSampler(100, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1000)), min_size=1, max_size=400), st.integers(1, 8))
def test_batches_have_one_kind_but_for_the_last_few(samples, batch_size):
    kinds, lengths = (torch.tensor(values) for values in zip(*samples, strict=True))
    sampler = BucketSampler(kinds, lengths, batch_size, seed=1)
    order = torch.tensor(list(sampler))
    assert sorted(order.tolist()) == list(range(len(samples)))
    whole = sum(int((kinds == kind).sum()) // batch_size for kind in range(3))
    for batch in order[: whole * batch_size].view(-1, batch_size):
        assert len(kinds[batch].unique()) == 1


def test_samples_of_a_batch_are_of_like_length_and_batches_come_in_no_order_of_length():
    lengths = torch.randint(0, 10_000, (6400,), generator=torch.Generator().manual_seed(0))
    sampler = BucketSampler(torch.zeros(6400), lengths, 16, seed=0)
    batches = lengths[sampler.order()].view(-1, 16).float()
    spread = (batches.amax(1) - batches.amin(1)).mean()
    assert spread < 10_000 / 16  # at random it would be near 10,000
    longest = batches.amax(1)
    assert float(torch.corrcoef(torch.stack((longest, torch.arange(400.0))))[0, 1].abs()) < 0.2
