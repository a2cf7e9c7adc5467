# SPDX-License-Identifier: Apache-2.0
"""Conversion between positions, bins and coordinate tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_st_hf.model.coordinates_llava_st import (
    AXES,
    COORDINATE_TOKEN,
    CoordinateVocabulary,
    bin_to_position,
    check_position,
    coordinate_token,
    coordinate_tokens,
    position_to_bin,
    propagation_matrix,
)


positions = st.floats(0, 1)
bins = st.integers(2, 1000)
vocabularies = st.builds(
    lambda start, temporal, spatial: CoordinateVocabulary(start, temporal, spatial, tuple(range(start - 6, start))),
    st.integers(6, 500),
    st.integers(2, 120),
    st.integers(2, 120),
)


def test_position_to_bin_half_way_between_bins_gives_the_even_bin():
    """Rounds as Python's `round`, which the original code uses."""
    assert [position_to_bin((index + 0.5) / 4, 5) for index in range(4)] == [0, 2, 2, 4]  # 0.5, 1.5, 2.5 and 3.5 without rounding error


@given(positions, bins)
def test_position_to_bin_error_is_at_most_half_a_bin(position, num_bins):
    index = position_to_bin(position, num_bins)
    assert 0 <= index < num_bins
    assert abs(bin_to_position(index, num_bins) - position) <= 0.5 / (num_bins - 1) + 1e-12


@pytest.mark.parametrize("half_way, index", [(0.5, 0), (1.5, 2), (2.5, 2), (3.5, 4), (97.5, 98), (98.5, 98)])
def test_position_to_bin_half_way_of_100_bins_rounds_to_even_as_the_original_code(half_way, index):
    assert position_to_bin(half_way / 99, 100) == index


@given(bins, st.data())
def test_position_to_bin_inverts_bin_to_position(num_bins, data):
    index = data.draw(st.integers(0, num_bins - 1))
    assert position_to_bin(bin_to_position(index, num_bins), num_bins) == index


@settings(deadline=None)
@given(vocabularies, st.data())
def test_between_tokens_weighted_mean_of_bins_equals_the_position(vocabulary, data):
    axis = data.draw(st.sampled_from(AXES))
    position = data.draw(st.floats(0, 1, width=32))
    ids = vocabulary.token_ids(axis)
    token = data.draw(st.sampled_from([ids[0], ids[-1], *vocabulary.placeholder_token_ids[2 * AXES.index(axis) :][:2]]))
    lower, upper, weight = vocabulary.between_tokens(torch.tensor([token]), torch.tensor([position]))
    assert lower.item() in ids and upper.item() in ids and 0 <= upper - lower <= 1 and 0 <= weight < 1
    mean = (1 - weight) * (lower - ids.start) + weight * (upper - ids.start)
    assert mean.item() == pytest.approx(position * (len(ids) - 1), abs=1e-4)


@settings(deadline=None)
@given(vocabularies, st.floats(0, 1, width=32))
def test_between_tokens_other_token_or_nan_position_gives_the_token_itself(vocabulary, position):
    first, end = vocabulary.start_token_id, vocabulary.end_token_id
    ids = torch.tensor([0, end, first, first - 1])
    given_positions = torch.tensor([position if 0 not in vocabulary.placeholder_token_ids else math.nan, position, math.nan, math.nan])
    lower, upper, weight = vocabulary.between_tokens(ids, given_positions)
    assert torch.equal(lower, ids) and torch.equal(upper, ids) and not weight.any()


@given(vocabularies)
def test_token_ids_of_all_axes_cover_the_vocabulary_in_order(vocabulary):
    ids = [token for axis in AXES for token in vocabulary.token_ids(axis)]
    assert ids == list(range(vocabulary.start_token_id, vocabulary.end_token_id)) and len(ids) == len(vocabulary)


def test_coordinate_tokens_are_in_vocabulary_order():
    names = coordinate_tokens(3, 2)
    assert names == ["<TEMP-000>", "<TEMP-001>", "<TEMP-002>", "<HEIGHT-000>", "<HEIGHT-001>", "<WIDTH-000>", "<WIDTH-001>"]
    assert all(COORDINATE_TOKEN.fullmatch(name) for name in names)
    assert coordinate_token("width", 7) == "<WIDTH-007>"


@given(st.floats(0, 1e-3))
def test_check_position_excess_below_0_001_is_clipped(excess):
    assert check_position(1 + excess, "x") == 1 and check_position(-excess, "x") == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1])
def test_check_position_outside_0_to_1_raises_with_its_name(value):
    with pytest.raises(ValueError, match="The left edge is"):
        check_position(value, "The left edge")


@given(st.lists(st.integers(2, 12), min_size=1, max_size=3))
def test_propagation_matrix_halves_per_bin_and_is_zero_between_axes(sizes):
    matrix, starts = propagation_matrix(sizes), [sum(sizes[:n]) for n in range(len(sizes))]
    axis_of = [axis for axis, size in enumerate(sizes) for _ in range(size)]
    for i in range(sum(sizes)):
        for j in range(sum(sizes)):
            same = axis_of[i] == axis_of[j]
            distance = abs((i - starts[axis_of[i]]) - (j - starts[axis_of[j]]))
            assert matrix[i, j].item() == (2.0**-distance if same else 0.0)


@pytest.mark.parametrize(("position", "bin_index"), [(-0.5, 0), (1.2, 3), (2.5, 3), (math.inf, 3), (-math.inf, 0)])
def test_between_tokens_position_outside_0_to_1_gives_the_first_or_last_bin(position, bin_index):
    vocabulary = CoordinateVocabulary(10, 4, 4, (1, 2, 3, 4, 5, 6))
    for axis, token in (("temporal", 10), ("height", 3), ("width", 6)):
        lower, upper, weight = vocabulary.between_tokens(torch.tensor([token]), torch.tensor([position]))
        assert lower.item() == upper.item() == vocabulary.token_ids(axis)[bin_index] and weight.item() == 0
