# SPDX-License-Identifier: Apache-2.0
"""Grounding metrics equal a per-sample implementation of their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_st_hf.evaluation import metrics
from llava_st_hf.evaluation.metrics import (
    Tubelets,
    bootstrap_interval,
    box_iou,
    mean_iou,
    recall_at,
    spatial_iou,
    temporal_iou,
    tubelet_iou,
)


# Few integers, so that boxes overlap, touch and coincide; and any float.
coordinates = st.integers(0, 6).map(float) | st.floats(0, 6) | st.just(math.nan)
boxes = st.tuples(*[coordinates] * 4)
spans = st.tuples(*[coordinates] * 2)
wild = st.tuples(*[st.floats()] * 4)
tubelets = st.none() | st.dictionaries(st.integers(0, 8) | st.integers(0, 2**40), boxes, max_size=6)


def literal_extent(low: float, high: float) -> float:
    return high - low if high > low else 0.0  # False for NaN


def literal_iou(pred, truth) -> float:
    """IoU of two boxes (4 numbers) or two spans (2 numbers)."""
    half = len(pred) // 2
    overlap = area = true_area = 1.0
    for axis in range(half):
        ends = pred[axis], pred[axis + half], truth[axis], truth[axis + half]
        if any(math.isnan(end) for end in ends):
            overlap = 0.0
        else:
            overlap *= literal_extent(max(ends[0], ends[2]), min(ends[1], ends[3]))
        area *= literal_extent(ends[0], ends[1])
        true_area *= literal_extent(ends[2], ends[3])
    union = area + true_area - overlap
    return overlap / union if union > 0 else 0.0


def literal_tubelet_ious(pred, truth) -> tuple[float, float]:
    """`(sIoU, vIoU)`."""
    pred, truth = pred or {}, truth or {}
    shared = set(pred) & set(truth)
    total = sum(literal_iou(pred[frame], truth[frame]) for frame in shared)
    return total / max(len(shared), 1), total / max(len(set(pred) | set(truth)), 1)


@given(st.lists(st.tuples(boxes, boxes), max_size=8))
def test_box_iou_equals_definition(pairs):
    found = box_iou(np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs]))
    assert found.shape == (len(pairs),)
    assert found == pytest.approx([literal_iou(*pair) for pair in pairs], abs=1e-12)


@given(st.lists(st.tuples(spans, spans), max_size=8))
def test_temporal_iou_equals_definition(pairs):
    found = temporal_iou(np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs]))
    assert found == pytest.approx([literal_iou(*pair) for pair in pairs], abs=1e-12)


@given(st.lists(st.tuples(tubelets, tubelets), max_size=8))
def test_spatial_iou_and_tubelet_iou_equal_definition(pairs):
    pred, truth = (Tubelets(pair[side] for pair in pairs) for side in (0, 1))
    expected = [literal_tubelet_ious(*pair) for pair in pairs]
    assert spatial_iou(pred, truth) == pytest.approx([siou for siou, _ in expected], abs=1e-12)
    assert tubelet_iou(pred, truth) == pytest.approx([viou for _, viou in expected], abs=1e-12)


@given(wild, wild)
def test_iou_any_floats_is_a_fraction_and_symmetric(pred, truth):
    found = box_iou([pred], [truth])
    assert 0 <= found[0] <= 1
    assert found == box_iou([truth], [pred])
    assert 0 <= temporal_iou([pred[:2]], [truth[:2]])[0] <= 1


@given(st.tuples(*[st.integers(0, 50)] * 4))
def test_box_iou_same_box_is_1_unless_empty(box):
    x1, y1, x2, y2 = box
    assert box_iou([box], [box])[0] == (1.0 if x2 > x1 and y2 > y1 else 0.0)


def test_spatial_iou_single_correct_box_is_1_and_viou_small():
    truth = dict.fromkeys(range(4), (0, 0, 10, 10))
    pred, truth = Tubelets([{2: (0, 0, 10, 10)}]), Tubelets([truth])
    assert spatial_iou(pred, truth)[0] == 1.0
    assert tubelet_iou(pred, truth)[0] == 0.25


def test_tubelet_iou_does_not_compare_different_samples():
    pred = Tubelets([{0: (0, 0, 1, 1)}, None, {0: (0, 0, 1, 1)}])
    truth = Tubelets([{1: (0, 0, 1, 1)}, {0: (0, 0, 1, 1)}, {0: (0, 0, 1, 1)}])
    assert tubelet_iou(pred, truth).tolist() == [0.0, 0.0, 1.0]


def test_tubelet_iou_different_numbers_of_samples_raises():
    with pytest.raises(ValueError, match="got 2 and 1"):
        tubelet_iou(Tubelets([None, None]), Tubelets([None]))


def test_tubelets_box_without_four_numbers_raises():
    with pytest.raises(ValueError, match="x1, y1, x2, y2"):
        Tubelets([{0: (1, 2, 3)}])


@given(st.lists(st.floats(0, 1), max_size=20), st.floats(0, 1))
def test_recall_at_is_the_share_at_or_above_the_threshold(ious, threshold):
    share = sum(iou >= threshold for iou in ious) / max(len(ious), 1)
    assert recall_at(np.array(ious), threshold) == pytest.approx(100 * share)
    assert mean_iou(np.array(ious)) == pytest.approx(sum(ious) / max(len(ious), 1))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 5))
def test_bootstrap_interval_is_within_the_values_and_repeatable(values, seed):
    low, high = bootstrap_interval(np.array(values), resamples=50, seed=seed)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert (low, high) == bootstrap_interval(np.array(values), resamples=50, seed=seed)


def test_bootstrap_interval_of_many_samples_equals_the_normal_approximation():
    values = np.random.default_rng(0).normal(3, 2, 4000)
    low, high = bootstrap_interval(values)
    error = values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    narrow = bootstrap_interval(values, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_interval_columns_share_the_same_resamples():
    values = np.random.default_rng(0).random((50, 3))
    lows, highs = bootstrap_interval(values)
    for column in range(3):
        assert bootstrap_interval(values[:, column]) == pytest.approx((lows[column], highs[column]))


def test_bootstrap_interval_without_samples_is_0():
    low, high = bootstrap_interval(np.zeros((0, 2)))
    assert low.tolist() == high.tolist() == [0.0, 0.0]
    assert recall_at(np.zeros(0), 0.5) == 0.0


@pytest.mark.parametrize("arguments", [{"confidence": 1.0}, {"confidence": 0.0}, {"resamples": 0}])
def test_bootstrap_interval_invalid_arguments_raise(arguments):
    with pytest.raises(ValueError, match="confidence must be between 0 and 1 and resamples at least 1"):
        bootstrap_interval(np.ones(3), **arguments)


def test_iou_of_unsigned_integers_does_not_wrap_around():
    apart = np.array([[0, 0, 10, 10]], np.uint8), np.array([[20, 20, 30, 30]], np.uint8)
    assert box_iou(*apart).tolist() == [0.0] and box_iou(apart[1], apart[1]).tolist() == [1.0]
    assert temporal_iou(apart[0][:, [0, 2]], apart[1][:, [0, 2]]).tolist() == [0.0]


def test_iou_of_infinite_huge_and_tiny_numbers_raises_no_floating_point_error():
    infinite, huge, tiny = [0.0, np.inf], [-1e308, 1e308], [0.0, 5e-324]
    with np.errstate(all="raise"):
        spans = np.array([infinite, [np.inf, np.inf], huge, tiny])
        assert temporal_iou(spans, np.array([infinite, [np.inf, np.inf], huge, [0.0, 1e300]])).tolist() == [0.0, 0.0, 0.0, 0.0]
        boxes = spans[:, [0, 0, 1, 1]]
        assert box_iou(boxes, boxes).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_mean_iou_is_computed_in_double_precision():
    assert mean_iou(np.array([1, 0, 0], np.float16)) == pytest.approx(1 / 3, abs=1e-12)


def test_bootstrap_interval_bounds_cut_off_equal_shares():
    # The mean of two draws from 0 and 1 is 0, 0.5 and 1 with probability 1/4, 1/2 and 1/4.
    values = np.array([0.0, 1.0])
    assert [float(bound) for bound in bootstrap_interval(values, confidence=0.4)] == [0.5, 0.5]
    assert [float(bound) for bound in bootstrap_interval(values, confidence=0.6)] == [0.0, 1.0]


def test_bootstrap_interval_one_resample_has_equal_bounds():
    low, high = bootstrap_interval(np.array([0.1, 0.2, 0.7]), resamples=1)
    assert low == high


def test_bootstrap_interval_defaults_are_95_per_cent_of_1000_resamples_with_seed_0():
    values = np.random.default_rng(1).random(20)
    assert bootstrap_interval(values) == bootstrap_interval(values, confidence=0.95, resamples=1000, seed=0)


@pytest.mark.parametrize("drawn_at_once", [1, 7 * 20])
def test_bootstrap_interval_does_not_depend_on_how_many_are_drawn_at_once(monkeypatch, drawn_at_once):
    values = np.random.default_rng(1).random((20, 2))
    wanted = bootstrap_interval(values, resamples=30)
    monkeypatch.setattr(metrics, "_DRAWN_AT_ONCE", drawn_at_once)
    np.testing.assert_allclose(bootstrap_interval(values, resamples=30), wanted, rtol=1e-12)
