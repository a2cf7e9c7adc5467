# SPDX-License-Identifier: Apache-2.0
"""Merging of events of several windows."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_st_hf.model.windows_llava_st import WindowEvent, merge_events, temporal_iou


CLIP = (0.0, 30.0)
WINDOWS = [(5.0 * number, 5.0 * number + 10.0) for number in range(5)]  # seconds; neighbours overlap by half


def event(start, end, window, presence=0.9, span_score=0.8, x=None, every=1.0, **values):
    """An event, with boxes of 20×20 pixels at `x` at the times of `every` second if `x` is given."""
    boxes = []
    if x is not None:
        count = int((end - start) / every + 1e-6) + 1
        times = [start + number * every for number in range(count)]
        boxes = [(time, {"time": time, "frame": round(time * 10), "box": box(x)}) for time in times]
    return WindowEvent(start, end, (WINDOWS[window],), presence, span_score=span_score, boxes=tuple(boxes), **values)


def box(x):
    return {"xmin": x, "ymin": 0.0, "xmax": x + 20.0, "ymax": 20.0}


def spans(events):
    return [(found.start, found.end) for found in events]


@st.composite
def window_events(draw):
    """Events at multiples of half a second, some with boxes, up to nine of them."""
    found = []
    for number in range(draw(st.integers(0, 9))):
        window = draw(st.integers(0, len(WINDOWS) - 1))
        start, end = sorted(draw(st.tuples(st.integers(0, 20), st.integers(0, 20))))
        x = draw(st.sampled_from([None, 0.0, 5.0, 50.0]))
        begin = WINDOWS[window][0]
        presence = draw(st.sampled_from([0.5, 0.75, 1.0]))
        found.append(event(begin + start / 2, begin + end / 2, window, presence, x=x, caption=str(number)))
    return found


@settings(max_examples=100)
@given(window_events(), st.randoms(use_true_random=False))
def test_merge_events_in_another_order_gives_the_same_events(events, random):
    shuffled = random.sample(events, len(events))
    assert merge_events(shuffled, CLIP) == merge_events(events, CLIP)


@settings(max_examples=100)
@given(window_events())
def test_merge_events_of_merged_events_changes_nothing(events):
    merged = merge_events(events, CLIP)
    assert merge_events(merged, CLIP) == merged


@settings(max_examples=100)
@given(window_events())
def test_merge_events_keeps_every_window_and_the_highest_presence(events):
    merged = merge_events(events, CLIP)
    assert {window for found in merged for window in found.windows} == {window for found in events for window in found.windows}
    assert max((found.presence for found in merged), default=0) == max((found.presence for found in events), default=0)
    assert len(merged) <= len(events)
    assert spans(merged) == sorted(spans(merged))
    known = {(time, entry["box"]["xmin"]) for found in events for time, entry in found.boxes}
    assert all(
        (time, entry["box"]["xmin"]) in known and found.start <= time <= found.end for found in merged for time, entry in found.boxes
    )


@settings(max_examples=100)
@given(window_events())
def test_merge_events_of_events_far_apart_merges_none(events):
    apart = [replace(found, start=first + 4.0, end=first + 6.0, boxes=()) for found in events if (first := found.windows[0][0]) % 10 == 0]
    distinct = {found.windows: found for found in apart}
    assert len(merge_events(distinct.values(), CLIP)) == len(distinct)


def test_merge_events_seen_in_two_windows_is_the_one_with_the_higher_score():
    merged = merge_events([event(6.0, 8.0, 0, span_score=0.6), event(6.2, 8.4, 1, span_score=0.9)], CLIP)
    assert spans(merged) == [(6.2, 8.4)] and merged[0].windows == ((0.0, 10.0), (5.0, 15.0))


def test_merge_events_cut_by_windows_have_the_ends_that_are_within_a_window():
    parts = [event(4.0, 10.0, 0), event(5.0, 15.0, 1, span_score=0.99), event(10.0, 17.0, 2)]
    assert spans(merge_events(parts, CLIP)) == [(4.0, 17.0)]


def test_merge_events_cut_by_windows_without_overlap_are_one():
    parts = [event(8.0, 10.0, 0, x=3.0), event(10.1, 12.0, 2, x=4.0)]
    assert spans(merge_events(parts, CLIP)) == [(8.0, 12.0)]
    assert len(merge_events([parts[0], event(10.1, 12.0, 2, x=40.0)], CLIP)) == 2  # another object


def test_merge_events_at_the_edge_of_one_window_only_stay_apart():
    assert len(merge_events([event(8.0, 10.0, 0), event(10.6, 12.0, 2)], CLIP)) == 2
    assert len(merge_events([event(8.0, 9.0, 0), event(10.0, 12.0, 2)], CLIP)) == 2


@pytest.mark.parametrize(("x", "count"), [(2.0, 1), (15.0, 2)])
def test_merge_events_with_boxes_on_different_objects_stay_apart(x, count):
    assert len(merge_events([event(6.0, 8.0, 0, x=0.0), event(6.0, 8.0, 1, x=x)], CLIP)) == count


def test_merge_events_of_one_window_stay_apart():
    assert spans(merge_events([event(6.0, 8.0, 0), event(6.0, 8.5, 0)], CLIP)) == [(6.0, 8.0), (6.0, 8.5)]


def test_merge_events_takes_each_box_from_the_window_whose_edges_are_further():
    merged = merge_events([event(5.5, 9.5, 0, x=0.0), event(5.5, 9.5, 1, x=1.0)], CLIP)
    assert [(time, entry["box"]["xmin"]) for time, entry in merged[0].boxes] == [
        (5.5, 0.0),
        (6.5, 0.0),
        (7.5, 0.0),
        (8.5, 1.0),
        (9.5, 1.0),
    ]


def test_merge_events_single_event_loses_boxes_outside_its_span():
    whole = event(2, 8, 0, x=0.0)
    [found] = merge_events([replace(whole, start=3.5, end=6.0)], CLIP)
    assert [time for time, _ in found.boxes] == [4.0, 5.0, 6.0]


def test_merge_events_weights_scores_by_seconds():
    (merged,) = merge_events([event(4.0, 10.0, 0, span_score=0.9), event(5.0, 8.0, 1, span_score=0.6, score=0.5)], CLIP)
    assert merged.span_score == pytest.approx((6 * 0.9 + 3 * 0.6) / 9) and merged.score == 0.5


def test_temporal_iou_of_spans_without_length_is_that_of_equal_times():
    assert temporal_iou((2.0, 2.0), (2.0, 2.0)) == 1.0 and temporal_iou((2.0, 2.0), (3.0, 3.0)) == 0.0
    assert temporal_iou((0.0, 2.0), (1.0, 3.0)) == pytest.approx(1 / 3)
