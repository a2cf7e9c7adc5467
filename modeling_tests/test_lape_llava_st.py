# SPDX-License-Identifier: Apache-2.0
"""Functions of the coordinate embeddings equal loops and values worked out by hand."""

import math

import pytest
import torch

from llava_st_hf.model.coordinates_llava_st import CoordinateVocabulary
from llava_st_hf.model.lape_llava_st import add_positions, interpolate_coordinates, propagate


# 3 temporal bins (ids 10 to 12), 2 of height (13, 14), 2 of width (15, 16); placeholders in the order of PLACEHOLDER_TOKENS.
VOCABULARY = CoordinateVocabulary(10, 3, 2, (1, 2, 3, 4, 5, 6))
ROWS = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [5.0, 50.0], [7.0, 70.0], [8.0, 80.0], [9.0, 90.0]])
NAN = math.nan


def test_propagate_keeps_values_and_halves_gradients_with_every_bin_of_the_axis():
    rows = ROWS.clone().requires_grad_()
    propagated = propagate(rows, VOCABULARY.sizes())
    torch.testing.assert_close(propagated, ROWS, rtol=0, atol=1e-6)
    propagated[0].sum().backward()
    # The embedding itself gets 1 + 2^0, its neighbours on the time axis 2^-1 and 2^-2, the other axes 0.
    assert rows.grad[:, 0].tolist() == [2.0, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]


def test_propagate_keeps_the_dtype_of_the_embeddings():
    assert propagate(ROWS.bfloat16(), VOCABULARY.sizes()).dtype == torch.bfloat16


def test_interpolate_coordinates_interpolates_given_values_and_keeps_text_embeddings():
    input_ids = torch.tensor([[9, 10, 11, 12, 13, 16, 17], [10, 1, 2, 4, 5, 14, 3]])
    values = torch.tensor([[NAN, NAN, NAN, NAN, NAN, NAN, NAN], [0.25, 0.75, 1.0, 0.25, 0.5, 0.5, NAN]])
    embeds = torch.full((2, 7, 2), -1.0)
    interpolated = interpolate_coordinates(input_ids, embeds, values, ROWS, VOCABULARY)
    assert interpolated[0, :, 0].tolist() == [-1.0, 1.0, 2.0, 4.0, 5.0, 9.0, -1.0]
    # Time 0.25 with three bins is the midpoint of the first two; the last token is a placeholder without a value.
    assert interpolated[1, :, 0].tolist() == [1.5, 3.0, 4.0, 5.5, 8.5, 6.0, -1.0]
    torch.testing.assert_close(interpolated[..., 1].where(interpolated[..., 1] > 0, -10), 10 * interpolated[..., 0])


def test_interpolate_coordinates_without_values_uses_the_embeddings_of_the_tokens():
    input_ids = torch.tensor([[9, 10, 16, 17, 1]])
    embeds = torch.full((1, 5, 2), -1.0)
    interpolated = interpolate_coordinates(input_ids, embeds, None, ROWS, VOCABULARY)
    assert interpolated[0, :, 0].tolist() == [-1.0, 1.0, 9.0, -1.0, -1.0]


def test_interpolate_coordinates_bfloat16_values_keep_the_dtype_of_the_embeddings():
    values = torch.tensor([[0.25]], dtype=torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float64):
        rows, embeds = ROWS.to(dtype), torch.zeros(1, 1, 2, dtype=dtype)
        interpolated = interpolate_coordinates(torch.tensor([[10]]), embeds, values, rows, VOCABULARY)
        assert interpolated.dtype == dtype and interpolated[0, 0].tolist() == [1.5, 15.0]


def test_add_positions_equal_lengths_adds_each_embedding_to_its_slice():
    features = torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    added = add_positions(features, ROWS, [3, 2, 2])
    for t in range(3):
        for h in range(2):
            for w in range(2):
                wanted = features[:, t, h, w] + ROWS[t] + ROWS[3 + h] + ROWS[5 + w]
                torch.testing.assert_close(added[:, t, h, w], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_add_positions_other_lengths_interpolates_between_segment_centres(dtype):
    added = add_positions(torch.zeros(1, 6, 4, 1, 2, dtype=dtype), ROWS.to(dtype), [3, 2, 2])
    assert added.dtype == dtype
    # Segment k of n covers [k/n, (k+1)/n]; its embedding is exact at the centre; positions outside the centres get the outermost one.
    temporal = torch.tensor([1.0, 1.25, 1.75, 2.5, 3.5, 4.0])
    height = torch.tensor([5.0, 5.5, 6.5, 7.0])
    wanted = temporal[:, None] + height + 8.5  # one column: the mean of the two width embeddings
    torch.testing.assert_close(added[0, :, :, 0, 0].float(), wanted, rtol=0.01 if dtype == torch.bfloat16 else 1e-6, atol=0)


def test_add_positions_single_frame_gets_the_first_temporal_embedding():
    added = add_positions(torch.zeros(2, 1, 2, 2, 2), ROWS, [3, 2, 2])
    assert added[:, 0, 0, 0].tolist() == [[1.0 + 5.0 + 8.0, 140.0]] * 2
    # One row or one column of features is at the centre of the image.
    assert add_positions(torch.zeros(1, 1, 1, 1, 2), ROWS, [3, 2, 2])[0, 0, 0, 0, 0].item() == 1.0 + 6.0 + 8.5


# Tensors on the meta device have no data, and operations that mix devices fail: this simulates a model spread over several GPUs.


def test_propagate_builds_its_matrix_on_the_device_of_the_embeddings():
    assert propagate(ROWS.to("meta"), VOCABULARY.sizes()).device.type == "meta"


@pytest.mark.parametrize("lengths", [(3, 2, 2), (6, 4, 5)])
def test_add_positions_moves_embeddings_to_the_device_of_the_features(lengths):
    assert add_positions(torch.zeros(1, *lengths, 2, device="meta"), ROWS, [3, 2, 2]).device.type == "meta"
