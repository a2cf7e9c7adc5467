# SPDX-License-Identifier: Apache-2.0
"""Frame indices of clips, at the limits of what is accepted."""

import numpy as np
import pytest
from transformers.video_utils import VideoMetadata

from llava_st_hf.model.video_processing_llava_st import LlavaSTVideoMetadata
from llava_st_hf.model.video_sampling_llava_st import (
    MAX_SAMPLED_FRAMES,
    check_num_frames,
    resolve_clip,
    sample_frame_indices,
)


TENTHS = VideoMetadata(total_num_frames=30, fps=10.0)  # 3 s
VARYING = LlavaSTVideoMetadata(4, 1.0, frame_times=[0.0, 0.5, 1.0, 3.0])  # the last frame is displayed until 5 s


def test_sample_frame_indices_rounds_half_to_even_from_the_first_frame_on():
    assert sample_frame_indices(0, 5, 11) == [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5]
    assert sample_frame_indices(100, 105, 3) == [100, 102, 105]
    assert sample_frame_indices(7, 8, 1) == [7]
    assert sample_frame_indices(7, 9, 2) == [7, 9]
    assert sample_frame_indices(4, 4, 3) == [4, 4, 4]


@pytest.mark.parametrize("number", [1, 2, MAX_SAMPLED_FRAMES, np.int64(3)])
def test_check_num_frames_accepts_integers_from_1_to_the_maximum(number):
    assert check_num_frames(number) is None


@pytest.mark.parametrize("number", [0, -1, True, 2.0, "3", None, MAX_SAMPLED_FRAMES + 1])
def test_check_num_frames_other_value_raises_with_name_and_value(number):
    with pytest.raises(ValueError, match=r"^num_frames must be .*got"):
        check_num_frames(number)
    with pytest.raises(ValueError, match=r"^frames of the video must be .*got"):
        check_num_frames(number, "frames of the video")


@pytest.mark.parametrize(
    ("clip", "frames"),
    [
        (None, (0, 29)),
        ({"frames": [0, 0]}, (0, 0)),
        ({"frames": [29, 29]}, (29, 29)),
        ({"frames": (29, 30)}, (29, 30)),  # one frame late, as some annotations are; sampling clamps it
        ({"frames": np.array([3, 9])}, (3, 9)),
        ({"start": 0.0}, (0, 29)),
        ({"end": 3.0}, (0, 29)),
        ({"start": 1.0, "end": 1.1}, (10, 10)),
        ({"start": 0.1 * 3, "end": 0.4}, (3, 3)),  # 0.1 · 3 is 4e-17 above 0.3
        ({"start": 1.05, "end": 1.15}, (10, 11)),
        ({"start": 2.95, "end": 3.1}, (29, 29)),  # an end less than one frame late is accepted
        ({"start": 1.0, "end": 1.0 + 1e-9}, (10, 10)),
        ({"start": 0, "end": 3}, (0, 29)),
        ({"start": 3.0 - 1e-7}, (29, 29)),  # within the rounding of the end
    ],
)
def test_resolve_clip_constant_rate_gives_every_displayed_frame(clip, frames):
    assert resolve_clip(clip, TENTHS) == frames


@pytest.mark.parametrize(
    ("clip", "frames"),
    [
        ({"start": 0.0}, (0, 3)),
        ({"end": 5.0}, (0, 3)),
        ({"end": 0.5}, (0, 0)),
        ({"start": 0.5, "end": 1.0}, (1, 1)),
        ({"start": 0.4985, "end": 1.0}, (0, 1)),
        ({"start": 0.4995, "end": 1.0005}, (1, 1)),  # times are known to the millisecond
        ({"start": 0.5, "end": 1.0015}, (1, 2)),
        ({"start": 1.5, "end": 2.5}, (2, 2)),
        ({"start": 4.9, "end": 7.0}, (3, 3)),
        ({"start": 1.0, "end": 1.0005}, (2, 2)),
    ],
)
def test_resolve_clip_varying_rate_uses_the_times_of_the_frames(clip, frames):
    assert resolve_clip(clip, VARYING) == frames


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ({"start": 3.0}, "beyond the end"),
        ({"start": 2.0, "end": 3.11}, "beyond the end"),
        ({"start": -0.001, "end": 1.0}, "negative"),
        ({"start": 1.0, "end": 1.0}, "must be after its start"),
        ({"start": True}, "finite numbers"),
        ({"end": False}, "finite numbers"),
        ({"start": None}, "finite numbers"),
        ({"frames": [True, 2]}, "whole numbers"),
        ({"frames": [0, 31]}, "30 frames"),
        ({"frames": [30, 30]}, "30 frames"),
        ({"frames": [1, 0]}, "must not be before the first"),
        ({"frames": [-1, 0]}, "negative"),
        ({"frames": "01"}, r"\[first, last\]"),
        ({"frames": [1]}, r"\[first, last\]"),
        ({"begin": 1.0}, "must be None"),
        ([0, 1], "must be None"),
        ({}, "must be None"),
    ],
)
def test_resolve_clip_impossible_clip_raises(clip, message):
    with pytest.raises(ValueError, match=message):
        resolve_clip(clip, TENTHS)


@pytest.mark.parametrize("clip", [{"start": 5.0}, {"start": 0.0, "end": 7.01}])
def test_resolve_clip_varying_rate_beyond_the_last_frames_display_raises(clip):
    with pytest.raises(ValueError, match=r"5\.000 s"):
        resolve_clip(clip, VARYING)


def test_resolve_clip_seconds_without_rate_raises_and_frames_need_none():
    unknown = VideoMetadata(total_num_frames=30)
    with pytest.raises(ValueError, match="frame rate"):
        resolve_clip({"start": 1.0}, unknown)
    assert resolve_clip({"frames": [2, 5]}, unknown) == (2, 5)
    # Times of the frames serve in place of a rate.
    assert resolve_clip({"start": 0.5}, LlavaSTVideoMetadata(3, None, frame_times=[0.0, 0.5, 1.0])) == (1, 2)


def test_resolve_clip_last_frame_with_time_is_displayed_for_one_frame_interval():
    single = LlavaSTVideoMetadata(1, 2.0, frame_times=[1.0])
    assert resolve_clip({"start": 1.2, "end": 1.5}, single) == (0, 0)
    with pytest.raises(ValueError, match=r"1\.500 s"):
        resolve_clip({"start": 1.5}, single)
    pair = LlavaSTVideoMetadata(2, 4.0, frame_times=[0.0, 0.5])  # the interval between the two counts, not the rate
    assert resolve_clip({"start": 0.9, "end": 1.0}, pair) == (1, 1)
    with pytest.raises(ValueError, match=r"1\.000 s"):
        resolve_clip({"start": 1.0}, pair)
    instant = LlavaSTVideoMetadata(1, None, frame_times=[1.0])  # no rate: it has no duration
    with pytest.raises(ValueError, match=r"1\.000 s"):
        resolve_clip({"start": 1.0}, instant)


def test_resolve_clip_late_first_frame_counts_seconds_from_the_start_of_the_container():
    late = LlavaSTVideoMetadata(10, 10.0, start_time=2.0)  # frames are displayed from 2 s to 3 s
    assert resolve_clip({"start": 0.0}, late) == (0, 9)
    assert resolve_clip({"start": 2.25, "end": 2.4}, late) == (2, 3)
    assert resolve_clip({"start": 1.0, "end": 2.05}, late) == (0, 0)
    with pytest.raises(ValueError, match=r"ends before the first frame, which is displayed at 2\.000 s"):
        resolve_clip({"end": 2.0}, late)
    varying = LlavaSTVideoMetadata(2, 1.0, frame_times=[2.0, 2.5])
    with pytest.raises(ValueError, match=r"ends before the first frame, which is displayed at 2\.000 s"):
        resolve_clip({"end": 2.0}, varying)
